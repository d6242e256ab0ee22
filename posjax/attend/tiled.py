"""Attention in tiles: any score, any platform, memory H x L.

A running softmax over tiles of keys (Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats
2021, arXiv:2112.05682) that keeps only the log-sum-exp of each row, and a derivative that computes
the tiles again (Dao et al. 2022, arXiv:2205.14135). No scheme writes a derivative: the backward
pass calls jax.vjp on the very `Logits` that the forward pass calls. Key tiles come newest first, as
states carried along the keys do; the derivative goes back over them oldest first, from states that
it has walked again and kept for one tile of queries at a time. What keys are prepared with for
their tiles is made in both passes, and not kept between them.

Axes: I/J query/key rows of a tile, T tiles of queries, M = I + J distances of a tile, R of all
tiles, X/Y/Z the axes of a matmul.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from posjax.attend.rows import HIDDEN, Logits, Rows, Tile


def tiled(
  q_LHK: jax.Array,
  k_LGK: jax.Array,
  v_LGV: jax.Array,
  query: Rows,
  key: Rows,
  logits: Logits,
  temperature=1.0,
  operands=(),
  sizes: tuple[int, int] | None = None,
  null_H: jax.Array | None = None,
) -> jax.Array:
  """out_LHV of one sequence, equal to `dense` up to the order of sums.

  sizes: rows (I, J) of a tile; they need not divide the lengths. Keys are numbered from 0, so
  `key.index_L` must be 0, 1, 2, ...; queries may start anywhere.
  """
  sizes, q_HLK, k_GLK, *rows = arranged(q_LHK, k_LGK, query, key, logits, operands, sizes)
  v_GLV = _by_head(v_LGV, k_GLK.shape[1])
  out_HLV = _tiled(logits, sizes, q_HLK, k_GLK, v_GLV, *rows, temperature, operands, null_H)
  return jnp.swapaxes(out_HLV, 0, 1)[: len(q_LHK)]


def arranged(q_LHK, k_LGK, query: Rows, key: Rows, logits: Logits, operands, sizes=None):
  """(sizes, q_HLK, k_GLK, query, key, table_R): what tiles are cut from, a whole number of them."""
  Lq, Lk = len(q_LHK), len(k_LGK)
  if logits.mask.counts_from_begin:
    query = query.with_begin_of(key)
  I, J = sizes or tile_sizes(Lq, Lk)
  whole_q, whole_k = -(-Lq // I) * I, -(-Lk // J) * J
  if whole_q > Lq or whole_k > Lk:  # padding is told from a single document by its segment
    query, key = _with_segments(query), _with_segments(key)
  query, key = query.padded(whole_q), key.padded(whole_k)
  q_HLK, k_GLK = _by_head(q_LHK, whole_q), _by_head(k_LGK, whole_k)
  return (I, J), q_HLK, k_GLK, query, key, logits.tabled(operands, query, key)


def tile_sizes(Lq: int, Lk: int) -> tuple[int, int]:
  """Rows (I, J) of a tile: the fastest of those tried on two CPU cores, at 512, 2048 and 8192."""
  I = 64 if Lk <= 1024 else 128 if Lk <= 4096 else 256
  return min(I, Lq), min(2 * I, Lk)


def _by_head(x_LHK: jax.Array, length: int) -> jax.Array:
  return jnp.swapaxes(jnp.pad(x_LHK, [(0, length - len(x_LHK)), (0, 0), (0, 0)]), 0, 1)


def _with_segments(rows: Rows) -> Rows:
  if rows.segment_L is not None:
    return rows
  return dataclasses.replace(rows, segment_L=jnp.zeros_like(rows.pos_L))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiled(logits, sizes, q_HLK, k_GLK, v_GLV, *inputs):
  return _forward(logits, sizes, q_HLK, k_GLK, v_GLV, *inputs)[0]


def _forward(
  logits, sizes, q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands, null_H
):
  """The output, and what the derivative needs: inputs, output, log-sum-exp of each row."""
  H, Lq, _ = q_HLK.shape
  V = v_GLV.shape[-1]

  def add(sums, s_HIJ, tile, j):
    out_HIV, top_HI, sum_HI = sums
    new_HI = jnp.maximum(top_HI, s_HIJ.max(-1))
    p_HIJ = jnp.exp(s_HIJ - new_HI[..., None])
    shrink_HI = jnp.exp(top_HI - new_HI)
    part_HIV = _grouped(p_HIJ.astype(v_GLV.dtype), _cut(v_GLV, j, sizes[1], 1))
    if logits.read is not None:
      part_HIV += logits.read(*operands, p_HIJ, tile)
    out_HIV = out_HIV * shrink_HI[..., None] + part_HIV
    return out_HIV, new_HI, sum_HI * shrink_HI + p_HIJ.sum(-1)

  def end(sums):
    out_HIV, top_HI, sum_HI = sums
    if null_H is not None:  # one key more, whose value is 0
      new_HI = jnp.maximum(top_HI, null_H[:, None])
      shrink_HI = jnp.exp(top_HI - new_HI)
      out_HIV, top_HI = out_HIV * shrink_HI[..., None], new_HI
      sum_HI = sum_HI * shrink_HI + jnp.exp(null_H[:, None] - new_HI)
    return (out_HIV / sum_HI[..., None]).astype(v_GLV.dtype), top_HI + jnp.log(sum_HI)

  I = sizes[0]
  start = jnp.zeros((H, I, V)), jnp.full((H, I), HIDDEN), jnp.zeros((H, I))
  inputs = q_HLK, k_GLK, query, key, table_R, temperature, operands
  out_THIV, lse_THI = over_tiles(logits, sizes, *inputs, start, add, end)
  out_HLV = jnp.moveaxis(out_THIV, 0, 1).reshape(H, Lq, V)
  saved = q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands, null_H, out_HLV, lse_THI
  return out_HLV, saved


def over_tiles(
  logits: Logits, sizes, q_HLK, k_GLK, query: Rows, key: Rows, table_R, temperature, operands,
  start, add, end,
):  # fmt: skip
  """end(x) of each tile of queries, side by side [T, ...]: x is `start`, and then
  add(x, s_HIJ, tile, j) with the logits of each tile of keys, from key j on, newest first."""
  (I, J), Lq, Lk = sizes, q_HLK.shape[1], k_GLK.shape[1]
  k_GKL = jnp.swapaxes(k_GLK, 1, 2)
  keys = logits.prepared(operands, key, J)

  def one_query_tile(i):
    q_HIK = _cut(q_HLK, i * I, I, 1)
    query_I = query.cut(i * I, I)
    count, place = logits.mask.key_tiles(query_I, J, Lk // J)

    def one_key_tile(n, carry):
      x, state = carry
      j = place(n) * J
      table_M = _cut_all(table_R, _place_in_table(Lq, i, j, I), I + J)
      tile = Tile(query_I, keys.cut(j, J), logits.mask, table_M)
      raw_HIJ = _grouped(q_HIK, _cut(k_GKL, j, J, 2))
      s_HIJ, state = logits(temperature, operands, raw_HIJ, tile, state)
      return add(x, s_HIJ, tile, j), state

    first = start, logits.begin(operands, query_I)
    return end(lax.fori_loop(0, count, one_key_tile, first)[0])

  return lax.map(one_query_tile, jnp.arange(Lq // I))


@dataclasses.dataclass(frozen=True)
class _Queries:
  """A tile of queries in the backward pass, and what the forward pass has left of its rows."""

  logits: Logits
  rows: Rows
  place: jax.Array  # in a table by distance, of the largest one to the key 0
  q_HIK: jax.Array
  g_HIV: jax.Array
  lse_HI1: jax.Array
  delta_HI1: jax.Array


@dataclasses.dataclass(frozen=True)
class _Keys:
  """All keys and values, with rows last where a product wants them last; in tiles of J."""

  J: int
  rows: Rows
  k_GLK: jax.Array
  k_GKL: jax.Array
  v_GVL: jax.Array
  table_R: Any


def _backward(logits, sizes, saved, g_HLV):
  """Cotangents of all but the static arguments, summed tile by tile as they are recomputed."""
  q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands, null_H, out_HLV, lse_THI = saved
  I, J = sizes
  shared, Lq = (temperature, operands), q_HLK.shape[1]
  delta_HL = (g_HLV.astype(jnp.float32) * out_HLV).sum(-1)

  def prepared(operands, features_L):
    return logits.prepared(operands, _with(key, features_L), J).features_L

  features_L, pull_prepared = jax.vjp(prepared, operands, key.features_L)
  k_GKL, v_GVL = jnp.swapaxes(k_GLK, 1, 2), jnp.swapaxes(v_GLV, 1, 2)
  keys = _Keys(J, _with(key, features_L), k_GLK, k_GKL, v_GVL, table_R)

  def one_query_tile(sums, i):
    cut = lambda x_HLX: _cut(x_HLX, i * I, I, 1)
    rows_HI1 = lse_THI[i][..., None], cut(delta_HL)[..., None]
    place = _place_in_table(Lq, i, 0, I)
    queries = _Queries(logits, query.cut(i * I, I), place, cut(q_HLK), cut(g_HLV), *rows_HI1)
    return _query_tile(sums, queries, keys, shared)

  zeros = _zeros((k_GKL, v_GVL, features_L, table_R, shared))
  sums, (dq_THIK, dquery_TI) = lax.scan(one_query_tile, zeros, jnp.arange(Lq // I))
  dk_GKL, dv_GVL, dfeatures_L, dtable_R, dshared = sums
  more, dkey_L = pull_prepared(_cast(dfeatures_L, features_L))
  dtemperature, doperands = _cast(_sum(dshared, (_zeros(temperature), more)), shared)
  dquery_L = jax.tree.map(lambda x: x.reshape(Lq, *x.shape[2:]), dquery_TI)
  dnull_H = None
  if null_H is not None:  # p (dp - delta) as of any logit, with dp = 0
    lse_HL = jnp.moveaxis(lse_THI, 0, 1).reshape(-1, Lq)
    dnull_H = -(jnp.exp(null_H[:, None] - lse_HL) * delta_HL).sum(-1).astype(null_H.dtype)
  return (
    jnp.moveaxis(dq_THIK, 0, 1).reshape(q_HLK.shape).astype(q_HLK.dtype),
    jnp.swapaxes(dk_GKL, 1, 2).astype(k_GLK.dtype),
    jnp.swapaxes(dv_GVL, 1, 2).astype(v_GLV.dtype),
    _cotangent(query, _cast(dquery_L, query.features_L)),
    _cotangent(key, dkey_L),
    _cast(dtable_R, table_R),
    dtemperature,
    doperands,
    dnull_H,
  )


def _query_tile(sums, queries: _Queries, keys: _Keys, shared):
  """(sums, (dq_HIK, dfeatures_I)) after one more tile of queries; of `sums`, see `_backward`."""
  (temperature, operands), rows = shared, queries.rows
  G, Lk, _ = keys.k_GLK.shape
  count, place = queries.logits.mask.key_tiles(rows, keys.J, Lk // keys.J)
  q_HKI, g_HVI = jnp.swapaxes(queries.q_HIK, 1, 2), jnp.swapaxes(queries.g_HIV, 1, 2)

  def begin(operands, features_I):
    return queries.logits.begin(operands, _with(rows, features_I))

  first, pull_first = jax.vjp(begin, operands, rows.features_L)
  states_N = _states(queries, keys, shared, first, count, place)

  def one_key_tile(m, carry):
    dq_HIK, dfeatures_I, dstate, (dk_GKL, dv_GVL, dfeatures_L, dtable_R, dshared) = carry
    n = count - 1 - m
    j = place(n) * keys.J
    state = jax.tree.map(lambda x_N: x_N[n], states_N)
    p_HIJ, (*more, draw_HIJ, more_I, more_J, dtable_M, dstate) = _pull(
      queries, keys, j, shared, state, dstate
    )
    draw_HIJ = draw_HIJ.astype(q_HKI.dtype)
    sums = (
      _add(dk_GKL, _group_sums(q_HKI, draw_HIJ, G), j, 2),
      _add(dv_GVL, _group_sums(g_HVI, p_HIJ.astype(g_HVI.dtype), G), j, 2),
      _add_all(dfeatures_L, more_J, j),
      _add_all(dtable_R, dtable_M, queries.place + j),
      _sum(dshared, tuple(more)),
    )
    dq_HIK += _grouped(draw_HIJ, _cut(keys.k_GLK, j, keys.J, 1))
    return dq_HIK, _sum(dfeatures_I, more_I), dstate, sums

  start = jnp.zeros(queries.q_HIK.shape), _zeros(rows.features_L), _zeros(first), sums
  dq_HIK, dfeatures_I, dfirst, sums = lax.fori_loop(0, count, one_key_tile, start)
  more, more_I = pull_first(dfirst)
  *sums, dshared = sums
  dshared = _sum(dshared, (_zeros(temperature), more))
  return (*sums, dshared), (dq_HIK, _sum(dfeatures_I, more_I))


def _states(queries: _Queries, keys: _Keys, shared, first, count, place):
  """states_N: walked again, the one that each tile of keys begins with."""
  N = keys.k_GLK.shape[1] // keys.J
  states_N = jax.tree.map(lambda x: jnp.zeros((N, *x.shape), x.dtype), first)
  if not jax.tree.leaves(first):
    return states_N

  def one_step(n, walked):
    state, states_N = walked
    key_J, inputs = _inputs(queries, keys, place(n) * keys.J)
    *_, new = _weights(queries, key_J, *shared, *inputs, state)
    return new, jax.tree.map(lambda x_N, x: x_N.at[n].set(x), states_N, state)

  return lax.fori_loop(0, count, one_step, (first, states_N))[1]


def _pull(queries: _Queries, keys: _Keys, j, shared, state, dstate):
  """p_HIJ of the tile of keys from j on, and cotangents of `shared`, its inputs and its state."""
  key_J, inputs = _inputs(queries, keys, j)
  (p_HIJ, read, _), pull = jax.vjp(
    functools.partial(_weights, queries, key_J), *shared, *inputs, state
  )
  dp_HIJ = _grouped(queries.g_HIV, _cut(keys.v_GVL, j, keys.J, 2)) - queries.delta_HI1
  dread = jax.tree.map(lambda _: queries.g_HIV.astype(jnp.float32), read)
  return p_HIJ, pull((dp_HIJ, dread, dstate))


def _inputs(queries: _Queries, keys: _Keys, j):
  """Rows of the tile of keys from j on, and (raw_HIJ, features_I, features_J, table_M)."""
  key_J = keys.rows.cut(j, keys.J)
  raw_HIJ = _grouped(queries.q_HIK, _cut(keys.k_GKL, j, keys.J, 2))
  table_M = _cut_all(keys.table_R, queries.place + j, queries.q_HIK.shape[1] + keys.J)
  return key_J, (raw_HIJ, queries.rows.features_L, key_J.features_L, table_M)


def _weights(
  queries: _Queries, key_J, temperature, operands, raw_HIJ, features_I, features_J, table_M, state
):
  """(p_HIJ, what is read beside values, state): of these the derivative of a tile is taken."""
  logits = queries.logits
  tile = Tile(_with(queries.rows, features_I), _with(key_J, features_J), logits.mask, table_M)
  s_HIJ, state = logits(temperature, operands, raw_HIJ, tile, state)
  p_HIJ = jnp.exp(s_HIJ - queries.lse_HI1)
  return p_HIJ, () if logits.read is None else logits.read(*operands, p_HIJ, tile), state


def _place_in_table(Lq: int, i, j, I: int):
  """Of the largest distance between query tile i and the keys from j on, in a table of them all."""
  return Lq - (i + 1) * I + j


_tiled.defvjp(_forward, _backward)


def _cut(x, start, size: int, axis: int):
  return lax.dynamic_slice_in_dim(x, start, size, axis)


def _cut_all(tree, start, size: int):
  return jax.tree.map(lambda x: _cut(x, start, size, 0), tree)


def _add_all(total, part, start):
  return jax.tree.map(lambda x, more: _add(x, more, start, 0), total, part)


def _add(total, part, start, axis: int):
  """Adds `part` to the rows of `total` from `start` on."""
  old = _cut(total, start, part.shape[axis], axis)
  return lax.dynamic_update_slice_in_dim(total, old + part, start, axis)


def _sum(a, b):
  return jax.tree.map(jnp.add, a, b)


def _zeros(tree):
  """To sum in: float32, whatever is summed."""
  return jax.tree.map(lambda x: jnp.zeros(jnp.shape(x)), tree)


def _cast(tree, like):
  return jax.tree.map(lambda x, y: x.astype(jnp.result_type(y)), tree, like)


def _with(rows: Rows, features_L) -> Rows:
  return dataclasses.replace(rows, features_L=features_L)


def _grouped(a_HIX, b_GXY):
  """c_HIY = a[h] @ b[h // (H / G)] with float32 sums, as one batched matmul over the G groups.

  Always "last axis with first": XLA on CPU runs that at twice the speed of a product that needs a
  transpose, so callers transpose their small operand.
  """
  H, I, X = a_HIX.shape
  G, _, Y = b_GXY.shape
  c_GZY = jnp.matmul(a_HIX.reshape(G, H // G * I, X), b_GXY, preferred_element_type=jnp.float32)
  return c_GZY.reshape(H, I, Y)


def _group_sums(a_HXI, b_HIY, G: int):
  """c_GXY = sum over the heads of a group of a[h] @ b[h], with float32 sums."""
  H, X, I = a_HXI.shape
  a_GXZ = jnp.swapaxes(a_HXI.reshape(G, H // G, X, I), 1, 2).reshape(G, X, H // G * I)
  b_GZY = b_HIY.reshape(G, H // G * I, b_HIY.shape[-1])
  return jnp.matmul(a_GXZ, b_GZY, preferred_element_type=jnp.float32)


def _cotangent(rows: Rows, dfeatures_L) -> Rows:
  """Integers have no derivative; JAX wants float0 zeros in their place."""
  none = jax.tree.map(lambda x: jnp.zeros(x.shape, jax.dtypes.float0), rows)
  return _with(none, dfeatures_L)
