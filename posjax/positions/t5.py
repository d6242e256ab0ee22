"""T5's relative bias: a learned value per head and bucket of distances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5(Scheme):
  """logit[h,i,j] += table[bucket(pos[i] - pos[j]), h] (Raffel et al. 2019, arXiv:1910.10683, sec.
  2.1), one table for all layers.

    bucket(r) = r                                              for r < e = buckets / 2
    bucket(r) = e + floor(e ln(r / e) / ln(farthest / e))      above, at most buckets - 1

  as in the authors' code for a decoder: all buckets look back, none is kept for keys ahead. T5
  itself has no 1/sqrt(K) on the logits; here it has, as everywhere else.

  buckets: rows of the table; even, at least 2.
  farthest: distance in tokens from which all share the last bucket. Above buckets / 2.
  deviation: of the normal initialisation, in logits.
  """

  buckets: int = 32
  farthest: int = 128
  deviation: float = 0.02

  def __post_init__(self):
    if self.buckets < 2 or self.buckets % 2:
      raise ValueError(f'T5 with {self.buckets} buckets: half are exact. Use an even number >= 2.')
    if not self.farthest > self.buckets // 2:
      raise ValueError(
        f'T5 with farthest = {self.farthest} leaves no logarithmic bucket after the '
        f'{self.buckets // 2} exact ones. Use farthest > {self.buckets // 2}.'
      )

  def init(self, key, dims):
    return {'table_EH': self.deviation * jax.random.normal(key, (self.buckets, dims.heads))}

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def score(self, params, spectrum, s_HIJ, tile):
    def bias(r_X):
      return jnp.moveaxis(params['table_EH'][self.bucket(r_X * spectrum.rate)], -1, 0)

    return s_HIJ + tile.by_distance(bias)

  def bucket(self, r_X):
    """Bucket, an int32 in [0, buckets), of each distance in tokens; keys ahead count as 0."""
    return jnp.searchsorted(self.borders(), r_X, side='right', method='compare_all')

  def borders(self) -> np.ndarray:
    """border[n] is the distance from which the bucket is n + 1 or more.

    On the host in float64, since a float32 logarithm puts some distances on the wrong side; lowered
    by one part in a million, so that r * rate, in float32, does not miss a border it should meet.
    """
    exact = self.buckets // 2
    growth = (self.farthest / exact) ** (np.arange(1, exact) / exact)
    return np.concatenate([np.arange(1, exact + 1), exact * growth]) * (1 - 1e-6)
