"""Attention in numbers: how far each query looks, how widely, and how much at the first tokens.

Tile by tile, as `tiled`: the weights are never stored. Memory grows with H x L.
"""

import jax
import jax.numpy as jnp

from posjax.attend.rows import HIDDEN, Logits, Rows
from posjax.attend.tiled import arranged, over_tiles


def summarise(
  q_LHK: jax.Array,
  k_LGK: jax.Array,
  query: Rows,
  key: Rows,
  sink_L: jax.Array,
  logits: Logits,
  temperature=1.0,
  operands=(),
  sizes: tuple[int, int] | None = None,
  null_H: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Of the weights p over the keys that each query of one sequence sees, x_LH:

    distance: sum p[j] (i - j), in tokens of the text, whatever positions the scheme is given
    entropy: -sum p[j] ln p[j], in nats
    spread: entropy / ln of how many keys are seen: 1 if all weigh the same; 0 if there is but one
    sink: sum p[j] over the keys of sink_L

  sizes: as of `tiled`; so are the rows. null_H: its weight, which no key has, counts as a sink's;
  the other numbers are those of the keys among themselves.
  """
  (I, J), q_HLK, k_GLK, *rows = arranged(q_LHK, k_LGK, query, key, logits, operands, sizes)
  H, Lk = len(q_HLK), k_GLK.shape[1]
  sink_L = jnp.pad(sink_L, (0, Lk - len(sink_L)))

  def add(sums, s_HIJ, tile, j):
    """Sums of e, e ln e, e (i - j) and e at sinks, where e = exp(s - top)."""
    top_HI, (sum_HI, log_HI, far_HI, first_HI), keys_I = sums
    new_HI = jnp.maximum(top_HI, s_HIJ.max(-1))
    below_HIJ = s_HIJ - new_HI[..., None]
    e_HIJ = jnp.exp(below_HIJ)
    lower_HI = top_HI - new_HI
    shrink_HI = jnp.exp(lower_HI)
    back_IJ = tile.query.index_L[:, None] - tile.key.index_L
    sink_J = jax.lax.dynamic_slice_in_dim(sink_L, j, J)
    log_HI = (log_HI + lower_HI * sum_HI) * shrink_HI + (e_HIJ * below_HIJ).sum(-1)
    sum_HI = sum_HI * shrink_HI + e_HIJ.sum(-1)
    far_HI = far_HI * shrink_HI + (e_HIJ * back_IJ).sum(-1)
    first_HI = first_HI * shrink_HI + (e_HIJ * sink_J).sum(-1)
    return new_HI, (sum_HI, log_HI, far_HI, first_HI), keys_I + tile.visible_IJ.sum(-1)

  def end(sums):
    top_HI, (sum_HI, log_HI, far_HI, first_HI), keys_I = sums
    entropy_HI = jnp.log(sum_HI) - log_HI / sum_HI
    sink_HI = first_HI / sum_HI
    if null_H is not None:
      keys_HI = jax.nn.sigmoid(top_HI + jnp.log(sum_HI) - null_H[:, None])  # the weight they share
      sink_HI = 1 - keys_HI * (1 - sink_HI)
    return {
      'distance': far_HI / sum_HI,
      'entropy': entropy_HI,
      'spread': jnp.where(keys_I > 1, entropy_HI / jnp.log(jnp.maximum(keys_I, 2)), 0),
      'sink': sink_HI,
    }

  start = jnp.full((H, I), HIDDEN), (jnp.zeros((H, I)),) * 4, jnp.zeros(I, int)
  by_tile = over_tiles(logits, (I, J), q_HLK, k_GLK, *rows, temperature, operands, start, add, end)
  whole = lambda x_THI: jnp.swapaxes(x_THI, 1, 2).reshape(-1, H)[: len(q_LHK)]
  return jax.tree.map(whole, by_tile)
