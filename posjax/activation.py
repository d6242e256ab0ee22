"""Activations of MLPs, by the names that a config gives them."""

import functools

import jax

from posjax.linear import recomputed

ACTIVATIONS = {
  'silu': jax.nn.silu,  # x sigmoid(x), also called swish
  'gelu': functools.partial(jax.nn.gelu, approximate=False),  # x Phi(x) (arXiv:1606.08415)
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),  # its tanh form, as GPT-2's
  'relu': jax.nn.relu,
  'relu2': lambda x: jax.nn.relu(x) ** 2,  # So et al. 2021, arXiv:2109.08668
}


def activate(name: str, x):
  return recomputed(ACTIVATIONS[name])(x)


def gate(name: str, gate, up):
  return recomputed(lambda gate, up: ACTIVATIONS[name](gate) * up)(gate, up)
