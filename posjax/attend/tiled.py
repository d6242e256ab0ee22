"""Attention in tiles: any score, any platform, memory H x L.

A running softmax over tiles of keys (Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats
2021, arXiv:2112.05682) that keeps only the log-sum-exp of each row, and a derivative that computes
the tiles again (Dao et al. 2022, arXiv:2205.14135). No scheme writes a derivative: the backward
pass calls jax.vjp on the very `Logits` that the forward pass calls. Key tiles come newest first, as
states carried along the keys do; the derivative goes back over them oldest first, from states that
it has walked again and kept for one tile of queries at a time.

Axes: I/J query/key rows of a tile, T tiles of queries, M = I + J distances of a tile, R of all
tiles, X/Y/Z the axes of a matmul.
"""

import dataclasses
import functools

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
) -> jax.Array:
  """out_LHV of one sequence, equal to `dense` up to the order of sums.

  sizes: rows (I, J) of a tile; they need not divide the lengths. Keys are numbered from 0, so
  `key.index_L` must be 0, 1, 2, ...; queries may start anywhere.
  """
  Lq, Lk = len(q_LHK), len(k_LGK)
  if logits.mask.counts_from_begin:
    query = query.with_begin_of(key)
  I, J = sizes or tile_sizes(Lq, Lk)
  whole_q, whole_k = -(-Lq // I) * I, -(-Lk // J) * J
  if whole_q > Lq or whole_k > Lk:  # padding is told from a single document by its segment
    query, key = _with_segments(query), _with_segments(key)
  query, key = query.padded(whole_q), key.padded(whole_k)
  out_HLV = _tiled(
    logits,
    (I, J),
    _by_head(q_LHK, whole_q),
    _by_head(k_LGK, whole_k),
    _by_head(v_LGV, whole_k),
    query,
    key,
    logits.tabled(operands, query, key),
    temperature,
    operands,
  )
  return jnp.swapaxes(out_HLV, 0, 1)[:Lq]


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
def _tiled(logits, sizes, q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands):
  return _forward(logits, sizes, q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands)[0]


def _forward(logits, sizes, q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands):
  """The output, and what the derivative needs: inputs, output, log-sum-exp of each row."""
  I, J = sizes
  H, Lq, _ = q_HLK.shape
  _, Lk, V = v_GLV.shape
  k_GKL = jnp.swapaxes(k_GLK, 1, 2)

  def one_query_tile(i):
    q_HIK = _cut(q_HLK, i * I, I, 1)
    query_I = query.cut(i * I, I)
    count, place = logits.mask.key_tiles(query_I, J, Lk // J)

    def one_key_tile(n, carry):
      out_HIV, top_HI, sum_HI, state = carry
      j = place(n) * J
      table_M = _cut_all(table_R, _place_in_table(Lq, i, j, I), I + J)
      tile = Tile(query_I, key.cut(j, J), logits.mask, table_M)
      raw_HIJ = _grouped(q_HIK, _cut(k_GKL, j, J, 2))
      s_HIJ, state = logits(temperature, operands, raw_HIJ, tile, state)
      new_HI = jnp.maximum(top_HI, s_HIJ.max(-1))
      p_HIJ = jnp.exp(s_HIJ - new_HI[..., None])
      shrink_HI = jnp.exp(top_HI - new_HI)
      part_HIV = _grouped(p_HIJ.astype(v_GLV.dtype), _cut(v_GLV, j, J, 1))
      if logits.read is not None:
        part_HIV += logits.read(*operands, p_HIJ, tile)
      out_HIV = out_HIV * shrink_HI[..., None] + part_HIV
      return out_HIV, new_HI, sum_HI * shrink_HI + p_HIJ.sum(-1), state

    start = jnp.zeros((H, I, V)), jnp.full((H, I), HIDDEN), jnp.zeros((H, I))
    out_HIV, top_HI, sum_HI, _ = lax.fori_loop(
      0, count, one_key_tile, (*start, logits.begin(operands, query_I))
    )
    return (out_HIV / sum_HI[..., None]).astype(v_GLV.dtype), top_HI + jnp.log(sum_HI)

  out_THIV, lse_THI = lax.map(one_query_tile, jnp.arange(Lq // I))
  out_HLV = jnp.moveaxis(out_THIV, 0, 1).reshape(H, Lq, V)
  saved = q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands, out_HLV, lse_THI
  return out_HLV, saved


def _backward(logits, sizes, saved, g_HLV):
  """Cotangents of all but the static arguments, summed tile by tile as they are recomputed."""
  q_HLK, k_GLK, v_GLV, query, key, table_R, temperature, operands, out_HLV, lse_THI = saved
  I, J = sizes
  G, Lk, _ = k_GLK.shape
  Lq = q_HLK.shape[1]
  k_GKL, v_GVL = jnp.swapaxes(k_GLK, 1, 2), jnp.swapaxes(v_GLV, 1, 2)
  delta_HL = (g_HLV.astype(jnp.float32) * out_HLV).sum(-1)

  def one_query_tile(sums, i):
    q_HIK, g_HIV = _cut(q_HLK, i * I, I, 1), _cut(g_HLV, i * I, I, 1)
    q_HKI, g_HVI = jnp.swapaxes(q_HIK, 1, 2), jnp.swapaxes(g_HIV, 1, 2)
    query_I = query.cut(i * I, I)
    lse_HI1, delta_HI1 = lse_THI[i][..., None], _cut(delta_HL, i * I, I, 1)[..., None]
    count, place = logits.mask.key_tiles(query_I, J, Lk // J)

    def masked(j, temperature, operands, raw_HIJ, features_I, features_J, table_M, state):
      tile = _tile(logits, query_I, key.cut(j, J), features_I, features_J, table_M)
      return logits(temperature, operands, raw_HIJ, tile, state)

    def table_of(j):
      return _cut_all(table_R, _place_in_table(Lq, i, j, I), I + J)

    def products(j):
      return _grouped(q_HIK, _cut(k_GKL, j, J, 2))

    def one_step(n, walked):
      state, states_N = walked
      j = place(n) * J
      features_J = key.cut(j, J).features_L
      _, new = masked(
        j, temperature, operands, products(j), query_I.features_L, features_J, table_of(j), state
      )
      return new, jax.tree.map(lambda x_N, x: x_N.at[n].set(x), states_N, state)

    def begin(operands, features_I):
      return logits.begin(operands, dataclasses.replace(query_I, features_L=features_I))

    first, pull_begin = jax.vjp(begin, operands, query_I.features_L)
    states_N = jax.tree.map(lambda x: jnp.zeros((Lk // J, *x.shape), x.dtype), first)
    if jax.tree.leaves(first):
      _, states_N = lax.fori_loop(0, count, one_step, (first, states_N))

    def one_key_tile(m, carry):
      dq_HIK, dfeatures_I, dstate, (dk_GKL, dv_GVL, dfeatures_L, dtable_R, dshared) = carry
      n = count - 1 - m
      j = place(n) * J
      key_J = key.cut(j, J)
      (s_HIJ, _), pull = jax.vjp(
        functools.partial(masked, j),
        temperature,
        operands,
        products(j),
        query_I.features_L,
        key_J.features_L,
        table_of(j),
        jax.tree.map(lambda x_N: x_N[n], states_N),
      )
      p_HIJ = jnp.exp(s_HIJ - lse_HI1)
      dp_HIJ = _grouped(g_HIV, _cut(v_GVL, j, J, 2))
      if logits.read is not None:

        def read(operands, p_HIJ, features_I, features_J):
          tile = _tile(logits, query_I, key_J, features_I, features_J)
          return logits.read(*operands, p_HIJ, tile)

        _, pull_read = jax.vjp(read, operands, p_HIJ, query_I.features_L, key_J.features_L)
        dread, more_HIJ, *dread_features = pull_read(g_HIV.astype(jnp.float32))
        dp_HIJ += more_HIJ
      *shared, draw_HIJ, features_I, features_J, dtable_M, dstate = pull(
        (p_HIJ * (dp_HIJ - delta_HI1), dstate)
      )
      if logits.read is not None:
        shared[1] = _sum(shared[1], dread)
        features_I, features_J = _sum([features_I, features_J], dread_features)
      draw_HIJ = draw_HIJ.astype(q_HLK.dtype)
      return (
        dq_HIK + _grouped(draw_HIJ, _cut(k_GLK, j, J, 1)),
        _sum(dfeatures_I, features_I),
        dstate,
        (
          _add(dk_GKL, _group_sums(q_HKI, draw_HIJ, G), j, 2),
          _add(dv_GVL, _group_sums(g_HVI, p_HIJ.astype(g_HVI.dtype), G), j, 2),
          _add_all(dfeatures_L, features_J, j),
          _add_all(dtable_R, dtable_M, _place_in_table(Lq, i, j, I)),
          _sum(dshared, shared),
        ),
      )

    start = jnp.zeros(q_HIK.shape), _zeros(query_I.features_L), _zeros(first), sums
    dq_HIK, dfeatures_I, dfirst, sums = lax.fori_loop(0, count, one_key_tile, start)
    if jax.tree.leaves(first):
      more, more_I = pull_begin(dfirst)
      *others, (dtemperature, doperands) = sums
      sums = (*others, [dtemperature, _sum(doperands, more)])
      dfeatures_I = _sum(dfeatures_I, more_I)
    return sums, (dq_HIK, dfeatures_I)

  sums = (
    jnp.zeros(k_GKL.shape),
    jnp.zeros(v_GVL.shape),
    _zeros(key.features_L),
    _zeros(table_R),
    _zeros([temperature, operands]),
  )
  sums, (dq_THIK, dfeatures_TI) = lax.scan(one_query_tile, sums, jnp.arange(Lq // I))
  dk_GKL, dv_GVL, dfeatures_J, dtable_R, dshared = sums
  dfeatures_I = jax.tree.map(lambda x: x.reshape(Lq, *x.shape[2:]), dfeatures_TI)
  return (
    jnp.moveaxis(dq_THIK, 0, 1).reshape(q_HLK.shape).astype(q_HLK.dtype),
    jnp.swapaxes(dk_GKL, 1, 2).astype(k_GLK.dtype),
    jnp.swapaxes(dv_GVL, 1, 2).astype(v_GLV.dtype),
    _cotangent(query, dfeatures_I),
    _cotangent(key, dfeatures_J),
    dtable_R,
    *dshared,
  )


def _tile(logits, query_I: Rows, key_J: Rows, features_I, features_J, table_M=None) -> Tile:
  """A tile whose features and table are the ones given: what a derivative is taken to."""
  return Tile(
    dataclasses.replace(query_I, features_L=features_I),
    dataclasses.replace(key_J, features_L=features_J),
    logits.mask,
    table_M,
  )


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
  return jax.tree.map(jnp.zeros_like, tree)


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
  return dataclasses.replace(none, features_L=dfeatures_L)
