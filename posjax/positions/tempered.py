"""Temperature by position: the farther a query looks back, the more it is sharpened."""

import dataclasses

import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tempered(Scheme):
  """q[l] *= 1 + strength ln(1 + floor((pos[l] + 1) / period)), as the layers without rotation of
  Llama 4 do (Meta 2025, `attn_temperature_tuning` in the released code; after Nakanishi 2025,
  arXiv:2501.19399).

  A softmax over more keys is flatter; a factor that grows with their number keeps it as sharp. It
  is the query's own position that counts: nothing tells keys apart, so this is for layers that
  know no other position, or on top of a scheme that does.

  strength: above 0; Llama 4 has 0.1.
  period: tokens per step of the logarithm's argument; Llama 4 has 8192, the chunk of its other
    layers. None takes an eighth of the training length, so that training meets several.
  """

  strength: float = 0.1
  period: int | None = None

  relative = False

  def __post_init__(self):
    if not self.strength > 0 or (self.period is not None and self.period < 1):
      raise ValueError(
        f'A temperature of strength {self.strength} and period {self.period} changes nothing, or '
        'the wrong way. Use strength > 0, and period >= 1 or None.'
      )

  def spectrum(self, dims):
    return Spectrum(rate=1 / (self.period or max(1, dims.length // 8)))

  def query(self, params, spectrum, q_LHK, pos_L):
    # The smallest float32 above pos + 1 that a rounded rate can miss a whole number by: one part
    # in a million more does not reach the next token's.
    steps_L = jnp.floor((pos_L.astype(jnp.float32) + 1) * spectrum.rate * (1 + 1e-6))
    factor_L11 = (1 + self.strength * jnp.log1p(steps_L))[:, None, None]
    return (q_LHK * factor_L11).astype(q_LHK.dtype)
