"""Attention with linear biases whose slopes are learned."""

import dataclasses

import jax.numpy as jnp

from posjax.bias import linear_columns, slopes
from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedSlopes(Scheme):
  """logit[h,i,j] -= exp(log_slope[h]) * (pos[i] - pos[j]), the slopes of Press et al. 2021
  (arXiv:2108.12409) learned, one set for all layers, after the division by sqrt(K).

  They begin where those of the authors' code stay (posjax/bias.py); the paper tried to learn them,
  too, and found that long texts were read less well (sec. 3). Logarithms are learned, one for each
  head and the same in all layers, as in x-transformers (`LearnedAlibiPositionalBias`, until August
  2023): a slope stays above 0, and a step of Adam is a share of a slope, where a step as long for
  all would be small for the first head and larger than the whole slope of the last. An extension's
  `rate` shrinks the distance.

  steepness: the last head's slope begins at 2^-steepness. Above 0; 8 is usual.
  """

  steepness: float = 8.0

  def __post_init__(self):
    if not self.steepness > 0:
      raise ValueError(
        f'Slopes of steepness {self.steepness} would begin by rewarding distance. '
        'Use one above 0; 8 is usual.'
      )

  def init(self, key, dims):
    return {'log_slope_H': jnp.log(jnp.float32(slopes(dims.heads, self.steepness)))}

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def score(self, params, spectrum, s_HIJ, tile):
    return s_HIJ - slopes_now(params, spectrum)[:, None, None] * tile.distance_IJ

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    return linear_columns(slopes_now(params, spectrum), key, scale=scale, dtype=dtype)


def slopes_now(params, spectrum: Spectrum):
  """slope_H in logits per token."""
  return jnp.exp(params['log_slope_H']) * spectrum.rate
