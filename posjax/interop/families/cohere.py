"""Cohere's Command R (2024): parallel parts after one norm without a bias, interleaved RoPE."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, half_split, times

ARCHITECTURES = ('CohereForCausalLM',)
MODEL_TYPE = 'cohere'


def read(keys):
  keys.one_of('use_qk_norm', (False,), False)
  model, scale = shared(keys)
  K = model['head_width']
  rotary = rope.read(keys, K, theta=500_000.0, length=8192)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=table(K, scale),
    prefix='model.',
  )


def shared(keys):
  """What both generations have in common, and what multiplies their logits."""
  biased = keys.flag('attention_bias', False)
  model = usual.sizes(keys, tied=True) | {
    'mlp': 'gated',
    'activation': keys.one_of('hidden_act', ACTIVATIONS, 'silu'),
    'residual': 'parallel_shared',
    'norm': 'layer_unbiased',
    'norm_epsilon': float(keys.number('layer_norm_eps', 1e-5)),
    'biases': usual.biases(qkv=biased, output=biased),
  }
  keys.take('use_parallel_block', None)
  keys.take('use_parallel_embedding', None)
  return model, keys.number('logit_scale', 0.0625)


def table(K: int, scale: float) -> Table:
  """The scale of the logits is in the last norm, as the head is the embedding."""
  return Table(
    weights=usual.weights(norms={'attention_norm': 'input_layernorm'}),
    changes=(half_split(K, K), times('^final_norm/', lambda n: scale)),
  )
