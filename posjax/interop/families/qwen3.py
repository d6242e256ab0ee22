"""Qwen 3, dense (Yang et al. 2025, arXiv:2505.09388): a norm on each head of queries and keys."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.table import Table

ARCHITECTURES = ('Qwen3ForCausalLM',)
MODEL_TYPE = GGUF = 'qwen3'


def write(model):
  return usual.write(model) | {'attention_bias': 'qkv' in model.biases}


def read(keys):
  usual.own_head_width(keys, 128)
  biased = keys.flag('attention_bias', False)
  model = usual.sizes(keys) | usual.gated(keys, 1e-6, qk_norm='head')
  model['biases'] = usual.biases(qkv=biased, output=biased)
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
