"""Relative vectors: each distance has one to add to keys and one to add to values."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shaw(Scheme):
  """Keys and values as seen from a distance (Shaw et al. 2018, arXiv:1803.02155, eq. 3 and 4).

    logit[h,i,j] = q[h,i] . (k[j] + key[e]) / sqrt(K),    e = min(pos[i] - pos[j], farthest)
    out[h,i]     = sum over j of p[h,i,j] (v[j] + value[e])

  Two tables, which all heads share; each layer has its own: so in the paper's big model and in
  tensor2tensor. (In the paper's base model each head has its own, too.) Theirs have
  2 farthest + 1 rows, half of them for keys ahead. A decoder sees none, so here are farthest + 1,
  and row e is their row of key minus query = -e; without a causal mask, keys ahead have row 0.
  They are drawn as in tensor2tensor, uniform with variance 2 / (2 farthest + 1 + K).

  q is the query as projected: beside a scheme that turns queries and keys, it is not turned. No
  extension is needed, and none offered: what lies farther than `farthest` is known from training.

  farthest: distance in tokens from which all keys share the last row; at least 1. The paper uses
    16 and 8, and finds no gain above 2. It is meant to be small: in a tile of I x J logits at the
    diagonal memory grows with farthest I J, and with farthest L H for the queries of a row.
  """

  farthest: int = 16

  def __post_init__(self):
    if self.farthest < 1:
      raise ValueError(
        f'Relative vectors up to farthest = {self.farthest} tokens are the same for every key. '
        'Use farthest >= 1.'
      )

  def init_layer(self, key, dims):
    K, E = dims.head_width, self.farthest + 1
    bound = (6 / (2 * self.farthest + 1 + K)) ** 0.5
    keys, values = jax.random.split(key)
    return {
      'key_EK': jax.random.uniform(keys, (E, K), minval=-bound, maxval=bound),
      'value_EV': jax.random.uniform(values, (E, K), minval=-bound, maxval=bound),
    }

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    """For queries: what each row of the table of keys adds to their logits."""
    key_EK = params['key_EK'].astype(q_LHK.dtype)
    gain_LHE = jnp.einsum('lhk,ek->lhe', q_LHK, key_EK, preferred_element_type=jnp.float32)
    return gain_LHE * q_LHK.shape[-1] ** -0.5, None

  def score(self, params, spectrum, s_HIJ, tile):
    def near(s_HIJ, gain_HIE):
      return s_HIJ + jnp.einsum('hie,eij->hij', gain_HIE, self.rows(tile), precision='highest')

    def far(s_HIJ, gain_HIE):
      return s_HIJ + gain_HIE[..., -1:]

    return self.either(near, far, tile, s_HIJ, jnp.swapaxes(tile.query.features_L, 0, 1))

  def read(self, params, spectrum, p_HIJ, tile):
    def near(p_HIJ, value_EV):
      p_HIE = jnp.einsum('hij,eij->hie', p_HIJ, self.rows(tile), precision='highest')
      return jnp.matmul(p_HIE, value_EV, precision='highest')

    def far(p_HIJ, value_EV):
      return p_HIJ.sum(-1, keepdims=True) * value_EV[-1]

    return self.either(near, far, tile, p_HIJ, params['value_EV'])

  def rows(self, tile):
    """one_EIJ: 1 at the row of each pair, 0 elsewhere: matmuls both ways, where a gather would have
    a scatter for its derivative."""
    row_IJ = jnp.clip(tile.distance_IJ, 0, self.farthest)
    return jax.nn.one_hot(row_IJ, self.farthest + 1, axis=0)

  def either(self, near, far, tile, *arrays):
    """`far` for a tile all of whose pairs have the last row, as most have; else `near`."""
    near = jax.checkpoint(near, prevent_cse=False)  # nothing of size E x I x J is kept
    if not tile.contiguous:
      return near(*arrays)
    # By index_L, which a batch shares: over a batch of conditions, vmap would run both branches.
    nearest = tile.query.index_L[0] - tile.key.index_L[-1]
    return jax.lax.cond(nearest >= self.farthest, far, near, *arrays)
