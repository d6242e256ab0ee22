"""OPT (Zhang et al. 2022, arXiv:2205.01068): learned positions whose table begins two rows late."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, Weight, embedding, linear, norm

ARCHITECTURES = ('OPTForCausalLM',)
MODEL_TYPE = 'opt'


def read(keys):
  D, H = keys.whole('hidden_size'), keys.whole('num_attention_heads')
  length = keys.whole('max_position_embeddings', 2048)
  keys.same('word_embed_proj_dim', D)  # of the 350m model, whose embeddings are narrower
  keys.one_of('_remove_final_layer_norm', (False,), False)
  keys.one_of('layer_norm_elementwise_affine', (True,), True)
  biased = keys.flag('enable_bias', True)
  before = keys.flag('do_layer_norm_before', True)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('num_hidden_layers'),
    'heads': H,
    'kv_heads': H,
    'head_width': usual.head_width(keys, D, H),
    'mlp': 'plain',
    'mlp_width': keys.whole('ffn_dim', 4 * D),
    'activation': keys.one_of('activation_function', ACTIVATIONS, 'relu'),
    'norm': 'layer',
    'norm_at': 'input' if before else 'sum',
    'norm_epsilon': 1e-5,
    'biases': usual.biases(qkv=biased, output=biased, mlp=biased),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'learned', 'length': length},
    length=length,
    table=Table(weights=weights(before)),
    prefix='model.',
  )


def weights(before: bool):
  layer, place = 'model.decoder.layers.{n}.', 'norm' if before else 'sum_norm'
  positions = Weight(
    'model.decoder.embed_positions.weight', ('position/table_LD',), rows_first=False, skip=2
  )
  return (
    *embedding('model.decoder.embed_tokens'),
    positions,
    *norm(f'{layer}self_attn_layer_norm', f'attention_{place}'),
    *linear(f'{layer}self_attn.q_proj', 'attention/query_DX'),
    *linear(f'{layer}self_attn.k_proj', 'attention/key_DX'),
    *linear(f'{layer}self_attn.v_proj', 'attention/value_DX'),
    *linear(f'{layer}self_attn.out_proj', 'attention/output_XD'),
    *norm(f'{layer}final_layer_norm', f'mlp_{place}'),
    *linear(f'{layer}fc1', 'mlp/up_DM'),
    *linear(f'{layer}fc2', 'mlp/down_MD'),
    *norm('model.decoder.final_layer_norm', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
