"""Attention of a few queries to all keys of a cache, which lie one head after the other.

The logits of a step of decoding are no more numbers than the keys have rows, so nothing is cut into
tiles; and no key is copied, neither for the heads of its group nor into another order. Memory grows
with H x I x R.

Axes: I queries, R slots of a cache, H query heads, G key/value heads, Z = H / G x I.
"""

import jax
import jax.numpy as jnp
from jax import lax

from posjax.attend.rows import Logits, Rows, Tile, weights


def step(
  q_IHK: jax.Array,
  k_GRK: jax.Array,
  v_GRV: jax.Array,
  query: Rows,
  key: Rows,
  logits: Logits,
  temperature=1.0,
  operands=(),
  null_H: jax.Array | None = None,
) -> jax.Array:
  """out_IHV of one sequence, equal to `dense` up to the order of sums.

  Keys may lie in any order, `key.index_L` says where they belong; but where a state is carried
  along them (`Logits.walk`), the oldest come first.
  """
  (I, H, K), (G, R, V) = q_IHK.shape, v_GRV.shape
  q_GZK = jnp.swapaxes(q_IHK, 0, 1).reshape(G, H // G * I, K)
  # Keys on the left, and kept there: XLA would turn the product around, and on CPU pack every key.
  raw_GRZ = jnp.einsum('grk,gzk->grz', k_GRK, q_GZK, preferred_element_type=jnp.float32)
  raw_HIR = jnp.swapaxes(lax.optimization_barrier(raw_GRZ), 1, 2).reshape(H, I, R)
  key = logits.prepared(operands, key, R)
  if logits.mask.counts_from_begin:
    query = query.with_begin_of(key)
  tile = Tile(query, key, logits.mask, logits.tabled(operands, query, key))
  begin = logits.begin(operands, query)
  s_HIR, _ = logits(temperature, operands, raw_HIR, tile, begin)
  p_HIR = weights(s_HIR, null_H)
  p_GRZ = jnp.swapaxes(p_HIR.reshape(G, H // G * I, R), 1, 2).astype(v_GRV.dtype)
  out_GZV = jnp.einsum('grz,grv->gzv', p_GRZ, v_GRV, preferred_element_type=jnp.float32)
  out_HIV = out_GZV.reshape(H, I, V)
  if logits.read is not None:
    out_HIV += logits.read(*operands, p_HIR, tile)
  return jnp.swapaxes(out_HIV, 0, 1).astype(v_GRV.dtype)
