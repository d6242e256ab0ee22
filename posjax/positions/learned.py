"""A learned vector per position, added to the embedded tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Scheme):
  """x[l] += table[rate * pos[l]] (Gehring et al. 2017, arXiv:1705.03122, sec. 3.1; GPT-2).

  Between rows the table is interpolated linearly, which only matters once an extension makes `rate`
  smaller than 1; the last row stands for all between it and one row further, so that `linear` by a
  factor of s covers s * length tokens. Lengths past that are refused before anything runs
  (`capacity`); a single position past it is not a number, where JAX would clamp or fill silently.

  length: rows of the table, in tokens; None takes the training length.
  deviation: of the normal initialisation, in units of the embedded tokens.
  """

  length: int | None = None
  deviation: float = 0.02

  relative = False

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def init(self, key, dims):
    shape = (self.length or dims.length, dims.width)
    return {'table_LD': self.deviation * jax.random.normal(key, shape)}

  def capacity(self, spectrum, dims):
    # Rounded: a factor of 93 is a rate of 1 / 93, and 1 / (1 / 93) is 92.99999999999999.
    return round((self.length or dims.length) / float(spectrum.rate), 6)

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    table_LD = params['table_LD']
    last = len(table_LD) - 1
    row_L = pos_L.astype(jnp.float32) * spectrum.rate
    low_L = jnp.floor(row_L)
    share_L1 = (row_L - low_L)[:, None]
    at = lambda index_L: table_LD[jnp.clip(index_L.astype(jnp.int32), 0, last)]
    position_LD = at(low_L) * (1 - share_L1) + at(low_L + 1) * share_L1
    beyond_L1 = ((low_L < 0) | (low_L > last))[:, None]
    return x_LD + jnp.where(beyond_L1, jnp.nan, position_LD).astype(x_LD.dtype)
