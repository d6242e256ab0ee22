"""Gemma 1 (Gemma Team 2024, arXiv:2403.08295): norms scale by 1 + weight, embeddings by sqrt(D)."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, plus

ARCHITECTURES = ('GemmaForCausalLM',)
MODEL_TYPE = 'gemma'


def read(keys):
  usual.own_head_width(keys, 256)
  keys.one_of('use_bidirectional_attention', (False,), False)
  keys.one_of('hidden_activation', (None, 'gelu_pytorch_tanh'), None)  # which nobody reads
  biased = keys.flag('attention_bias', False)
  # The first configs say gelu and mean its tanh form, as transformers knows.
  names = ACTIVATIONS | {'gelu': 'gelu_tanh'}
  model = usual.sizes(keys, tied=True)
  model |= {
    'norm': 'rms',
    'norm_epsilon': float(keys.number('rms_norm_eps', 1e-6)),
    'mlp': 'gated',
    'activation': keys.one_of('hidden_act', names, 'gelu_pytorch_tanh'),
    'biases': usual.biases(qkv=biased, output=biased),
    'embedding_scale': model['width'] ** 0.5,
  }
  rotary = rope.read(keys, model['head_width'], length=8192)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=usual.weights(), changes=(plus(r'norm/scale_D$', 1.0),)),
    prefix='model.',
  )
