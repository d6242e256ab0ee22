"""The position itself, times one learned vector, added to the embedded tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(Scheme):
  """x[l] += (pos[l] / unit) direction: a position is one number, on one learned axis.

  The plainest absolute scheme, a baseline without a paper. The unit is fixed. Dividing by the
  length of the sequence at hand, as is also done, would tell each token how many follow it, and
  would move a prefix whenever the text goes on. Positions past the training length continue the
  line, where x soon holds little else; `linear` by a factor of s brings s * unit tokens back to 1.

  unit: tokens that move x by the whole vector; None takes the training length. Above 0.
  deviation: of the vector's normal initialisation, in units of the embedded tokens.
  """

  unit: int | None = None
  deviation: float = 0.02

  relative = False

  def __post_init__(self):
    if self.unit is not None and not self.unit > 0:
      raise ValueError(
        f'Linear positions in units of {self.unit} tokens. Use unit > 0, or None for the training '
        'length.'
      )

  def spectrum(self, dims):
    return Spectrum(rate=1 / (self.unit or dims.length))

  def init(self, key, dims):
    return {'direction_D': self.deviation * jax.random.normal(key, (dims.width,))}

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    share_L1 = (pos_L.astype(jnp.float32) * spectrum.rate)[:, None]
    return x_LD + (share_L1 * params['direction_D']).astype(x_LD.dtype)
