"""BLOOM (Scao et al. 2022, arXiv:2211.05100): ALiBi, a norm of the embedded tokens."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table, embedding, linear, norm

ARCHITECTURES = ('BloomForCausalLM',)
MODEL_TYPE = 'bloom'


def read(keys):
  D = keys.whole('n_embed', None) or keys.whole('hidden_size')
  keys.same('hidden_size', D)
  H = keys.whole('n_head', None) or keys.whole('num_attention_heads')
  N = keys.whole('n_layer', None) or keys.whole('num_hidden_layers')
  keys.same('n_inner', 4 * D)
  keys.one_of('apply_residual_connection_post_layernorm', (False,), False)
  for name in (  # how it was trained, or where numbers are rounded
    'pretraining_tp', 'slow_but_exact', 'attention_softmax_in_fp32', 'masked_softmax_fusion',
    'bias_dropout_fusion', 'skip_bias_add', 'skip_bias_add_qkv', 'offset_alibi', 'unk_token_id',
  ):  # fmt: skip
    keys.take(name, None)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': N,
    'heads': H,
    'kv_heads': H,
    'head_width': usual.head_width(keys, D, H),
    'mlp': 'plain',
    'mlp_width': 4 * D,
    'activation': 'gelu_tanh',
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': ('qkv', 'output', 'mlp'),
    'embedding_scale': 1.0,
    'embedding_norm': True,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'alibi'},
    length=keys.whole('seq_length', 2048),
    table=Table(weights=weights(model)),
    prefix='transformer.',
  )


def weights(model):
  layer, H, K = 'transformer.h.{n}.', model['heads'], model['head_width']
  return (
    *embedding('transformer.word_embeddings'),
    *norm('transformer.word_embeddings_layernorm', 'input_norm'),
    *norm(f'{layer}input_layernorm', 'attention_norm'),
    *usual.fused(f'{layer}self_attention.query_key_value', H, H, K, groups=H),
    *linear(f'{layer}self_attention.dense', 'attention/output_XD'),
    *norm(f'{layer}post_attention_layernorm', 'mlp_norm'),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up_DM'),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down_MD'),
    *norm('transformer.ln_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
