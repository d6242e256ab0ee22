"""GPT-2 (Radford et al. 2019): learned positions, matrices as [in, out]."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm, times
from posjax.mlp import USUAL

ARCHITECTURES = ('GPT2LMHeadModel',)
MODEL_TYPE = 'gpt2'


def write(model):
  names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  activation = model.activation or USUAL[model.mlp]
  return {
    'vocab_size': model.vocabulary,
    'n_embd': model.width,
    'n_head': model.heads,
    'n_layer': model.layers,
    'n_inner': model.mlp_width,
    'n_positions': getattr(model.pattern[0].scheme, 'length', None) or model.length,
    'activation_function': names[activation],
    'layer_norm_epsilon': model.norm_epsilon or 1e-5,
  }


def read(keys):
  D, H, length = keys.whole('n_embd'), keys.whole('n_head'), keys.whole('n_positions')
  keys.take('n_ctx', None)  # which nobody reads
  keys.take('reorder_and_upcast_attn', None)  # where numbers are rounded
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('n_layer'),
    'heads': H,
    'kv_heads': H,
    'head_width': usual.head_width(keys, D, H),
    'mlp': 'plain',
    'mlp_width': keys.whole('n_inner', 4 * D),
    'activation': keys.one_of('activation_function', ACTIVATIONS, 'gelu_new'),
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': ('qkv', 'output', 'mlp'),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'learned', 'length': length},
    length=length,
    table=Table(
      weights=weights(model),
      changes=scales(keys, model['head_width']),
      ignored=r'\.attn\.(masked_)?bias$',  # causal masks
    ),
    prefix='transformer.',
  )


def scales(keys, K: int):
  """Logits that are not divided by sqrt(K), or also by the number of the layer: in the queries."""
  whole = 1.0 if keys.flag('scale_attn_weights', True) else K**0.5
  by_layer = keys.flag('scale_attn_by_inverse_layer_idx', False)
  if whole == 1 and not by_layer:
    return ()
  return (times('attention/query_', lambda n: whole / (n + 1 if by_layer else 1)),)


def weights(model):
  layer, K = 'transformer.h.{n}.', model['head_width']
  return (
    *embedding('transformer.wte'),
    *embedding('transformer.wpe', 'position/table_LD'),
    *norm(f'{layer}ln_1', 'attention_norm'),
    *usual.fused(f'{layer}attn.c_attn', model['heads'], model['heads'], K, rows_first=False),
    *linear(f'{layer}attn.c_proj', 'attention/output_XD', rows_first=False),
    *norm(f'{layer}ln_2', 'mlp_norm'),
    *linear(f'{layer}mlp.c_fc', 'mlp/up_DM', rows_first=False),
    *linear(f'{layer}mlp.c_proj', 'mlp/down_MD', rows_first=False),
    *norm('transformer.ln_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
