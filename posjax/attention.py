"""Multi-head attention and its grouped forms: projections, a position scheme, the operator.

Letters: B batch, L tokens, H query heads, G key/value heads, K head width, D model width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from posjax.attend import Logits, Mask, Rows, attend, choose
from posjax.linear import project
from posjax.norm import RMSNorm
from posjax.positions import Scheme


class Attention(nn.Module):
  """Multi-head (G = H), grouped-query (1 < G < H) or multi-query (G = 1) attention.

  output_scale: of the output matrix's initial deviation, 1/sqrt(H K).

  Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2; Shazeer 2019, arXiv:1911.02150; Ainslie et al.
  2023, arXiv:2305.13245. No biases. Logits are scaled by 1/sqrt(K).
  """

  scheme: Scheme
  heads: int
  kv_heads: int
  head_width: int
  mask: Mask
  qk_norm: bool = False
  form: str = 'auto'
  output_scale: float = 1.0

  @nn.compact
  def __call__(self, x_BLD, position, rows_B: Rows):
    """out_BLD. position: the scheme's (parameters, spectrum); rows_B: positions and segments."""
    D, H, G, K = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width
    near = nn.initializers.normal(D**-0.5)
    weight = lambda name, heads: self.param(name, near, (D, heads * K))
    split = lambda y_BLX, heads: y_BLX.reshape(*y_BLX.shape[:2], heads, K)
    q_BLHK = split(project(x_BLD, weight('query_DX', H)), H)
    k_BLGK = split(project(x_BLD, weight('key_DX', G)), G)
    v_BLGK = split(project(x_BLD, weight('value_DX', G)), G)
    if self.qk_norm:
      q_BLHK, k_BLGK = RMSNorm(name='query_norm')(q_BLHK), RMSNorm(name='key_norm')(k_BLGK)

    out_BLHK = position_and_attend(
      self.scheme, position, x_BLD, q_BLHK, k_BLGK, v_BLGK, rows_B, self.mask, self.form
    )
    spread = nn.initializers.normal(self.output_scale * (H * K) ** -0.5)
    output_XD = self.param('output_XD', spread, (H * K, D))
    return project(out_BLHK.reshape(*x_BLD.shape[:2], H * K), output_XD)


def position_and_attend(scheme, position, x_BLD, q_BLHK, k_BLGK, v_BLGV, rows_B, mask, form):
  """Applies a scheme's hooks and attends: out_BLHV.

  Where the form is fused, a scheme that scores runs as extra columns of queries and keys.
  """
  params, spectrum = position
  scale = q_BLHK.shape[-1] ** -0.5
  choice = choose(
    form,
    scores=scheme.scores,
    factorises=scheme.factorises,
    packed=rows_B.segment_L is not None,
    length=q_BLHK.shape[1],
    width=q_BLHK.shape[-1],
    dtype=q_BLHK.dtype,
  )

  def hooks(x_LD, q_LHK, k_LGK, rows):
    query_features, key_features = scheme.features(
      params, spectrum, x_LD, q_LHK, k_LGK, rows.pos_L
    )
    q_LHK = scheme.query(params, spectrum, q_LHK, rows.pos_L)
    k_LGK = scheme.key(params, spectrum, k_LGK, rows.pos_L)
    query = dataclasses.replace(rows, features_L=query_features)
    key = dataclasses.replace(rows, features_L=key_features)
    if choice.fused and scheme.scores:
      q_LHC, k_LC = scheme.columns(params, spectrum, query, key, scale, q_LHK.dtype)
      k_LGC = jnp.broadcast_to(k_LC[:, None], (*k_LGK.shape[:2], k_LC.shape[-1]))
      q_LHK = jnp.concatenate([q_LHK, q_LHC.astype(q_LHK.dtype)], axis=-1)
      k_LGK = jnp.concatenate([k_LGK, k_LGC.astype(k_LGK.dtype)], axis=-1)
    return q_LHK, k_LGK, query, key

  axes = jax.tree.map(lambda _: 0, rows_B)
  axes = dataclasses.replace(axes, index_L=None)
  q_BLHK, k_BLGK, query_B, key_B = jax.vmap(
    hooks,
    in_axes=(0, 0, 0, axes),
  )(x_BLD, q_BLHK, k_BLGK, rows_B)
  query_B = dataclasses.replace(query_B, index_L=rows_B.index_L)
  key_B = dataclasses.replace(key_B, index_L=rows_B.index_L)
  scored = scheme.scores and not choice.fused
  logits = Logits(scale=scale, mask=mask, score=scheme.score if scored else None)
  operands = position if scored else ()
  return attend(
    q_BLHK, k_BLGK, v_BLGV, query_B, key_B, logits, spectrum.temperature, operands, choice.form
  )
