"""Gemma 3, text (Gemma Team 2025, arXiv:2503.19786): five windows of their own base, one layer
without."""

from posjax.interop import rope, usual
from posjax.interop.families import gemma2
from posjax.interop.family import Recipe, pattern
from posjax.interop.keys import Keys
from posjax.interop.table import Table, plus

ARCHITECTURES = ('Gemma3ForCausalLM',)
MODEL_TYPE = 'gemma3_text'


def read(keys):
  model = gemma2.shared(keys) | {'qk_norm': 'head'}
  # transformers caps no logits of attention here, whatever the config asks for.
  keys.one_of('attn_logit_softcapping', (None,), None)
  model['logit_cap'] = keys.take('final_logit_softcapping', None)
  layers, window = model['layers'], keys.nullable('sliding_window', 4096)
  every = keys.whole('_sliding_window_pattern', keys.whole('sliding_window_pattern', 6))
  kinds = ['sliding_attention' if (n + 1) % every else 'full_attention' for n in range(layers)]
  own = usual.windows(keys, keys.take('layer_types', kinds), layers, window)
  keys.take('cache_implementation', None)
  wide, near = rotations(keys, model['head_width'])
  near = {'position': near, 'extended': False}  # a window stays as it is
  queries = gemma2.scale(keys, model, 'attention/query_norm/scale_D$')
  return Recipe(
    model=model,
    position=wide.position,
    extension=wide.extension,
    layers=pattern([one | near if 'window' in one else one for one in own]),
    length=wide.length,
    table=Table(
      weights=usual.weights(norms=gemma2.NORMS),
      changes=(plus(r'norm/scale_D$', 1.0), *queries),
    ),
    prefix='model.',
  )


def rotations(keys, K: int):
  """Of layers that see everything, and the position of those with a window."""
  given = keys.within('rope_parameters')
  kinds = ('full_attention', 'sliding_attention')
  full, sliding = (dict(given.take(kind, None) or {}) for kind in kinds)
  given.check_all_read()
  length = {'max_position_embeddings': keys.whole('max_position_embeddings', 131_072)}
  theta = keys.number('rope_theta', 1_000_000.0)
  local = keys.number('rope_local_base_freq', 10_000.0)
  full |= keys.take('rope_scaling', None) or {}
  where = f'{keys.where}, rope_parameters,'
  read_one = lambda found, base: rope.read(
    Keys({'rope_parameters': found} | length, where), K, theta=base
  )
  wide, near = read_one(full, theta), read_one(sliding, local)
  if near.extension['name'] != 'none':
    raise keys.refuse('rope_parameters', sliding, 'Layers with a window are not extended.')
  return wide, near.position
