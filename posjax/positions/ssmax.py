"""Scalable-Softmax: logits grow with the logarithm of how many keys there are."""

import dataclasses

import jax.numpy as jnp

from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSMax(Scheme):
  """q[h,l] *= strength[h] ln(pos[l] + 1), so that attention stays as sharp over more keys
  (Nakanishi 2025, arXiv:2501.19399, eq. 3 and 4).

  n = pos + 1 keys, the query's own included, are those it sees without a window. Strengths are
  learned, one for each head of each layer. It knows no order by itself: put it together with a
  scheme that does. A product, not a sum: a sum would leave softmax as it was.

  strength: what all start from, above 0; 0.43 is what the authors' fit of free factors came to.
  """

  strength: float = 0.43

  relative = False

  def __post_init__(self):
    if not self.strength > 0:
      raise ValueError(
        f'A strength of {self.strength} would look at all keys alike, or at the wrong ones. '
        'Use strength > 0.'
      )

  def init_layer(self, key, dims):
    return {'strength_H': jnp.full(dims.heads, self.strength)}

  def query(self, params, spectrum, q_LHK, pos_L):
    factor_LH = params['strength_H'] * jnp.log1p(pos_L.astype(jnp.float32))[:, None]
    return (q_LHK * factor_LH[..., None]).astype(q_LHK.dtype)
