"""xPos: rotary position embedding whose scores also fade with the distance."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, rotate

# Nats between the largest and the smallest factor. e^81 times a product of vectors of up to 2,000
# is finite in float32 and bfloat16 (below e^88.7), also where a mask hides it.
RANGE = 81.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class XPos(Scheme):
  """Rotates as RoPE does, and scales pair f by zeta[f]^u on queries and zeta[f]^-u on keys (Sun et
  al. 2022, arXiv:2212.10554, Algorithm 1), so that what pair f adds to a score fades by

    zeta[f]^((pos[i] - pos[j]) / scale_base),   zeta[f] = (f / (K/2) + gamma) / (1 + gamma)

  slow waves less than fast ones. For causal attention: towards keys ahead it grows. scale_base is
  the authors' code's; in the paper the exponent counts tokens.

    u = pos / scale_base - c,   c = RANGE / (2 ln(1/zeta[0]))

  c only centres the range: it cancels in every score. The authors' code takes c from the length of
  the row, which would part a query from keys that were cached in a shorter one; here it is a
  constant, 32 at gamma = 0.4, so positions may restart in a row and keys may be kept. All factors
  lie within e^-40.5 and e^40.5 up to 33,000 tokens (at the defaults), and more are refused before
  anything runs (`capacity`). In float32 a factor is off by up to 5e-6 of itself.

  Of the extensions, linear stretches waves and fading alike; those that only know frequencies leave
  the fading as trained.

  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  gamma: above 0; the larger, the less fast waves fade.
  scale_base: tokens over which pair f fades by zeta[f]. Above 0.

  Raises ValueError for float16, whose exponents end at e^11.
  """

  theta: float = 10_000.0
  gamma: float = 0.4
  scale_base: int = 512

  def __post_init__(self):
    for name in ('gamma', 'scale_base'):
      if not getattr(self, name) > 0:
        raise ValueError(f'xPos with {name} = {getattr(self, name)} cannot fade. Use one above 0.')

  @property
  def reach(self) -> float:
    """Distance, in units of scale_base, over which the fastest wave fades by RANGE."""
    return RANGE / math.log((1 + self.gamma) / self.gamma)

  def spectrum(self, dims):
    frequency_F = geometric_frequencies(dims.head_width, self.theta)
    return Spectrum(frequency_F=frequency_F, amplitude=1.0, rate=1.0)

  def capacity(self, spectrum, dims):
    return math.floor(self.reach * self.scale_base / float(spectrum.rate))

  def query(self, params, spectrum, q_LHK, pos_L):
    return self.turn(q_LHK, spectrum, pos_L, 1)

  def key(self, params, spectrum, k_LGK, pos_L):
    return self.turn(k_LGK, spectrum, pos_L, -1)

  def turn(self, x_LHK, spectrum, pos_L, sign: int):
    """x rotated and scaled by zeta^(sign * u), in float32 until the end."""
    if x_LHK.dtype == jnp.float16:
      raise ValueError(
        'xPos scales by up to e^40, and float16 ends at e^11. Use --config.model.dtype=bfloat16.'
      )
    F = spectrum.frequency_F.shape[-1]
    fade_F = np.log((np.arange(F) / F + self.gamma) / (1 + self.gamma))
    u_L = pos_L.astype(jnp.float32) * (spectrum.rate / self.scale_base) - self.reach / 2
    scale_L1F = jnp.exp(sign * u_L[:, None] * fade_F.astype(np.float32))[:, None]
    scaled_LHK = x_LHK.astype(jnp.float32) * jnp.concatenate([scale_L1F, scale_L1F], axis=-1)
    turned_LHK = rotate(scaled_LHK, spectrum.frequency_F, pos_L, spectrum.amplitude)
    return turned_LHK.astype(x_LHK.dtype)
