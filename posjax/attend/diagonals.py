"""The pattern of diagonals in a tile of logits: what depends on distance alone, without a gather.

Axes: I/J query/key rows of a tile, H heads, N = I + J - 1 diagonals, M = I + J, X flat.
"""

import math

import jax
import jax.numpy as jnp


def spread(bias_HN: jax.Array, I: int, J: int) -> jax.Array:
  """bias_HIJ[h, i, j] = bias_HN[h, I - 1 - i + j]: one value per diagonal, and no gather.

  R rows are written by reading rows of M values as rows of M - 1: each slips by one, the pattern of
  diagonals. The other rows are windows of these, R places further each time: most of the tile, and
  of its derivative, is plain copies and sums.
  """
  H, N = bias_HN.shape
  R = math.gcd(I, 16)
  M = 1 << N.bit_length()  # above N; index arithmetic with shifts in place of divisions
  rows_HRM = jnp.broadcast_to(jnp.pad(bias_HN, [(0, 0), (0, M - N)])[:, None], (H, R, M))
  slipped_HX = rows_HRM.reshape(H, R * M)[:, R - 1 : R - 1 + R * (M - 1)]
  slipped_HRM = slipped_HX.reshape(H, R, M - 1)
  windows = [slipped_HRM[:, :, I - R - i : I - R - i + J] for i in range(0, I, R)]
  return jnp.concatenate(windows, axis=1)


def along_diagonals(q_HIK: jax.Array, table_HKM: jax.Array) -> jax.Array:
  """s_HIJ[h, i, j] = q[h, i] . table[h, :, I - 1 - i + j], float32: queries meet distances, as of
  `Tile.distance_M` with M = I + J, and nothing is gathered (Dai et al. 2019, arXiv:1901.02860,
  app. B).

  R queries meet the R + J distances they have: rows of so many products, read as rows of one less,
  slip by one each. Few at a time, since of R products for each R + J one lies outside the tile.
  """
  (H, I, _), J = q_HIK.shape, table_HKM.shape[-1] - q_HIK.shape[1]
  blocks = []
  for i in range(0, I, 32):
    R = min(32, I - i)
    s_HRX = jnp.matmul(
      q_HIK[:, i : i + R],
      table_HKM[:, :, I - i - R : I - i + J],
      preferred_element_type=jnp.float32,
    )
    slipped_HX = s_HRX.reshape(H, R * (R + J))[:, R - 1 : R - 1 + R * (R + J - 1)]
    blocks.append(slipped_HX.reshape(H, R, R + J - 1)[:, :, :J])
  return jnp.concatenate(blocks, axis=1)
