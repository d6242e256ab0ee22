"""Sandwich: what two sinusoidal positions have in common, as a bias."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from posjax.attend.diagonals import spread
from posjax.bias import exact_products
from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, wave_sums, waves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sandwich(Scheme):
  """The product of the sinusoids of two positions (Chi et al. 2022, arXiv:2212.10356, app. E):

    logit[h,i,j] += sum over f of cos(frequency[f] (pos[i] - pos[j])) / ratio[h]
    frequency[f] = theta^(-2f / width), f < width / 2;    ratio[h] = compression (h + 1) / H

  in logits, after the division by sqrt(K), nothing learned. The bias of a token's own key is
  width / (2 ratio), not 0; what all keys share, softmax ignores.

  All heads share the sum: a number for each distance where positions are contiguous, else a product
  of waves in each tile, for by angle addition it factorises exactly. So there are `columns`, too:
  `width` of them in float32, 6 width in bfloat16 (exact parts).

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

  def table(self, params, spectrum, r_R):
    return waves(r_R, spectrum.frequency_F)[0].sum(-1)

  def score(self, params, spectrum, s_HIJ, tile):
    return s_HIJ + self.amplitude(len(s_HIJ))[:, None, None] * self.common(spectrum, tile)

  def amplitude(self, heads: int):
    """1 / ratio of each head. Not the spectrum's slope_H: an extension leaves ratios alone."""
    return jnp.float32(heads / (self.compression * np.arange(1, heads + 1)))

  def common(self, spectrum, tile):
    """common_IJ of two positions' sinusoids, before the ratio."""
    if tile.contiguous and len(tile.query.index_L) == 1:
      cos_1F = jnp.ones((1, len(spectrum.frequency_F)))
      sin_1F, count = jnp.zeros_like(cos_1F), len(tile.key.index_L)
      return wave_sums(cos_1F, sin_1F, spectrum.frequency_F, tile.distance_M[0], count)
    if tile.table_M is None:
      q_IC, k_JC = (sinusoids(rows.pos_L, spectrum) for rows in (tile.query, tile.key))
      # A sum of sums, for most terms are close to 1; in float32 on every device.
      parts = [jnp.matmul(q_IC[:, n::8], k_JC[:, n::8].T, precision='highest') for n in range(8)]
      return sum(parts)
    I, J = len(tile.query.index_L), len(tile.key.index_L)
    return spread(tile.table_M[None, :-1], I, J)[0]

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    """The sinusoids of both positions, those of queries divided by the ratio of the head."""
    q_LC, k_LC = (sinusoids(rows.pos_L, spectrum) for rows in (query, key))
    q_LHC = self.amplitude(heads)[:, None] / scale * q_LC[:, None]
    return exact_products(q_LHC, k_LC[:, None], dtype)


def sinusoids(pos_L, spectrum: Spectrum):
  """wave_LC, float32: cosines, then sines."""
  return jnp.concatenate(waves(pos_L, spectrum.frequency_F), axis=-1)
