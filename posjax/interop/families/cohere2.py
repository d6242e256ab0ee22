"""Cohere's Command R7B and A (2024): windows with RoPE, every fourth layer with neither."""

from posjax.interop import rope, usual
from posjax.interop.families import cohere
from posjax.interop.family import Recipe, pattern

ARCHITECTURES = ('Cohere2ForCausalLM',)
MODEL_TYPE = 'cohere2'


def read(keys):
  model, scale = cohere.shared(keys)
  K, layers = model['head_width'], model['layers']
  rotary = rope.read(keys, K, length=8192)
  window, every = keys.nullable('sliding_window', 4096), keys.whole('sliding_window_pattern', 4)
  for name in (  # what is so in any case
    'rotary_pct', 'layer_switch', 'position_embedding_type', 'order_of_interleaved_layers',
    'cache_implementation', 'use_gated_activation', 'use_embedding_sharing',
  ):  # fmt: skip
    keys.take(name, None)
  kinds = ['sliding_attention' if (n + 1) % every else 'full_attention' for n in range(layers)]
  own = usual.windows(keys, keys.take('layer_types', kinds), layers, window)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern([one if 'window' in one else {'position': {'name': 'none'}} for one in own]),
    length=rotary.length,
    table=cohere.table(K, scale),
    prefix='model.',
  )
