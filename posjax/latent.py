"""Multi-head latent attention: keys and values of all heads are read from one short vector.

  c[l] = norm(x[l] latent)                                     what is kept of a token, and
  r[l] = x[l] rope_key                                         what knows where it is, for all heads
  k[h,l] = [c[l] key_up[h] | r[l]],   v[h,l] = c[l] value_up[h]
  q[h,l] = [content | slice],  from x[l], or from norm(x[l] query_down)

A scheme acts on the last dimensions of queries and keys alone, the decoupled slice.

Two forms of the same function. Expanded: keys and values of every head, then attention as ever; so
the model trains. Absorbed: queries meet c itself, as one key head that all share, since

  q . (c key_up[h]) = (q key_up[h]^T) . c,   sum of p (c value_up[h]) = (sum of p c) value_up[h]

so that decoding reads C + R numbers per token, whatever the heads.

Letters: B batch, L tokens, H heads, N content width of a head, R width of the slice, V value width,
C latent width, D model width, S new tokens, Y slots of a cache.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from posjax.around import Around
from posjax.attend import Rows
from posjax.attention import Layer, null_logit, position_and_attend
from posjax.linear import project
from posjax.norm import make_norm

FORMS = ('auto', 'absorbed', 'expanded')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latent:
  """Widths of latent attention (DeepSeek-AI 2024, arXiv:2405.04434, sec. 2.1).

  width: C, of what is kept of a token. DeepSeek-V2's is 512, for 128 heads.
  query: of the queries' own latent; None: queries come from x itself.
  slice: R, of the decoupled slice. Theirs is 64.
  value: V, of a value head; None: as wide as the content, N, which is the model's head_width.
  epsilon: of the latents' norms; None: the model's. DeepSeek's is 1e-6 whatever their model's is.
  norm: of c: 'rms', theirs, or None, as in models that were converted (posjax/conversion.py).
  decode: form that reads a cache: 'absorbed', 'expanded', or 'auto', the one with fewer products.
  """

  width: int
  query: int | None = None
  slice: int = 64
  value: int | None = None
  epsilon: float | None = None
  norm: str | None = 'rms'
  decode: str = 'auto'

  def __post_init__(self):
    for field in ('width', 'query', 'slice', 'value'):
      size = getattr(self, field)
      if size is not None and size < 1:
        raise ValueError(f'model.latent.{field} = {size}. Use a whole number >= 1.')
    if self.norm not in (None, 'rms'):
      raise ValueError(f"model.latent.norm = '{self.norm}' is unknown. Use rms or None.")
    if self.decode not in FORMS:
      raise ValueError(
        f"model.latent.decode = '{self.decode}' is unknown. Use one of: {', '.join(FORMS)}."
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoupled(Around):
  """`scheme`, which sees but the last `width` dimensions of queries and keys.

  Raises ValueError for a scheme that needs them whole: it would compute other logits than theirs,
  or add to values that are not expanded yet.
  """

  width: int

  def __post_init__(self):
    if self.scheme.replaces_logits or self.scheme.reads:
      raise ValueError(
        f'{type(self.scheme).__name__} computes logits anew from whole queries and keys, or adds '
        'to what is read, and latent attention has neither to give. Use a scheme that turns keys, '
        'adds to logits or counts along them, e.g. rope, alibi or fox, or model.latent = None.'
      )

  def query(self, params, spectrum, q_LHK, pos_L):
    return self._last(q_LHK, lambda x: self.scheme.query(params, spectrum, x, pos_L))

  def key(self, params, spectrum, k_LGK, pos_L):
    return self._last(k_LGK, lambda x: self.scheme.key(params, spectrum, x, pos_L))

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    R = self.width
    return self.scheme.features(params, spectrum, x_LD, q_LHK[..., -R:], k_LGK[..., -R:], rows)

  def _last(self, x_LHK, change):
    content_LHN, slice_LHR = jnp.split(x_LHK, [x_LHK.shape[-1] - self.width], axis=-1)
    return jnp.concatenate([content_LHN, change(slice_LHR)], axis=-1)


def decoupled(layer: Layer, latent: Latent) -> Layer:
  """The layer as its attention has it. Raises ValueError where it makes no sense."""
  if layer.segment is not None:
    raise ValueError(
      f'Latent attention has no memory of segments (model.segment = {layer.segment}). Use '
      'model.segment = None.'
    )
  scheme = Decoupled(scheme=layer.scheme, width=latent.slice)
  return dataclasses.replace(layer, scheme=scheme)


class LatentAttention(nn.Module):
  """DeepSeek's attention (2405.04434, eq. 9 to 19; DeepSeek-V3's `inference/model.py`, `MLA`).

  head_width: N. output_scale: of the output matrix's initial deviation, 1/sqrt(H V).

  Logits are scaled by 1/sqrt(N + R), in both forms. Norms are on the latents, not on the slice. The
  cache holds c and the turned slice side by side.
  """

  layer: Layer
  latent: Latent
  heads: int
  head_width: int
  norm_epsilon: float | None = None
  form: str = 'auto'
  output_scale: float = 1.0

  @nn.compact
  def __call__(self, x_BLD, position, rows_B: Rows, past_BLD=None, cache=None):
    """(out_BLD, cache). Arguments as of `Attention`; there is no past, since no segments."""
    (B, L, D), H, N = x_BLD.shape, self.heads, self.head_width
    C, R, V = self.latent.width, self.latent.slice, self.latent.value or self.head_width
    layer, scale = decoupled(self.layer, self.latent), (N + R) ** -0.5
    latent_norm = self.make_norm('latent_norm') if self.latent.norm else lambda c_BLC: c_BLC

    q_BLHK = self.queries(x_BLD).reshape(B, L, H, N + R)
    c_BLC = latent_norm(project(x_BLD, self.matrix('latent_DC', D, C)))
    slice_BL1R = project(x_BLD, self.matrix('slice_DR', D, R))[:, :, None]
    up_CX = self.matrix('key_up_CX', C, H * N), self.matrix('value_up_CX', C, H * V)

    def expand(c_BLC, slice_BL1R):
      content_BLHN, v_BLHV = (
        project(c_BLC, w_CX).reshape(*c_BLC.shape[:2], H, -1) for w_CX in up_CX
      )
      slice_BLHR = jnp.broadcast_to(slice_BL1R, (*content_BLHN.shape[:3], R))
      return jnp.concatenate([content_BLHN, slice_BLHR], axis=-1), v_BLHV

    null_H = null_logit(self, H)
    if cache is None:
      k_BLHK, v_BLHV = expand(c_BLC, slice_BL1R)
      self.sow('intermediates', 'projected', (x_BLD, q_BLHK, k_BLHK))
      out_BLHV = position_and_attend(
        layer, position, x_BLD, q_BLHK, k_BLHK, v_BLHV, rows_B, self.form, null_H=null_H
      )
    else:
      kept_BL1K = jnp.concatenate([c_BLC[:, :, None], slice_BL1R], axis=-1)
      ups = tuple(w_CX.reshape(C, H, -1).astype(x_BLD.dtype) for w_CX in up_CX)
      out_BLHV, cache = _from_cache(
        cache, self.latent, layer, position, x_BLD, q_BLHK, kept_BL1K, ups, rows_B, scale, null_H
      )
    spread = nn.initializers.normal(self.output_scale * (H * V) ** -0.5)
    output_XD = self.param('output_XD', spread, (H * V, D))
    return project(out_BLHV.reshape(B, L, H * V), output_XD), cache

  def queries(self, x_BLD):
    D, width = x_BLD.shape[-1], self.heads * (self.head_width + self.latent.slice)
    Q = self.latent.query
    if Q is None:
      return project(x_BLD, self.matrix('query_DX', D, width))
    norm = self.make_norm('query_norm')
    c_BLC = norm(project(x_BLD, self.matrix('query_DC', D, Q)))
    return project(c_BLC, self.matrix('query_up_CX', Q, width))

  @nn.nowrap
  def make_norm(self, name: str) -> nn.Module:
    own = self.latent.epsilon
    return make_norm('rms', self.norm_epsilon if own is None else own, name)

  def matrix(self, name: str, rows: int, columns: int):
    return self.param(name, nn.initializers.normal(rows**-0.5), (rows, columns))


def absorbs(latent: Latent, head_width: int, new: int) -> bool:
  """Whether the absorbed form takes fewer products for `new` tokens, per head and key they see.

    absorbed: new (2 C + R);   expanded: C (N + V) + new (N + R + V)
  """
  C, R, N, V = latent.width, latent.slice, head_width, latent.value or head_width
  return new * (2 * C + R) <= C * (N + V) + new * (N + R + V)


def _from_cache(
  cache, latent: Latent, layer: Layer, position, x_BSD, q_BSHK, kept_BS1K, ups, rows_B, scale,
  null_H,
) -> tuple[jax.Array, Any]:
  """(out_BSHV, cache): what new tokens find in the latents that are kept, and in their own."""
  (S, H, K), C, R = q_BSHK.shape[1:], latent.width, latent.slice
  key_up_CHN, value_up_CHV = ups
  far = layer.under(position[1], scale) is not layer
  form = latent.decode
  if form == 'auto':
    form = 'absorbed' if far or absorbs(latent, K - R, S) else 'expanded'
  if form == 'expanded':
    if far:
      raise ValueError(
        "Far keys are seen as they are kept: model.latent.decode = 'expanded' has others. Use "
        "'absorbed'."
      )

    def expand(kept_1YK, _):
      c_YC, slice_YR = kept_1YK[0, :, :C], kept_1YK[0, :, C:]
      content_HYN = jnp.einsum('yc,chn->hyn', c_YC, key_up_CHN)
      slice_HYR = jnp.broadcast_to(slice_YR, (H, *slice_YR.shape))
      return (
        jnp.concatenate([content_HYN, slice_HYR], axis=-1),
        jnp.einsum('yc,chv->hyv', c_YC, value_up_CHV),
      )

    return cache.attend(
      layer, position, x_BSD, q_BSHK, kept_BS1K, None, rows_B, scale=scale, read=expand,
      null_H=null_H,
    )  # fmt: skip
  content_BSHC = jnp.einsum('bshn,chn->bshc', q_BSHK[..., :-R], key_up_CHN)
  q_BSHK = jnp.concatenate([content_BSHC, q_BSHK[..., -R:]], axis=-1)
  # Values are what is kept as a whole: the slice is read with it, and left.
  out_BSHK, cache = cache.attend(
    layer, position, x_BSD, q_BSHK, kept_BS1K, None, rows_B, scale=scale, null_H=null_H
  )
  return jnp.einsum('bshc,chv->bshv', out_BSHK[..., :C], value_up_CHV), cache
