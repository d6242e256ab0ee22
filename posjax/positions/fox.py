"""Forgetting attention: each token decides how much of the past its head keeps."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.bias import exact_parts
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoX(Scheme):
  """logit[h,i,j] += log(f[h,j+1] ... f[h,i]) (Lin et al. 2025, arXiv:2503.02130, sec. 3).

    f[h,l] = sigmoid(x[l] . gate[:,h] + bias[h]),   c[h,i] = log f[h,0] + ... + log f[h,i]
    logit[h,i,j] += c[h,i] - c[h,j]

  x is what the layer's queries are projected from. The query's own gate counts, the key's does not:
  nothing is added where i = j. Each layer has its own gates; in the authors' code weights start
  normal with deviation 0.02, biases at 0, so that a token keeps about half. There is no other sign
  of position, and no position is read: order is the place in the row. Documents packed into a row
  need no restart, since c[i] - c[j] has none of what came before j.

  Logarithms and sums are float32, whatever x is. Differences of sums over L tokens are off by up
  to 3e-7 L / T nats, T the tokens over which the head forgets by 1/e: 2e-3 where each of 8,192
  tokens halves what is kept, and less the farther a head looks back.

  deviation: of the initial gate weights, in logits per unit of x. Not negative.
  """

  deviation: float = 0.02

  reads_positions = False

  def __post_init__(self):
    if not self.deviation >= 0:
      raise ValueError(f'FoX cannot draw weights with deviation {self.deviation}. Use one >= 0.')

  def init_layer(self, key, dims):
    D, H = dims.width, dims.heads
    return {'gate_DH': self.deviation * jax.random.normal(key, (D, H)), 'bias_H': jnp.zeros(H)}

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    gate_LH = x_LD.astype(jnp.float32) @ params['gate_DH'] + params['bias_H']
    kept_LH = jnp.cumsum(jax.nn.log_sigmoid(gate_LH), axis=0)
    return kept_LH, kept_LH

  def continued(self, features_L, gap):
    return features_L + gap

  def score(self, params, spectrum, s_HIJ, tile):
    kept_HI, kept_HJ = tile.query.features_L.T, tile.key.features_L.T
    return s_HIJ + (kept_HI[:, :, None] - kept_HJ[:, None, :])

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    """-c[h,j], c[h,i] being constant along a row; in parts that are exact in `dtype`.

    A key head has the parts of all heads of its group side by side, a query takes those of its own.
    """
    L, M = len(key.index_L), heads // kv_heads
    unit = 256.0  # on the side of the queries: float16 ends at 65,504
    k_LHP = exact_parts(-key.features_L / (unit * scale), dtype)
    q_MC = jnp.repeat(unit * jnp.eye(M), k_LHP.shape[-1], axis=1)
    q_HC = jnp.tile(q_MC, (kv_heads, 1))
    return jnp.broadcast_to(q_HC, (L, *q_HC.shape)), k_LHP.reshape(L, kv_heads, -1)
