"""Attention with linear biases: a penalty proportional to distance."""

import dataclasses

from posjax.bias import linear_columns, slopes
from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi(Scheme):
  """logit[h,i,j] -= slope[h] * (pos[i] - pos[j]) (Press et al. 2021, arXiv:2108.12409, sec. 3).

  Slopes, in logits per token, follow the authors' code (posjax/bias.py). The bias comes after the
  division by sqrt(K); Falcon, which divides the bias as well, does not.

  steepness: the last head's slope is 2^-steepness. Above 0; the paper's is 8.
  """

  steepness: float = 8.0

  def __post_init__(self):
    if not self.steepness > 0:
      raise ValueError(
        f'ALiBi with steepness {self.steepness} would reward distance. Use one above 0; 8 is usual.'
      )

  def spectrum(self, dims):
    return Spectrum(slope_H=slopes(dims.heads, self.steepness))

  def score(self, params, spectrum, s_HIJ, tile):
    return s_HIJ - spectrum.slope_H[:, None, None] * tile.distance_IJ

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    return linear_columns(spectrum.slope_H, key, scale=scale, dtype=dtype)
