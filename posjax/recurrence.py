"""Rows read segment by segment, each with a memory of the tokens before it.

All segments of a row are computed side by side: what a memory holds, the layer's inputs one segment
before, is in the row already. So a row of N segments becomes N short rows, each of the `memory`
tokens before a segment and the segment. Memory grows with L (1 + memory / segment).

Letters: B rows, L tokens, S tokens of a segment, M of the memory, N segments of a row, P of them
that a memory touches, X = B x N short rows, W = M + S.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from posjax.attend import Rows

NOBODY = -2  # segment number of tokens that are not there; -1 is the padding of tiles, 0 of rows


def short_rows(vectors_BL, past_BL, rows_B: Rows, *, segment: int, memory: int):
  """Vectors and rows [X, W, ...], W = M + S: each segment of the rows, after its memory.

  past_BL: the vectors again, as the segments after theirs see them.
  """
  cut = lambda own, past, fill=0: _cut(own, past, segment, memory, fill)
  segment_L = jnp.zeros_like(rows_B.pos_L) if rows_B.segment_L is None else rows_B.segment_L
  rows_X = Rows(
    index_L=jnp.arange(memory + segment),
    pos_L=cut(rows_B.pos_L, rows_B.pos_L),
    segment_L=cut(segment_L, segment_L, NOBODY),
    contiguous=rows_B.contiguous,
  )
  return jax.tree.map(cut, vectors_BL, past_BL), rows_X


def queries(vectors_XW, rows_X: Rows, *, memory: int):
  """Vectors and rows [X, S, ...] without the memory, numbered after it."""
  cut = lambda x_XW: x_XW[:, memory:]
  rows = jax.tree.map(cut, dataclasses.replace(rows_X, index_L=rows_X.index_L[None]))
  return cut(vectors_XW), dataclasses.replace(rows, index_L=rows.index_L[0])


def whole(x_XS: jax.Array, batch: int, length: int) -> jax.Array:
  """The short rows [X, S, ...] side by side again: [B, L, ...]."""
  return x_XS.reshape(batch, -1, *x_XS.shape[2:])[:, :length]


def _cut(own_BL: jax.Array, past_BL: jax.Array, segment: int, memory: int, fill) -> jax.Array:
  """Windows [X, W, ...] of plain slices: a gather would be summed back one by one."""
  B, L = own_BL.shape[:2]
  count, touched = math.ceil(L / segment), math.ceil(memory / segment)

  def pieces(x_BL, before):
    pad = [(0, 0), (before * segment, count * segment - L)] + [(0, 0)] * (x_BL.ndim - 2)
    padded_BL = jnp.pad(x_BL, pad, constant_values=fill)
    return padded_BL.reshape(B, before + count, segment, *x_BL.shape[2:])

  past_BPS = pieces(past_BL, touched)
  windows = [past_BPS[:, p : p + count] for p in range(touched)] + [pieces(own_BL, 0)]
  wide_BNW = jnp.concatenate(windows, axis=2)[:, :, touched * segment - memory :]
  return wide_BNW.reshape(B * count, *wide_BNW.shape[2:])
