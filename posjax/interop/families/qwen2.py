"""Qwen 2 and 2.5 (Yang et al. 2024, arXiv:2407.10671): biases on queries, keys and values."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.table import Table

ARCHITECTURES = ('Qwen2ForCausalLM',)
MODEL_TYPE = GGUF = 'qwen2'


def read(keys):
  model = usual.sizes(keys) | usual.gated(keys, 1e-6, biases=('qkv',))
  rotary = rope.read(keys, model['head_width'], length=32768)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(usual.qwen_layers(keys, model['layers'])),
    length=rotary.length,
    table=Table(weights=usual.weights()),
    prefix='model.',
  )
