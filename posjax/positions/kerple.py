"""KERPLE: a learned penalty that grows with the logarithm, or with a power, of distance."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


def logarithm(r_X, p, a):
  """p ln(1 + a r)."""
  return p * jnp.log1p(a * r_X)


def power(r_X, p, a):
  """a r^p, whose derivatives at r = 0 are 0 here: p < 1 would make them infinite."""
  apart_X = r_X > 0
  return jnp.where(apart_X, a * jnp.where(apart_X, r_X, 1.0) ** p, 0.0)


# The penalty, the range of p as a function of any real number, and that function's inverse.
KERNELS = {
  'log': (logarithm, jax.nn.softplus, lambda p: jnp.log(jnp.expm1(p))),
  'power': (power, lambda raw: 2 * jax.nn.sigmoid(raw), lambda p: jnp.log(p / (2 - p))),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class KERPLE(Scheme):
  """A penalty per head, with r = pos[i] - pos[j] (Chi et al. 2022, arXiv:2205.09921, sec. 4):

    log:    logit[h,i,j] -= p[h] ln(1 + a[h] r),    p > 0,      a > 0
    power:  logit[h,i,j] -= a[h] r^p[h],            0 < p < 2,  a > 0

  p and a as in the authors' code; the paper calls the factor r1 and the other one r2. Learned, one
  pair per head for all layers, and added after the division by sqrt(K), as there. Drawn from
  U(0.01, 1.99) and U(0.01, 1), the authors' U(0, 2) and U(0, 1) without their ends. They clamp p
  and a to 0.01 or more (p to 2 or less in 'power') after each step; here both are smooth functions
  of what is learned, softplus(raw) or 2 sigmoid(raw), so that no gradient is cut off.

  Keys ahead get no penalty. An extension's `rate` shrinks r.

  kernel: 'log' or 'power'.
  """

  kernel: str = dataclasses.field(default='log', metadata={'other': 'power'})

  def __post_init__(self):
    if self.kernel not in KERNELS:
      raise ValueError(f"KERPLE has no kernel '{self.kernel}'. Use one of: {', '.join(KERNELS)}.")

  def init(self, key, dims):
    p_key, a_key = jax.random.split(key)
    p_H = jax.random.uniform(p_key, (dims.heads,), minval=0.01, maxval=1.99)
    a_H = jax.random.uniform(a_key, (dims.heads,), minval=0.01, maxval=1.0)
    raw_of = KERNELS[self.kernel][2]
    return {'raw_p_H': raw_of(p_H), 'raw_a_H': jnp.log(jnp.expm1(a_H))}

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def score(self, params, spectrum, s_HIJ, tile):
    penalty, p_of, _ = KERNELS[self.kernel]
    p_H, a_H = p_of(params['raw_p_H']), jax.nn.softplus(params['raw_a_H'])

    def bias(r_X):
      r_X = jnp.maximum(r_X, 0) * spectrum.rate  # ahead, neither kernel is a number
      return -jax.vmap(penalty, in_axes=(None, 0, 0))(r_X, p_H, a_H)

    return s_HIJ + tile.by_distance(bias)
