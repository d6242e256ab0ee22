"""Rows read segment by segment, each with a memory of the tokens before it.

All segments of a row are computed side by side: what a memory holds, the layer's inputs one segment
before, is in the row already. So a row of N segments becomes N short rows, whose keys start with
those of the `memory` tokens before the segment. Memory grows with L (1 + memory / segment).

Letters: B rows, L tokens, S tokens of a segment, M of the memory, N segments of a row, X = B x N
short rows.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from posjax.attend import Rows

NOBODY = -2  # segment number of tokens that are not there; -1 is the padding of tiles, 0 of rows


def queries(vectors_BL, rows_B: Rows, *, segment: int, memory: int):
  """Vectors and rows [X, S, ...] of each segment's queries, which are numbered after its memory."""
  one = lambda tree_BL, fill=0: jax.tree.map(lambda x: _cut(x, segment, 0, fill), tree_BL)
  return one(vectors_BL), _rows(memory + jnp.arange(segment), one, rows_B)


def keys(vectors_BL, rows_B: Rows, past_BL, past_B: Rows, *, segment: int, memory: int):
  """Vectors and rows [X, M + S, ...] of the keys that each segment sees: its memory, and its own.

  past_BL, past_B: the same tokens, as the segments after theirs see them.
  """

  def both(tree_BL, past_BL, fill=0):
    def one(x_BL, past_BL):
      old_XM = _cut(past_BL, segment, memory, fill)[:, :memory]
      return jnp.concatenate([old_XM, _cut(x_BL, segment, 0, fill)], axis=1)

    return jax.tree.map(one, tree_BL, past_BL)

  return both(vectors_BL, past_BL), _rows(jnp.arange(memory + segment), both, rows_B, past_B)


def whole(x_XS: jax.Array, batch: int, length: int) -> jax.Array:
  """The short rows [X, S, ...] side by side again: [B, L, ...]."""
  return x_XS.reshape(batch, -1, *x_XS.shape[2:])[:, :length]


def _rows(index_L, cut, *rows_B: Rows) -> Rows:
  segments = [
    jnp.zeros_like(rows.pos_L) if rows.segment_L is None else rows.segment_L for rows in rows_B
  ]
  return dataclasses.replace(
    rows_B[0],
    index_L=index_L,
    pos_L=cut(*(rows.pos_L for rows in rows_B)),
    segment_L=cut(*segments, fill=NOBODY),
    features_L=cut(*(rows.features_L for rows in rows_B)),
  )


def _cut(x_BL: jax.Array, segment: int, before: int, fill) -> jax.Array:
  """Windows [X, before + S, ...]: each segment of a row, and the tokens before it."""
  B, L = x_BL.shape[:2]
  count = math.ceil(L / segment)
  pad = [(0, 0), (before, count * segment - L)] + [(0, 0)] * (x_BL.ndim - 2)
  padded_BL = jnp.pad(x_BL, pad, constant_values=fill)
  place_NW = segment * jnp.arange(count)[:, None] + jnp.arange(before + segment)
  return padded_BL[:, place_NW].reshape(B * count, before + segment, *x_BL.shape[2:])
