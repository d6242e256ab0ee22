"""Attention by its definition: short enough to check by eye. Memory grows with H x L x L."""

import jax
import jax.numpy as jnp

from posjax.attend.rows import Logits, Rows, Tile, weights


def dense(
  q_LHK: jax.Array,
  k_LGK: jax.Array,
  v_LGV: jax.Array,
  query: Rows,
  key: Rows,
  logits: Logits,
  temperature=1.0,
  operands=(),
  null_H: jax.Array | None = None,
) -> jax.Array:
  """out_LHV of one sequence: softmax in float32, products in the type of the inputs."""
  group = q_LHK.shape[1] // k_LGK.shape[1]
  k_LHK, v_LHV = jnp.repeat(k_LGK, group, axis=1), jnp.repeat(v_LGV, group, axis=1)
  raw_HIJ = jnp.einsum('ihk,jhk->hij', q_LHK, k_LHK, preferred_element_type=jnp.float32)
  key = logits.prepared(operands, key, len(k_LHK))
  if logits.mask.counts_from_begin:
    query = query.with_begin_of(key)
  table_M = logits.tabled(operands, query, key)
  tile = Tile(query, key, logits.mask, table_M)
  s_HIJ, _ = logits(temperature, operands, raw_HIJ, tile, logits.begin(operands, query))
  p_HIJ = weights(s_HIJ, null_H)
  out_LHV = jnp.einsum(
    'hij,jhv->ihv', p_HIJ.astype(v_LHV.dtype), v_LHV, preferred_element_type=jnp.float32
  )
  if logits.read is not None:
    out_LHV += jnp.swapaxes(logits.read(*operands, p_HIJ, tile), 0, 1)
  return out_LHV.astype(v_LGV.dtype)
