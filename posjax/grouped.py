"""Products of rows with their experts' matrices, of rows sorted by expert.

Letters: A rows, E experts, D input width, O output width, T rows of a tile, X rows with padding.
"""

import jax
import jax.numpy as jnp

TILE = 64  # rows; 128 and 256 are no faster on two cores, and more of them are not an expert's own


@jax.custom_vjp
def permute(x_AD, order_A, back_A):
  """x[order], with a gather as its derivative, too: a scatter would add up in any order on a GPU,
  and a resumed run must end with the same bits."""
  return x_AD[order_A]


permute.defvjp(
  lambda x_AD, order_A, back_A: (x_AD[order_A], back_A),
  lambda back_A, g_AD: (g_AD[back_A], None, None),
)


def ragged(x_AD, w_EDO, size_E):
  """y[a] = x[a] w[expert of a], of rows sorted by expert: JAX's own."""
  return jax.lax.ragged_dot(x_AD, w_EDO.astype(x_AD.dtype), size_E)


@jax.custom_vjp
def tiled(x_AD, w_EDO, size_E):
  """The same, T rows of one expert at a time. As many tiles are computed as there are rows for.

  A tile that reaches beyond its expert writes rows which the next ones overwrite, in order.
  """
  return _products(x_AD, w_EDO, size_E, lambda x_TD, w_DO: x_TD @ w_DO, w_EDO.shape[2])


def _forward(x_AD, w_EDO, size_E):
  return tiled(x_AD, w_EDO, size_E), (x_AD, w_EDO, size_E)


def _backward(saved, g_AO):
  x_AD, w_EDO, size_E = saved
  dx_AD = _products(g_AO, w_EDO, size_E, lambda g_TO, w_DO: g_TO @ w_DO.T, w_EDO.shape[1])
  tiles = Tiles(len(x_AD), size_E)
  x_XD, g_XO = tiles.pad(x_AD), tiles.pad(g_AO)

  def add(n, dw_EDO):
    e, begin, ours_T = tiles.at(n)
    x_TD = jnp.where(ours_T[:, None], tiles.cut(x_XD, begin), 0)
    dw_DO = jnp.matmul(x_TD.T, tiles.cut(g_XO, begin), preferred_element_type=jnp.float32)
    return dw_EDO.at[e].add(dw_DO)

  zero_EDO = jnp.zeros_like(w_EDO, dtype=jnp.float32)
  dw_EDO = jax.lax.fori_loop(0, tiles.count, add, zero_EDO)
  return dx_AD, dw_EDO.astype(w_EDO.dtype), None


tiled.defvjp(_forward, _backward)


def _products(x_AD, w_EDO, size_E, multiply, width: int):
  tiles = Tiles(len(x_AD), size_E)
  x_XD = tiles.pad(x_AD)

  def write(n, y_XO):
    e, begin, _ = tiles.at(n)
    y_TO = multiply(tiles.cut(x_XD, begin), w_EDO[e].astype(x_XD.dtype))
    return jax.lax.dynamic_update_slice_in_dim(y_XO, y_TO, begin, axis=0)

  empty_XO = jnp.zeros_like(x_XD, shape=(len(x_XD), width))
  return jax.lax.fori_loop(0, tiles.count, write, empty_XO)[: len(x_AD)]


class Tiles:
  """Which rows of which expert each tile holds: experts' rows lie one after the other."""

  def __init__(self, rows: int, size_E):
    # Few tokens to decode leave an expert few rows: as many as its fair share, or 8.
    self.size = min(TILE, rows, max(8, rows // len(size_E)))
    self.tiles_E = -(-size_E // self.size)
    self.last_E = jnp.cumsum(self.tiles_E)
    self.end_E = jnp.cumsum(size_E)
    self.size_E = size_E
    self.count = self.last_E[-1]

  def at(self, n):
    """Tile n: its expert, its first row, and which of its rows are that expert's."""
    e = (n >= self.last_E).sum()
    nth = n - (self.last_E[e] - self.tiles_E[e])
    begin = self.end_E[e] - self.size_E[e] + nth * self.size
    return e, begin, begin + jnp.arange(self.size) < self.end_E[e]

  def pad(self, x_AD):
    """With room for the last tile."""
    return jnp.pad(x_AD, [(0, self.size), (0, 0)])

  def cut(self, x_XD, begin):
    return jax.lax.dynamic_slice_in_dim(x_XD, begin, self.size)
