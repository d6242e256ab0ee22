"""Sandwich: what two sinusoidal positions have in common, as a bias."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandwich(Scheme):
  """The product of the sinusoids of two positions (Chi et al. 2022, arXiv:2212.10356, app. E):

    logit[h,i,j] += sum over f of cos(frequency[f] (pos[i] - pos[j])) / ratio[h]
    frequency[f] = theta^(-2f / width), f < width / 2;    ratio[h] = compression (h + 1) / H

  in logits, after the division by sqrt(K), nothing learned. The bias of a token's own key is
  width / (2 ratio), not 0; what all keys share, softmax ignores.

  By angle addition it factorises exactly, into `width` columns; but each exact in bfloat16 makes
  that 6 width = 768, where a head has 32 to 128. Tiles are cheaper, so there are no `columns`.

  width: of the sinusoids, in dimensions, d-bar in the paper; even.
  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  compression: ratio of the last head. Above 0.
  """

  width: int = 128
  theta: float = 10_000.0
  compression: float = 8.0

  def __post_init__(self):
    if not self.compression > 0:
      raise ValueError(
        f'Sandwich with compression {self.compression} would favour distant keys, or divide by 0. '
        'Use one above 0; 8 is usual.'
      )

  def spectrum(self, dims):
    return Spectrum(frequency_F=geometric_frequencies(self.width, self.theta))

  def score(self, params, spectrum, s_HIJ, tile):
    H = len(s_HIJ)
    # Not the spectrum's slope_H: an extension that counts tokens anew leaves ratios alone.
    amplitude_H = jnp.float32(H / (self.compression * np.arange(1, H + 1)))
    frequency_F = jnp.asarray(spectrum.frequency_F, jnp.float32)

    def bias(r_X):
      wave_X = jnp.cos(r_X.astype(jnp.float32)[..., None] * frequency_F).sum(-1)
      return jnp.multiply.outer(amplitude_H, wave_X)

    return s_HIJ + tile.by_distance(bias)
