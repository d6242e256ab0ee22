"""Multi-head attention and its grouped forms: projections, a position scheme, the operator.

Letters: B batch, L tokens, H query heads, G key/value heads, K head width, V value width, D model
width; X rows of W keys: B and L themselves, or short rows of a segment and its memory.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from posjax import recurrence, remapping
from posjax.around import Around
from posjax.attend import Choice, Logits, Mask, Rows, attend, choose
from posjax.extension import spectra
from posjax.linear import affine
from posjax.norm import make_norm, rms_normalise
from posjax.positions import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
  """How one layer knows positions, which keys its queries see, and what it does with the rest.

  mlp: of posjax/mlp.py; None: the model's.
  null_logit: each head learns a logit that joins its softmax and has no value, so that it may look
    at nothing (gpt-oss, OpenAI 2025, arXiv:2508.10925; its code says sinks). It is not scaled,
    and starts at 0.
  qk_norm_after: epsilon of an RMS norm without scale, of each head of queries and keys, after the
    scheme has acted on them (Llama 4). None: there is none.
  cap: logits are cap tanh(logit / cap), after the scheme and before the mask (Gemma 2). None: as
    they are.
  extended: whether a context extension changes the scheme's spectrum here, too.
  segment, memory: rows are read in segments of `segment` tokens; a query sees its own segment and
    the `memory` tokens before it, to which no gradient flows (Dai et al. 2019, arXiv:1901.02860,
    sec. 3.2). As the memory of a layer is its own input of one segment before, what a query can
    know reaches back `memory` tokens per layer. None: rows in one piece.
  """

  scheme: Scheme
  mask: Mask = dataclasses.field(default_factory=Mask)
  extended: bool = True
  segment: int | None = None
  memory: int = 0
  mlp: str | None = None
  cap: float | None = None
  null_logit: bool = False
  qk_norm_after: float | None = None

  def __post_init__(self):
    if self.qk_norm_after is not None and not self.qk_norm_after >= 0:
      raise ValueError(
        f'qk_norm_after = {self.qk_norm_after} is added to a mean square. Use 0 or more, or None.'
      )
    if self.cap is not None and not self.cap > 0:
      raise ValueError(f'Logits capped at {self.cap} are no logits. Use a cap above 0, or None.')
    if self.segment is None:
      if self.memory:
        raise ValueError(
          f'A memory of {self.memory} tokens belongs to segments. Set segment, or memory = 0.'
        )
      return
    if self.segment < 1 or self.memory < 0:
      raise ValueError(
        f'Segments of {self.segment} tokens with a memory of {self.memory} cannot be. '
        'Use segment >= 1 and memory >= 0.'
      )
    if self.mask.counts_from_begin:
      raise ValueError(
        'Segments with a memory and sinks or chunks both cut a row. Use one of them.'
      )

  def under(self, spectrum, scale: float) -> 'Layer':
    """The layer as its attention has it: queries and keys normalised; and as an extension has it,
    with far keys seen from other places, where it says so."""
    if self.qk_norm_after is not None:
      scheme = Normalised(scheme=self.scheme, epsilon=self.qk_norm_after)
      layer = dataclasses.replace(self, scheme=scheme, qk_norm_after=None)
      return layer.under(spectrum, scale)
    far = remapping.far_of(spectrum)
    if far is None:
      return self
    scheme = remapping.Remapped(scheme=self.scheme, scale=scale)
    mask = dict(far.mask)
    if 'window' in mask and self.mask.window is not None:  # what the layer does not see stays so
      mask['window'] = min(mask['window'], self.mask.window)
    return dataclasses.replace(self, scheme=scheme, mask=dataclasses.replace(self.mask, **mask))

  def short_rows(self, vectors_BL, past_BL, rows_B: Rows):
    """Each segment after its memory (posjax/recurrence.py): vectors and rows [X, W, ...]."""
    return recurrence.short_rows(
      vectors_BL, past_BL, rows_B, segment=self.segment, memory=self.memory
    )

  @property
  def unknown(self) -> str | None:
    """What no fused kernel knows of."""
    if self.segment is not None:
      return 'memory of segments'
    if self.cap is not None:
      return 'capped logits'
    if self.null_logit:
      return 'null logit'
    return 'sinks' if self.mask.sinks else 'chunks' if self.mask.chunk is not None else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalised(Around):
  """`scheme`, whose queries and keys are normalised: x / sqrt(mean(x^2) + epsilon) of each head.

  What scaled them is undone, by a scheme or an extension, but for a factor by length.

  Raises ValueError for a scheme that computes logits anew, from keys as projected.
  """

  epsilon: float

  def __post_init__(self):
    if self.scheme.replaces_logits:
      raise ValueError(
        f'{type(self.scheme).__name__} computes logits from keys as projected, which '
        'model.qk_norm_after would not reach. Use model.qk_norm, or another scheme.'
      )

  def query(self, params, spectrum, q_LHK, pos_L):
    q_LHK = self.scheme.query(params, spectrum, q_LHK, pos_L)
    return sharpened(rms_normalise(q_LHK, 1.0, self.epsilon), spectrum, pos_L)

  def key(self, params, spectrum, k_LGK, pos_L):
    k_LGK = self.scheme.key(params, spectrum, k_LGK, pos_L)
    return rms_normalise(k_LGK, 1.0, self.epsilon)


class Attention(nn.Module):
  """Multi-head (G = H), grouped-query (1 < G < H) or multi-query (G = 1) attention.

  output_scale: of the output matrix's initial deviation, 1/sqrt(H K).

  Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2; Shazeer 2019, arXiv:1911.02150; Ainslie et al.
  2023, arXiv:2305.13245. Logits are scaled by 1/sqrt(K).

  qk_norm: RMS norm of each 'head' of queries and keys, or of the 'whole' of them.
  biases: 'qkv' adds one to queries, keys and values, 'output' to what is given back.
  """

  layer: Layer
  heads: int
  kv_heads: int
  head_width: int
  qk_norm: str = 'none'
  norm_epsilon: float | None = None
  biases: tuple[str, ...] = ()
  form: str = 'auto'
  output_scale: float = 1.0

  @nn.compact
  def __call__(self, x_BLD, position, rows_B: Rows, past_BLD=None, cache=None):
    """(out_BLD, cache). position: the scheme's (parameters, spectrum); rows_B: positions, segments.

    past_BLD: with segments, the same tokens as those after theirs see them.
    cache: what is kept of the tokens before these (posjax/cache.py); None: there are none.
    """
    D, H, G, K = x_BLD.shape[-1], self.heads, self.kv_heads, self.head_width
    near = nn.initializers.normal(D**-0.5)
    query_DX = self.param('query_DX', near, (D, H * K))
    key_DX = self.param('key_DX', near, (D, G * K))
    value_DX = self.param('value_DX', near, (D, G * K))
    zeros = nn.initializers.zeros
    query_bias_X, key_bias_X, value_bias_X = (
      self.param(f'{name}_bias_X', zeros, (heads * K,)) if 'qkv' in self.biases else None
      for name, heads in (('query', H), ('key', G), ('value', G))
    )
    split = lambda y_BLX, heads: y_BLX.reshape(*y_BLX.shape[:2], heads, K)

    def normed(name):
      if self.qk_norm == 'none':
        return split
      norm = make_norm('rms', self.norm_epsilon, name)
      if self.qk_norm == 'whole':
        return lambda y_BLX, heads: split(norm(y_BLX), heads)
      return lambda y_BLX, heads: norm(split(y_BLX, heads))

    keys = normed('key_norm')
    q_BLHK = normed('query_norm')(affine(x_BLD, query_DX, query_bias_X), H)

    def keys_and_values(x_BLD):
      k_BLGK = keys(affine(x_BLD, key_DX, key_bias_X), G)
      return k_BLGK, split(affine(x_BLD, value_DX, value_bias_X), G)

    past = None
    if past_BLD is not None:
      past = past_BLD, q_BLHK, *keys_and_values(past_BLD)
    k_BLGK, v_BLGK = keys_and_values(x_BLD)
    # Kept for whoever applies the model with mutable='intermediates'; otherwise nothing happens.
    self.sow('intermediates', 'projected', (x_BLD, q_BLHK, k_BLGK))
    vectors = x_BLD, q_BLHK, k_BLGK, v_BLGK
    null_H = null_logit(self, H)
    if cache is None:
      out_BLHK = position_and_attend(
        self.layer, position, *vectors, rows_B, self.form, past, null_H
      )
    else:
      out_BLHK, cache = cache.attend(
        self.layer, position, *vectors, rows_B, scale=K**-0.5, null_H=null_H
      )
    spread = nn.initializers.normal(self.output_scale * (H * K) ** -0.5)
    output_XD = self.param('output_XD', spread, (H * K, D))
    output_bias_D = self.param('output_bias_D', zeros, (D,)) if 'output' in self.biases else None
    return affine(out_BLHK.reshape(*x_BLD.shape[:2], H * K), output_XD, output_bias_D), cache


def null_logit(module: nn.Module, heads: int):
  """null_H, a parameter of an attention module whose layer has it, else None."""
  if not module.layer.null_logit:
    return None
  return module.param('null_H', nn.initializers.zeros, (heads,))


def position_and_attend(
  layer: Layer, position, x_BLD, q_BLHK, k_BLGK, v_BLGV, rows_B: Rows, form: str, past=None,
  null_H=None,
):  # fmt: skip
  """Applies a scheme's hooks and attends: out_BLHV.

  past: x, q, k and v again, as segments see those before them (`Layer.segment`); q is not read.
  null_H: None, also where the layer has it, is the same attention among keys alone.
  """
  spectrum, scale = position[1], q_BLHK.shape[-1] ** -0.5
  packed = rows_B.segment_L is not None
  choice = choose_form(form, layer, position, x_BLD[0], q_BLHK[0], k_BLGK[0], packed=packed)
  layer = layer.under(spectrum, scale)
  scheme = layer.scheme
  q_XLHK, k_XWGK, query_X, key_X = positioned(
    layer, position, x_BLD, q_BLHK, k_BLGK, rows_B, past and past[:3],
    columns=choice.fused and scheme.scores,
  )  # fmt: skip
  v_XWGV = v_BLGV if past is None else layer.short_rows(v_BLGV, past[3], rows_B)[0]
  logits = Logits(scale=scale, mask=layer.mask)
  if not choice.fused:
    logits = scored(logits, scheme, layer.cap)
  out_XLHV = attend(
    q_XLHK,
    k_XWGK,
    v_XWGV,
    query_X,
    key_X,
    logits,
    scheme.temperature(spectrum, q_BLHK.shape[2]),
    () if logits.plain else position,
    choice.form,
    null_H,
  )
  return out_XLHV if past is None else recurrence.whole(out_XLHV, *q_BLHK.shape[:2])


def positioned(
  layer: Layer, position, x_BLD, q_BLHK, k_BLGK, rows_B: Rows, past=None, *, columns: bool
):
  """Queries and keys after a scheme's hooks, and their rows: q_XLHK, k_XWGK, query_X, key_X.

  layer: as `Layer.under` its extension. past: x, q and k, as of `position_and_attend`.
  """
  scale = q_BLHK.shape[-1] ** -0.5
  vectors, rows_X = (x_BLD, q_BLHK, k_BLGK), rows_B
  if past is not None:
    # Hooks see short rows: whatever they sum up along a row must not reach into the past.
    vectors, rows_X = layer.short_rows(vectors, past, rows_B)
  one = lambda x_LD, q_LHK, k_LGK, rows: encoded(
    layer.scheme, position, x_LD, q_LHK, k_LGK, rows, scale, columns=columns
  )
  batched = jax.vmap(one, in_axes=(0, 0, 0, rows_X.axes))
  q_XLHK, k_XWGK, *both = batched(*vectors, rows_X)
  query_X, key_X = (dataclasses.replace(rows, index_L=rows_X.index_L) for rows in both)
  if past is not None:
    q_XLHK, query_X = recurrence.queries(q_XLHK, query_X, memory=layer.memory)
  return q_XLHK, k_XWGK, query_X, key_X


@dataclasses.dataclass(frozen=True)
class Capped:
  """A score that goes on to cap tanh(logit / cap)."""

  cap: float
  score: Callable | None

  def __call__(self, params, spectrum, s_HIJ, tile):
    if self.score is not None:
      s_HIJ = self.score(params, spectrum, s_HIJ, tile)
    return self.cap * jnp.tanh(s_HIJ / self.cap)


def scored(logits: Logits, scheme: Scheme, cap: float | None = None) -> Logits:
  """With what the scheme does to logits and weights; `operands` are its (parameters, spectrum)."""
  score = scheme.score if scheme.overrides('score') else None
  return dataclasses.replace(
    logits,
    score=score if cap is None else Capped(cap, score),
    table=scheme.table if scheme.overrides('table') else None,
    start=scheme.start if scheme.walks else None,
    walk=scheme.walk if scheme.walks else None,
    prepare=scheme.prepare if scheme.overrides('prepare') else None,
    read=scheme.read if scheme.reads else None,
  )


def encoded(scheme: Scheme, position, x_LD, q_LHK, k_LGK, rows: Rows, scale, *, columns: bool):
  """One sequence after a scheme's hooks: queries, keys, and their rows with features.

  columns: append the scheme's to queries and keys.
  """
  params, spectrum = position
  q_LHK = sharpened(q_LHK, spectrum, rows.pos_L)
  query_features, key_features = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows)
  q_LHK = scheme.query(params, spectrum, q_LHK, rows.pos_L)
  k_LGK = scheme.key(params, spectrum, k_LGK, rows.pos_L)
  query = dataclasses.replace(rows, features_L=query_features)
  key = dataclasses.replace(rows, features_L=key_features)
  if columns:
    q_LHC, k_LGC = _columns(scheme, position, q_LHK, k_LGK, query, key, scale)
    k_LGC = jnp.broadcast_to(k_LGC, (*k_LGK.shape[:2], k_LGC.shape[-1]))
    q_LHK = jnp.concatenate([q_LHK, q_LHC.astype(q_LHK.dtype)], axis=-1)
    k_LGK = jnp.concatenate([k_LGK, k_LGC.astype(k_LGK.dtype)], axis=-1)
  return q_LHK, k_LGK, query, key


def sharpened(q_LHK, spectrum, pos_L):
  """q max(1, ln(pos + 1) / log_length), where an extension asks for it."""
  lengths = [one.log_length for one in spectra(spectrum) if one.log_length is not None]
  if not lengths:
    return q_LHK
  factor_L = jnp.maximum(1, jnp.log1p(pos_L.astype(jnp.float32)) / lengths[0])
  return (q_LHK * factor_L[:, None, None]).astype(q_LHK.dtype)


def _columns(scheme, position, q_LHK, k_LGK, query, key, scale):
  return scheme.columns(
    *position,
    query,
    key,
    heads=q_LHK.shape[1],
    kv_heads=k_LGK.shape[1],
    scale=scale,
    dtype=q_LHK.dtype,
  )


def choose_form(
  form: str, layer: Layer, position, x_LD, q_LHK, k_LGK, *, packed: bool
) -> Choice:
  """The form of attention for arrays of these shapes and types (jax.ShapeDtypeStruct will do)."""
  scale = q_LHK.shape[-1] ** -0.5
  layer = layer.under(position[1], scale)
  scheme = layer.scheme
  rows = Rows(index_L=jnp.arange(len(x_LD)), pos_L=jnp.arange(len(x_LD)))

  def widths(position, x_LD, q_LHK, k_LGK):
    q_LHK, k_LGK, query, key = encoded(
      scheme, position, x_LD, q_LHK, k_LGK, rows, scale, columns=False
    )
    if not scheme.factorises:
      return q_LHK, None
    return q_LHK, _columns(scheme, position, q_LHK, k_LGK, query, key, scale)[0]

  query, columns = jax.eval_shape(widths, position, x_LD, q_LHK, k_LGK)
  extra = columns.shape[-1] if columns is not None else None if scheme.scores else 0
  return choose(
    form,
    columns=extra,
    packed=packed,
    length=len(query),
    width=query.shape[-1],
    dtype=query.dtype,
    unknown=layer.unknown,
  )
