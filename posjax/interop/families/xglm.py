"""XGLM (Lin et al. 2021, arXiv:2112.10668): sinusoids in halves, counted from 2."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm

ARCHITECTURES = ('XGLMForCausalLM',)
MODEL_TYPE = 'xglm'


def read(keys):
  D = keys.whole('d_model', None) or keys.whole('hidden_size')
  H = keys.whole('attention_heads', None) or keys.whole('num_attention_heads')
  scaled = keys.flag('scale_embedding', True)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('num_layers', None) or keys.whole('num_hidden_layers'),
    'heads': H,
    'kv_heads': H,
    'head_width': usual.head_width(keys, D, H),
    'mlp': 'plain',
    'mlp_width': keys.whole('ffn_dim'),
    'activation': keys.one_of('activation_function', ACTIVATIONS, 'gelu'),
    'norm': 'layer',
    'norm_epsilon': 1e-5,
    'biases': ('qkv', 'output', 'mlp'),
    'embedding_scale': D**0.5 if scaled else 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  if D % 2:
    raise keys.refuse('d_model', D, 'Sines and cosines come in pairs.')
  return Recipe(
    model=model,
    position={'name': 'sinusoidal', 'halves': True, 'begin': 2},
    length=keys.whole('max_position_embeddings', 2048),
    table=Table(weights=weights(), ignored=r'\.embed_positions\.weights$'),
    prefix='model.',
  )


def weights():
  layer = 'model.layers.{n}.'
  return (
    *embedding('model.embed_tokens'),
    *norm(f'{layer}self_attn_layer_norm', 'attention_norm'),
    *linear(f'{layer}self_attn.q_proj', 'attention/query_DX'),
    *linear(f'{layer}self_attn.k_proj', 'attention/key_DX'),
    *linear(f'{layer}self_attn.v_proj', 'attention/value_DX'),
    *linear(f'{layer}self_attn.out_proj', 'attention/output_XD'),
    *norm(f'{layer}final_layer_norm', 'mlp_norm'),
    *linear(f'{layer}fc1', 'mlp/up_DM'),
    *linear(f'{layer}fc2', 'mlp/down_MD'),
    *norm('model.layer_norm', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
