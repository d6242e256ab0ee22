"""Activations of MLPs, by the names that a config gives them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from posjax.linear import recomputed

ACTIVATIONS = {
  'silu': jax.nn.silu,  # x sigmoid(x), also called swish
  'gelu': functools.partial(jax.nn.gelu, approximate=False),  # x Phi(x) (arXiv:1606.08415)
  'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),  # its tanh form, as GPT-2's
  'gelu_sigmoid': lambda x: x * jax.nn.sigmoid(1.702 * x),  # sec. 2 there; "quick gelu"
  'relu': jax.nn.relu,
  'relu2': lambda x: jax.nn.relu(x) ** 2,  # So et al. 2021, arXiv:2109.08668
}


def activate(name: str, x):
  return recomputed(ACTIVATIONS[name])(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
  """f(gate) * (up + offset), after gate and up are kept within limits.

  limit: gate is at most `limit`, up within `limit` of 0; None: neither is.
  """

  activation: str
  limit: float | None = None
  offset: float = 0.0

  def __post_init__(self):
    if self.limit is not None and not self.limit > 0:
      raise ValueError(f'model.gate_limit = {self.limit} lets nothing through. Use one above 0.')

  def __call__(self, gate, up):
    return recomputed(self.product)(gate, up)

  def product(self, gate, up):
    if self.limit is not None:
      gate, up = jnp.minimum(gate, self.limit), jnp.clip(up, -self.limit, self.limit)
    return ACTIVATIONS[self.activation](gate) * (up + self.offset if self.offset else up)
