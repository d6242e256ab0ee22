"""Mistral: Llama's weights, a window on every layer (Jiang et al. 2023, arXiv:2310.06825)."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table

ARCHITECTURES = ('MistralForCausalLM',)
MODEL_TYPE = 'mistral'


def write(model):
  return usual.write(model) | {'sliding_window': model.pattern[0].mask.window}


def read(keys):
  model = usual.sizes(keys) | usual.gated(keys, 1e-6)
  model['window'] = keys.nullable('sliding_window', 4096)
  rotary = rope.read(keys, model['head_width'], length=4096 * 32)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=usual.weights()),
    prefix='model.',
  )
