"""Attention with linear biases: a penalty proportional to distance."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from posjax.extension import Spectrum
from posjax.positions.base import Scheme, exact_parts


@dataclasses.dataclass(frozen=True, kw_only=True)
class ALiBi(Scheme):
  """logit[h,i,j] -= slope[h] * (pos[i] - pos[j]) (Press et al. 2021, arXiv:2108.12409, sec. 3).

  Slopes, in logits per token, follow the authors' code: for H a power of two, 2^(-steepness t / H)
  with t = 1..H; otherwise those of the power of two below, then every other slope of the one above.
  (The paper's sentence alone, "a geometric sequence from 2^(-8/n)", gives other values for such H.)
  The bias comes after the division by sqrt(K); Falcon, which divides the bias as well, does not.

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
    """slope * pos[j], the rest of the bias being constant along a row.

    Positions go in as digits to the base 256, slopes in parts: all exact in `dtype`.
    """
    L, H = len(key.pos_L), len(spectrum.slope_H)
    # Within a document, contiguous positions and places differ by a constant; places are bounded.
    pos_L = key.index_L if key.contiguous else key.pos_L
    digits = 2 if key.contiguous and L <= 2**16 else 4
    base_N = 256 ** np.arange(digits)[::-1]
    k_LN = (pos_L[:, None] // base_N % 256).astype(jnp.float32)
    slope_HP = exact_parts(spectrum.slope_H / scale, dtype)
    q_HC = (slope_HP[..., None] * base_N.astype(np.float32)).reshape(H, -1)
    k_LC = jnp.tile(k_LN, (1, slope_HP.shape[1]))
    return jnp.broadcast_to(q_HC, (L, *q_HC.shape)), k_LC[:, None]


def slopes(heads: int, steepness: float = 8.0) -> np.ndarray:
  """slope_H of the authors' code, float64, logits per token."""
  below = 2 ** int(math.log2(heads))
  regular = lambda count: 2.0 ** (-steepness * np.arange(1, count + 1) / count)
  return np.concatenate([regular(below), regular(2 * below)[0::2][: heads - below]])
