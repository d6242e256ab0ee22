"""PaTH: what lies between a query and a key turns the query, reflection by reflection."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaTH(Scheme):
  """logit[h,i,j] = scale k[j] . H[j+1] ... H[i] q[i] (Yang et al. 2025, arXiv:2505.16381, sec. 3).

    H[t] = I - beta[t] w[t] w[t]^T,   beta[t] = 2 sigmoid(x[t] . step + bias), between 0 and 2
    w[t] = y / sqrt(|y|^2 + 1e-6),    y = silu(taps of (x down up)[t], [t-1], ...)

  The query meets the reflection of its own token first, that of the key never. w and beta belong to
  key heads: query heads of a group share a path. y is a projection of rank `rank` and a convolution
  along the document, one filter per unit, which does not reach into the document before. The SiLU
  and the 1e-6 are the authors' code (flash-linear-attention, layers/path_attn.py), as is that all
  weights start normal with deviation 0.02, the bias at 0, and that neither q nor k is normalised.
  Order is the place in the row; no position is read.

  Together with forget gates it is PaTH-FoX, with the gates' logarithms as they are; the authors'
  kernel multiplies these, too, by 1/sqrt(K).

  Queries are turned by C = 64 keys at a time: a product of reflections is I - w^T turn, with rows
  `turn` from a triangular system (Bischof & Van Loan 1987), made once for each key. All of it is
  float32. A query and a key cost 3 K + C + V products instead of K + V: for heads of 64, 2.5 times
  as many. Memory grows with L: of each key head k, w and beta are kept, and while its layer runs
  K + C numbers more for each token.

  A cache keeps keys as the tokens after them have left them, k[j] . H[j+1] ... H[newest], in
  float32, so that the newest query meets them as they are (the authors decode so, too), and the
  inputs of the last `taps` - 1 tokens, which the convolution looks back at. A step takes 2 K more
  products for each key, and writes it again. A window only drops keys. Sinks are refused: the path
  to them leads over keys that tiles skip.

  rank: of the projection to w. taps: tokens under the convolution. Both at least 1.
  deviation: of all initial weights. Not negative.
  """

  rank: int = 32
  taps: int = 3
  deviation: float = 0.02

  reads_positions = False
  replaces_logits = True

  def __post_init__(self):
    if self.rank < 1 or self.taps < 1 or not self.deviation >= 0:
      raise ValueError(
        f'PaTH cannot have rank {self.rank}, {self.taps} taps and deviation {self.deviation}. '
        'Use rank >= 1, taps >= 1 and deviation >= 0.'
      )

  @property
  def features_read(self) -> int:
    return self.taps - 1

  def init_layer(self, key, dims):
    D, G, K, R = dims.width, dims.kv_heads, dims.head_width, self.rank
    shapes = {
      'down_DR': (D, R), 'up_RGK': (R, G, K), 'filter_TGK': (self.taps, G, K), 'step_DG': (D, G),
    }  # fmt: skip
    keys = jax.random.split(key, len(shapes))
    drawn = {
      name: self.deviation * jax.random.normal(key, shape)
      for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    return {**drawn, 'bias_G': jnp.zeros(G)}

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    x_LD, L = x_LD.astype(jnp.float32), len(x_LD)
    y_LGK = jnp.einsum('lr,rgk->lgk', x_LD @ params['down_DR'], params['up_RGK'])
    place_L11 = rows.with_begin().place_L[:, None, None]
    sum_LGK = 0.0
    for back, filter_GK in enumerate(params['filter_TGK'][::-1]):  # the last tap is the token's own
      shifted_LGK = jnp.pad(y_LGK, [(back, 0), (0, 0), (0, 0)])[:L]
      sum_LGK += jnp.where(place_L11 >= back, filter_GK * shifted_LGK, 0)
    w_LGK = jax.nn.silu(sum_LGK)
    w_LGK *= lax.rsqrt((w_LGK**2).sum(-1, keepdims=True) + 1e-6)
    beta_LG = 2 * jax.nn.sigmoid(x_LD @ params['step_DG'] + params['bias_G'])
    return q_LHK, (k_LGK, w_LGK, beta_LG)

  def start(self, params, spectrum, query):
    """turned_HIK, the queries before any token has turned them."""
    return jnp.swapaxes(query.features_L, 0, 1).astype(jnp.float32)

  def age(self, params, spectrum, k_GRK, place_R, features_S, place_S):
    """Block by block, the oldest first: k . (1 - w^T u^T w), w being 0 for what is not newer."""
    _, w_SGK, beta_SG = features_S
    S, K = len(place_S), w_SGK.shape[-1]
    C = 1 << min(6, (S - 1).bit_length())
    beta_SG = jnp.where(place_S[:, None] >= 0, beta_SG, 0)

    def blocks(x_S, fill=0):
      x_S = jnp.pad(x_S, [(0, -S % C)] + [(0, 0)] * (x_S.ndim - 1), constant_values=fill)
      return x_S.reshape(-1, C, *x_S.shape[1:])

    w_NGCK, beta_NGC = (jnp.swapaxes(blocks(x_S), 1, 2) for x_S in (w_SGK, beta_SG))

    def one(own_GRK, block):
      w_GCK, u_GCC, place_C = block
      along_GRC = product('grk,gck->grc', own_GRK, w_GCK)
      along_GRC = jnp.where(place_R[:, None] < place_C, along_GRC, 0)
      return own_GRK - product('grc,gec,gek->grk', along_GRC, u_GCC, w_GCK), None

    product = functools.partial(jnp.einsum, precision='highest')  # errors add up, step by step
    each = w_NGCK, _together(w_NGCK, beta_NGC), blocks(place_S, -1)
    own_GRK, _ = lax.scan(one, k_GRK[..., :K], each)
    return jnp.concatenate([own_GRK, k_GRK[..., K:]], axis=-1)

  def remembered(self, features_L):
    return None

  def recalled(self, params, features_R, k_RGK):
    """Tokens that have turned the keys do not turn queries."""
    k_RGK = k_RGK[..., : params['up_RGK'].shape[-1]]
    return k_RGK, jnp.zeros_like(k_RGK), jnp.zeros(k_RGK.shape[:2])

  def prepare(self, params, spectrum, key, J):
    """k_LGK, w_LGK, turn_LGK and less_LGC, all that a block of C keys does to queries q.

    With u[s] = beta[s] (w[s] . q - sum over t > s of (w[s] . w[t]) u[t]), what is left of q after
    the block is q - sum u[t] w[t], and what the key n meets is q - sum over t > n of u[t] w[t].
    u = (w . q) diag(beta) (1 + A)^-1 with A[t,s] = (w[t] . w[s]) beta[s] where t > s, else 0. So
    (turn, less) = diag(beta) (1 + A)^-1 (w, w[t] . k[n] where t > n).
    """
    if key.features_L is None:  # aged
      return None
    k_LGK, w_LGK, beta_LG = key.features_L
    (L, G, _), C = k_LGK.shape, _block(J)

    def blocks(x_L):
      x_TJ = x_L.astype(jnp.float32).reshape(-1, J, *x_L.shape[1:])
      x_TJ = jnp.pad(x_TJ, [(0, 0), (0, -J % C)] + [(0, 0)] * (x_L.ndim - 1))
      return jnp.swapaxes(x_TJ.reshape(-1, C, *x_L.shape[1:]), 1, 2)

    def rows(x_NGCX):
      x_TJGX = jnp.swapaxes(x_NGCX, 1, 2).reshape(L // J, -1, G, x_NGCX.shape[-1])
      return x_TJGX[:, :J].reshape(L, G, -1)

    k_NGCK, w_NGCK, beta_NGC = blocks(k_LGK), blocks(w_LGK), blocks(beta_LG)
    u_NGCC = _together(w_NGCK, beta_NGC)
    less_NGCC = jnp.tril(w_NGCK @ jnp.swapaxes(k_NGCK, 2, 3), -1)
    return k_LGK, w_LGK, rows(u_NGCC @ w_NGCK), rows(u_NGCC @ less_NGCC)

  def walk(self, params, spectrum, s_HIJ, tile, state):
    if tile.mask is not None and tile.mask.sinks:
      raise ValueError(
        f'PaTH cannot see {tile.mask.sinks} sinks: the path to them leads over keys that nobody '
        'visits. Use a window without sinks, or no window.'
      )
    if tile.key.features_L is None:  # aged: these products are the logits
      return s_HIJ, state
    k_JGK, w_JGK, turn_JGK, less_JGC = tile.key.features_L
    (H, I, K), (J, G, C) = state.shape, less_JGC.shape
    # Only tokens up to the query's own turn it. Those of other documents, and out of a window, turn
    # it, too, but they are older than all that it sees.
    met_IJ = tile.query.index_L[:, None] >= tile.key.index_L
    cut = lambda x, axis: jnp.split(x, [*range(C, J, C)], axis)
    blocks = zip(
      cut(k_JGK.astype(jnp.float32).transpose(1, 2, 0), 2),
      cut(w_JGK.transpose(1, 2, 0), 2),
      cut(jnp.swapaxes(turn_JGK, 0, 1), 1),
      cut(jnp.swapaxes(less_JGC, 0, 1), 1),
      cut(jnp.tile(met_IJ, (H // G, 1)), 1),
      strict=True,
    )
    turned_GZK, s_GZC = state.reshape(G, -1, K), []
    for k_GKC, w_GKC, turn_GCK, less_GCC, met_ZC in reversed(list(blocks)):
      u_GZC = jnp.where(met_ZC, turned_GZK @ w_GKC, 0)
      s_GZC.append(turned_GZK @ k_GKC - u_GZC @ less_GCC[..., : k_GKC.shape[-1]])
      turned_GZK -= u_GZC @ turn_GCK
    s_GZJ = jnp.concatenate(s_GZC[::-1], axis=-1)
    return K**-0.5 * s_GZJ.reshape(H, I, J), turned_GZK.reshape(H, I, K)


def _together(w_NGCK, beta_NGC):
  """u_NGCC = diag(beta) (1 + A)^-1 of blocks of C tokens, A[t,s] = (w[t] . w[s]) beta[s] where
  t > s: their reflections are one, 1 - w^T u^T w."""
  products_NGCC = jnp.einsum('ngtk,ngsk->ngts', w_NGCK, w_NGCK, precision='highest')
  return beta_NGC[..., None] * _inverse(products_NGCC * beta_NGC[..., None, :])


def _block(J: int) -> int:
  """Keys whose reflections are applied at once: a power of two, so many that 8 blocks are a tile.

  With fewer, products are small; with more, there are more of them: K + C for each query and key.
  """
  return 1 << max(min(64, J) - 1, -(-J // 8) - 1).bit_length()


def _inverse(a_CC):
  """(1 + A)^-1, A being what stands below the diagonal of a_CC, C a power of two.

  By halves: as stable as substitution, in products that every platform is fast at. (LAPACK's
  threads wait for XLA's: a solve of 0.2 ms on CPU takes a second now and then.)
  """
  C = a_CC.shape[-1]
  if C == 1:
    return jnp.ones_like(a_CC)
  h = C // 2
  older, newer = _inverse(jnp.stack([a_CC[..., :h, :h], a_CC[..., h:, h:]]))
  product = functools.partial(jnp.matmul, precision='highest')
  between = -product(product(newer, a_CC[..., h:, :h]), older)
  upper = jnp.concatenate([older, jnp.zeros_like(between)], axis=-1)
  return jnp.concatenate([upper, jnp.concatenate([between, newer], axis=-1)], axis=-2)
