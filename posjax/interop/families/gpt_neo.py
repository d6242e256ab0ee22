"""GPT-Neo (Black et al. 2021): GPT-2's positions, every other layer with a window, logits as they
are."""

from posjax.interop import usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm, times

ARCHITECTURES = ('GPTNeoForCausalLM',)
MODEL_TYPE = 'gpt_neo'


def read(keys):
  D = keys.whole('hidden_size')
  H = keys.whole('num_heads', None) or keys.whole('num_attention_heads')
  N = keys.whole('num_layers', None) or keys.whole('num_hidden_layers')
  K, length = usual.head_width(keys, D, H), keys.whole('max_position_embeddings', 2048)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': N,
    'heads': H,
    'kv_heads': H,
    'head_width': K,
    'mlp': 'plain',
    'mlp_width': keys.whole('intermediate_size', 4 * D),
    'activation': keys.one_of('activation_function', ACTIVATIONS, 'gelu_new'),
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': ('output', 'mlp'),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'learned', 'length': length},
    layers=pattern(layers(keys, N)),
    length=length,
    table=Table(
      weights=weights(),
      changes=(times('attention/query_', lambda n: K**0.5),),  # nothing divides its logits
      ignored=r'\.attn\.attention\.(masked_)?bias$',
    ),
    prefix='transformer.',
  )


def layers(keys, N: int) -> list[dict]:
  """attention_types: [[['global', 'local'], 6]] is six times these two."""
  types = keys.take('attention_types', [[['global', 'local'], N // 2]])
  window = keys.whole('window_size', 256)
  try:
    kinds = [kind for some, count in types for kind in list(some) * count]
  except (TypeError, ValueError):
    raise keys.refuse('attention_types', types, "It reads [[['global', 'local'], 6]].") from None
  keys.same('attention_layers', kinds)
  if len(kinds) != N or not {*kinds} <= {'global', 'local'}:
    raise keys.refuse('attention_types', types, f'It must name global or local for {N} layers.')
  return [{'window': window} if kind == 'local' else {} for kind in kinds]


def weights():
  layer = 'transformer.h.{n}.'
  attention = f'{layer}attn.attention.'
  return (
    *embedding('transformer.wte'),
    *embedding('transformer.wpe', 'position/table_LD'),
    *norm(f'{layer}ln_1', 'attention_norm'),
    *linear(f'{attention}q_proj', 'attention/query_DX'),
    *linear(f'{attention}k_proj', 'attention/key_DX'),
    *linear(f'{attention}v_proj', 'attention/value_DX'),
    *linear(f'{attention}out_proj', 'attention/output_XD'),
    *norm(f'{layer}ln_2', 'mlp_norm'),
    *linear(f'{layer}mlp.c_fc', 'mlp/up_DM'),
    *linear(f'{layer}mlp.c_proj', 'mlp/down_MD'),
    *norm('transformer.ln_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
