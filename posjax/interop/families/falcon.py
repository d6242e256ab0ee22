"""Falcon (Almazrouei et al. 2023, arXiv:2311.16867), with RoPE or ALiBi, of both architectures."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm

ARCHITECTURES = ('FalconForCausalLM',)
MODEL_TYPE = 'falcon'


def read(keys):
  D = keys.whole('n_embed', None) or keys.whole('hidden_size')
  keys.same('hidden_size', D)
  H = keys.whole('num_attention_heads')
  new = keys.flag('new_decoder_architecture', False)
  multi_query = keys.flag('multi_query', True) and not new
  G = keys.whole('num_kv_heads', H)
  if not (new or multi_query or G == H):
    raise keys.refuse('num_kv_heads', G, f'Without new_decoder_architecture it is {H}, or 1.')
  keys.one_of('apply_residual_connection_post_layernorm', (False,), False)
  biased = keys.flag('bias', False)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('num_hidden_layers'),
    'heads': H,
    'kv_heads': 1 if multi_query else G,
    'head_width': usual.head_width(keys, D, H),
    'mlp': 'plain',
    'mlp_width': keys.whole('ffn_hidden_size', 4 * D),
    'activation': keys.one_of('activation', ACTIVATIONS, 'gelu'),
    'residual': residual(keys, new),
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': usual.biases(qkv=biased, output=biased, mlp=biased),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  rotary = rope.read(keys, model['head_width'], length=2048)
  position, extension = rotary.position, rotary.extension
  if keys.flag('alibi', False):
    # Biases are rounded to bfloat16, and divided by sqrt(K) with the products.
    position = {'name': 'alibi', 'scale': model['head_width'] ** -0.5, 'rounded': True}
    extension = {'name': 'none'}
  return Recipe(
    model=model,
    position=position,
    extension=extension,
    length=rotary.length,
    table=Table(weights=weights(model, new)),
    prefix='transformer.',
  )


def residual(keys, new: bool) -> str:
  parallel = keys.flag('parallel_attn', True)
  norms = keys.take('num_ln_in_parallel_attn', 2 if new else 1)
  if norms not in ((1, 2) if new else (1,)):
    raise keys.refuse('num_ln_in_parallel_attn', norms, 'It is 1, or 2 in the new architecture.')
  if new and not parallel:
    raise keys.refuse('parallel_attn', parallel, 'The new architecture is always parallel.')
  if not parallel:
    return 'sequential'
  return 'parallel' if norms == 2 else 'parallel_shared'


def weights(model, new: bool):
  layer = 'transformer.h.{n}.'
  H, G, K = model['heads'], model['kv_heads'], model['head_width']
  groups = G if new or G == H else 1
  norms = {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  if model['residual'] == 'parallel':
    norms = {'attention_norm': 'ln_attn', 'mlp_norm': 'ln_mlp'}
  return (
    *embedding('transformer.word_embeddings'),
    *(weight for ours, theirs in norms.items() for weight in norm(layer + theirs, ours)),
    *usual.fused(f'{layer}self_attention.query_key_value', H, G, K, groups=groups),
    *linear(f'{layer}self_attention.dense', 'attention/output_XD'),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up_DM'),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down_MD'),
    *norm('transformer.ln_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
