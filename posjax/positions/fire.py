"""FIRE: a learned function of distance, relative to how far the query can look back."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class FIRE(Scheme):
  """A small network of normalised log-distance (Li et al. 2023, arXiv:2310.04418, sec. 3).

    logit[h,i,j] += output[h] . relu(slope z[i,j] + offset),    r = pos[i] - pos[j]
    z[i,j] = ln(|c| r + 1) / (ln(|c| max(pos[i], |multiplier| threshold) + 1) + 1e-6)

  So z is 0 at the query and at most 1 at the first token of its document, however long that gets.
  The normaliser takes the query's position: a shift of all positions counts, and no table by
  distance can hold the bias. After the division by sqrt(K). Absolute values keep c and threshold
  positive, as in the public code (McLeish et al. 2024, arXiv:2405.17399: `FIRE`), from which come
  also 1e-6, c = 0.1 and multiplier = 1 to begin with, PyTorch's initialisation of linear layers,
  and a set of parameters per layer. Left out is the output layer's own offset: one number for all
  keys of a query, which softmax ignores. An extension's `rate` shrinks r and pos[i], so that only
  threshold and c still count tokens as trained.

  width: hidden units of the network.
  threshold: tokens below which the normaliser does not shrink further, before its multiplier is
    learned; above 0. A quarter of the training length: 64 of 256 here, the paper's 512 of 2048.
  """

  width: int = 32
  threshold: float = 64.0

  relative = False

  def __post_init__(self):
    if self.width < 1:
      raise ValueError(f'FIRE with {self.width} hidden units has no bias. Use at least 1.')
    if not self.threshold > 0:
      raise ValueError(
        f'FIRE with threshold {self.threshold} divides by the logarithm of 1 at the first token. '
        'Use one above 0; a quarter of the training length is usual.'
      )

  def init_layer(self, key, dims):
    M, H = self.width, dims.heads
    uniform = lambda key, shape, bound: jax.random.uniform(key, shape, minval=-bound, maxval=bound)
    slope_key, offset_key, output_key = jax.random.split(key, 3)
    return {
      'c': jnp.float32(0.1),
      'multiplier': jnp.float32(1),
      'slope_M': uniform(slope_key, (M,), 1.0),
      'offset_M': uniform(offset_key, (M,), 1.0),
      'output_HM': uniform(output_key, (H, M), M**-0.5),
    }

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def score(self, params, spectrum, s_HIJ, tile):
    c, threshold = jnp.abs(params['c']), jnp.abs(params['multiplier']) * self.threshold
    r_IJ = jnp.abs(tile.distance_IJ) * spectrum.rate
    longest_I = jnp.maximum(tile.query.pos_L * spectrum.rate, threshold)
    z_IJ = jnp.log1p(c * r_IJ) / (jnp.log1p(c * longest_I) + 1e-6)[:, None]
    slope_M1, offset_M1 = params['slope_M'][:, None], params['offset_M'][:, None]

    def row(z_J):
      hidden_MJ = jax.nn.relu(slope_M1 * z_J + offset_M1)
      # In float32 on every device: a TPU would round to bfloat16.
      return jnp.matmul(params['output_HM'], hidden_MJ, precision='highest')

    # Row by row, and again in the derivative: hidden units of a whole tile would be I x J x M.
    bias_IHJ = jax.lax.map(jax.checkpoint(row, prevent_cse=False), z_IJ)
    return s_HIJ + jnp.swapaxes(bias_IHJ, 0, 1)
