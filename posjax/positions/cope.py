"""Contextual positions: how many of the keys since this one the query counts."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.attend.branches import anywhere
from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoPE(Scheme):
  """logit[h,i,j] += q[h,i] . table[p[h,i,j]] (Golovneva et al. 2024, arXiv:2405.18719, sec. 4).

    g[h,i,j] = sigmoid(logit[h,i,j]), 0 for keys that the mask hides
    p[h,i,j] = min(rate (g[h,i,j] + ... + g[h,i,i]), positions - 1)

  So a query decides by content what to count, and a key's position is the count from it up to the
  query, both included: between 0 and 1 for the query's own key. Between rows the table is
  interpolated linearly. It starts at 0, and is shared by all heads; each layer has its own.

  As in the paper's listing, gates see the logits as scaled, q . k / sqrt(K), and q . table is not
  divided. (The authors' repository divides that, too, unless told not to; the table can make up
  for it.) Beside another scheme, gates see its bias. No position is read: keys are counted in the
  order of their places. `rate` is 1 as trained; an extension that lowers it makes room for larger
  counts, which the paper does not try.

  positions: rows of the table, at least 2; counts of positions - 1 and above share the last one.
    64 reach 126 tokens back where gates are half open, as they are at first. Memory grows with
    positions L H, as that of float32 queries whose heads are as wide.
  """

  positions: int = dataclasses.field(default=64, metadata={'other': 4})

  reads_positions = False

  def __post_init__(self):
    if self.positions < 2:
      raise ValueError(
        f'CoPE with {self.positions} positions has none to tell apart. Use positions >= 2.'
      )

  def init_layer(self, key, dims):
    return {'table_EK': jnp.zeros((self.positions, dims.head_width))}

  def spectrum(self, dims):
    return Spectrum(rate=1.0)

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    """For queries: what each row of the table adds to their logits."""
    table_EK = params['table_EK'].astype(q_LHK.dtype)
    return jnp.einsum('lhk,ek->lhe', q_LHK, table_EK, preferred_element_type=jnp.float32), None

  def start(self, params, spectrum, query):
    return jnp.zeros(query.features_L.shape[:2]).T

  def walk(self, params, spectrum, s_HIJ, tile, count_HI):
    last, visible_IJ = self.positions - 1, tile.visible_IJ

    def count(s_HIJ, count_HI, gain_HIE, rate):
      gate_HIJ = jnp.where(visible_IJ, jax.nn.sigmoid(s_HIJ), 0)
      place_HIJ = count_HI[..., None] + jax.lax.cumsum(gate_HIJ, axis=2, reverse=True)
      gained_HIJ = interpolated(gain_HIE, jnp.minimum(place_HIJ * rate, last))
      return s_HIJ + gained_HIJ, count_HI + gate_HIJ.sum(-1)

    def pass_by(s_HIJ, count_HI, gain_HIE, rate):
      return s_HIJ + gain_HIE[..., -1:], count_HI

    # Beyond the last row, which text reaches soon, counts do not matter, nor do they teach.
    counting_HI = (count_HI * spectrum.rate < last) & visible_IJ.any(-1)
    gain_HIE = jnp.swapaxes(tile.query.features_L, 0, 1)
    return jax.lax.cond(
      anywhere(jax.lax.stop_gradient(counting_HI)),
      count, pass_by, s_HIJ, count_HI, gain_HIE, spectrum.rate,
    )  # fmt: skip


def interpolated(table_HIE, place_HIJ):
  """value_HIJ at each place in [0, E - 1] of its row's table, linear between its numbers."""
  lower_HIJ = place_HIJ.astype(jnp.int32)
  slope_HIE = jnp.diff(table_HIE, append=table_HIE[..., -1:])
  at = lambda x_HIE: jnp.take_along_axis(x_HIE, lower_HIJ, axis=-1, mode='promise_in_bounds')
  return at(table_HIE) + (place_HIJ - lower_HIJ) * at(slope_HIE)
