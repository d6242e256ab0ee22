"""Biases as extra columns of queries and keys, exact in the type of the matmul; ALiBi's slopes.

Letters: L tokens, H heads, G key/value heads, C columns, P parts of a number.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from posjax.attend import Rows

Array = jax.Array


def slopes(heads: int, steepness: float) -> np.ndarray:
  """slope_H in logits per token, float64, as in the code of ALiBi's authors (Press et al. 2021,
  arXiv:2108.12409).

  For H a power of two, 2^(-steepness t / H) with t = 1..H; otherwise those of the power of two
  below, then every other slope of the one above. (The paper's sentence alone, "a geometric sequence
  from 2^(-8/n)", gives other values for such H.)
  """
  below = 2 ** int(math.log2(heads))
  regular = lambda count: 2.0 ** (-steepness * np.arange(1, count + 1) / count)
  return np.concatenate([regular(below), regular(2 * below)[0::2][: heads - below]])


def linear_columns(slope_H: Array, key: Rows, *, scale: float, dtype) -> tuple[Array, Array]:
  """Columns [L, H, C] and [L, 1, C] of logit -= slope[h] * (pos[i] - pos[j]) (`Scheme.columns`).

  slope * pos[j], the rest of the bias being constant along a row. Positions go in as digits to the
  base 256, slopes in parts: all exact in `dtype`.
  """
  L, H = len(key.pos_L), len(slope_H)
  # Within a document, contiguous positions and places differ by a constant; places are bounded.
  pos_L = key.index_L if key.contiguous else key.pos_L
  digits = 2 if key.contiguous and L <= 2**16 else 4
  base_N = 256 ** np.arange(digits)[::-1]
  k_LN = (pos_L[:, None] // base_N % 256).astype(jnp.float32)
  slope_HP = exact_parts(slope_H / scale, dtype)
  q_HC = (slope_HP[..., None] * base_N.astype(np.float32)).reshape(H, -1)
  k_LC = jnp.tile(k_LN, (1, slope_HP.shape[1]))
  return jnp.broadcast_to(q_HC, (L, *q_HC.shape)), k_LC[:, None]


def exact_products(q_LHC: Array, k_LGC: Array, dtype) -> tuple[Array, Array]:
  """Columns exact in `dtype` whose products add up to those of q and k, to float32 precision.

  As many as there are in float32, six times as many in a type of half its width: of three parts
  each, the products of up to four in all; those left out are below 2^-26 of a whole one.
  """
  q_LHCP, k_LGCP = exact_parts(q_LHC, dtype), exact_parts(k_LGC, dtype)
  P = q_LHCP.shape[-1]
  pairs = [(m, n) for m in range(P) for n in range(P) if m + n < P]
  columns = lambda x_LXCP, of: jnp.concatenate([x_LXCP[..., pair[of]] for pair in pairs], axis=-1)
  return columns(q_LHCP, 0), columns(k_LGCP, 1)


def exact_parts(x_X: Array, dtype) -> Array:
  """parts_XP whose sum over P is x to float32 precision, each part exact in `dtype`."""
  parts, rest_X = [], jnp.asarray(x_X, jnp.float32)
  bits = jnp.finfo(dtype).nmant
  for _ in range(1 if dtype == jnp.float32 else 3):
    # XLA may leave out a cast to `dtype` and back (xla_allow_excess_precision), but not this.
    part_X = lax.reduce_precision(rest_X, exponent_bits=8, mantissa_bits=bits)
    parts.append(part_X.astype(dtype).astype(jnp.float32))
    rest_X -= parts[-1]
  return jnp.stack(parts, axis=-1)
