"""Attention with linear biases: a penalty proportional to distance."""

import dataclasses

import jax.numpy as jnp
from jax import lax

from posjax.bias import linear_columns, slopes
from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi(Scheme):
  """logit[h,i,j] -= slope[h] * (pos[i] - pos[j]) (Press et al. 2021, arXiv:2108.12409, sec. 3).

  Slopes, in logits per token, follow the authors' code (posjax/bias.py). The bias comes after the
  division by sqrt(K).

  steepness: the last head's slope is 2^-steepness. Above 0; the paper's is 8.
  scale: multiplies all slopes, above 0; 1/sqrt(K) in Falcon, which divides the bias as well.
  rounded: adds slope[h] pos[j], slope, position and product each rounded to bfloat16, as the
    released code of Falcon does whatever it computes in; it then no longer depends on distance
    alone, and no fused kernel runs it.
  """

  steepness: float = 8.0
  scale: float = 1.0
  rounded: bool = dataclasses.field(default=False, metadata={'from': 257})  # tokens

  def __post_init__(self):
    if not self.scale > 0:
      raise ValueError(f'ALiBi scaled by {self.scale} would reward distance. Use one above 0.')
    if not self.steepness > 0:
      raise ValueError(
        f'ALiBi with steepness {self.steepness} would reward distance. Use one above 0; 8 is usual.'
      )

  @property
  def relative(self):
    return not self.rounded

  @property
  def factorises(self):
    return not self.rounded

  def spectrum(self, dims):
    return Spectrum(slope_H=self.scale * slopes(dims.heads, self.steepness))

  def score(self, params, spectrum, s_HIJ, tile):
    if self.rounded:
      slope_H1 = coarse(spectrum.slope_H / self.scale)[:, None]
      bias_HJ = coarse(slope_H1 * coarse(tile.key.pos_L))
      return s_HIJ + self.scale * bias_HJ[:, None]
    return s_HIJ - spectrum.slope_H[:, None, None] * tile.distance_IJ

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    return linear_columns(spectrum.slope_H, key, scale=scale, dtype=dtype)


def coarse(x):
  """Rounded to bfloat16, in float32. XLA may leave out a cast there and back, but not this."""
  return lax.reduce_precision(jnp.float32(x), exponent_bits=8, mantissa_bits=7)
