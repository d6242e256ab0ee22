"""What an attention form is told besides vectors: rows, tiles of logits, and which keys are seen.

Axes: B batch, L rows, I/J query/key rows of a tile, H heads, M = I + J.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from posjax.attend.diagonals import spread

Array = jax.Array
HIDDEN = -1e30  # not -inf: a row whose first tile is all hidden must not compute inf - inf


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['index_L', 'pos_L', 'segment_L', 'begin_L', 'features_L'],
  meta_fields=['contiguous'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """What attention knows of one sequence's queries, or keys, apart from their vectors.

  index_L: place in the sequence; decides causality and windows.
  pos_L: the position a scheme works with, in tokens.
  segment_L: document of a packed row; tokens see their own document only. None: one document.
  begin_L: index of the first token of each token's document, from which sinks and chunks count;
    None where all begin at index 0, or nobody has looked yet (`with_begin`).
  features_L: pytree of arrays [L, ...] that a scheme computed from content (`Scheme.features`).
  contiguous: promises that pos_L rises by one per token within each document, so that distances
    are those of index_L: one table of biases for the whole batch instead of one per sequence.
  """

  index_L: Array
  pos_L: Array
  segment_L: Array | None = None
  begin_L: Array | None = None
  features_L: Any = None
  contiguous: bool = False

  def with_begin(self) -> 'Rows':
    """Rows that start at index 0, knowing where their documents begin; rows of a batch, too."""
    if self.begin_L is not None or self.segment_L is None:
      return self
    first = self.segment_L != jnp.roll(self.segment_L, 1, axis=-1)
    begin_L = jnp.where(first, self.index_L, 0)
    return dataclasses.replace(self, begin_L=lax.cummax(begin_L, axis=begin_L.ndim - 1))

  def with_begin_of(self, key: 'Rows') -> 'Rows':
    """Queries that may start anywhere among `key`, whole rows numbered from 0."""
    begin_L = key.with_begin().begin_L
    if self.begin_L is not None or begin_L is None:
      return self
    return dataclasses.replace(self, begin_L=begin_L[self.index_L])

  @property
  def place_L(self) -> Array:
    """Place within the document, of rows that know where theirs begin."""
    return self.index_L if self.begin_L is None else self.index_L - self.begin_L

  def cut(self, start, size: int) -> 'Rows':
    """Rows [start, start + size)."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), self)

  @property
  def axes(self) -> 'Rows':
    """Of a batch, for jax.vmap: a leading one in every array, but in an index_L that all share."""
    shared = None if self.index_L.ndim == 1 else 0
    return dataclasses.replace(jax.tree.map(lambda _: 0, self), index_L=shared)

  def padded(self, size: int) -> 'Rows':
    """`size` rows, the new ones a document of their own: nobody else sees them."""
    extra = size - len(self.index_L)
    if not extra:
      return self

    def grow(x, **kwargs):
      return jnp.pad(x, [(0, extra)] + [(0, 0)] * (x.ndim - 1), **kwargs)

    segment_L = jnp.zeros_like(self.pos_L) if self.segment_L is None else self.segment_L
    return dataclasses.replace(
      self,
      index_L=jnp.concatenate([self.index_L, self.index_L[-1] + 1 + jnp.arange(extra)]),
      pos_L=grow(self.pos_L),
      segment_L=grow(segment_L, constant_values=-1),
      begin_L=None if self.begin_L is None else grow(self.begin_L),
      features_L=jax.tree.map(grow, self.features_L),
    )


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['query', 'key', 'table_M'], meta_fields=['mask']
)
@dataclasses.dataclass(frozen=True)
class Tile:
  """What a score may know of the logits s_HIJ it is given: their rows, and the mask.

  table_M: where positions are contiguous, the rows of `Logits.table` for `distance_M`.
  """

  query: Rows
  key: Rows
  mask: 'Mask | None' = None
  table_M: Any = None

  @property
  def contiguous(self) -> bool:
    return self.query.contiguous and self.key.contiguous

  @property
  def distance_IJ(self) -> Array:
    """Query position minus key position, in tokens; negative where the key lies ahead."""
    if self.contiguous:
      return self.query.index_L[:, None] - self.key.index_L[None, :]
    return self.query.pos_L[:, None] - self.key.pos_L[None, :]

  @property
  def distance_M(self) -> Array:
    """Where positions are contiguous: the distance along each of the I + J - 1 diagonals, in
    tokens, and one more; the largest first, which is that of the last query to the first key."""
    I, J = len(self.query.index_L), len(self.key.index_L)
    return self.query.index_L[I - 1] - self.key.index_L[0] - jnp.arange(I + J)

  @property
  def visible_IJ(self) -> Array:
    """True where the query sees the key."""
    return (self.mask or Mask()).visible(self)

  def by_distance(self, bias: Callable[[Array], Array]) -> Array:
    """bias_HIJ from `bias`, a function of distances r_X -> bias_HX of any shape X.

    Where positions are contiguous a tile holds I + J - 1 distances, not I x J: `bias` is evaluated
    on these and spread along the diagonals, and its derivative sums along them.
    """
    if not self.contiguous:
      return bias(self.distance_IJ)
    I, J = len(self.query.index_L), len(self.key.index_L)
    return spread(bias(self.distance_M[:-1]), I, J)


def weights(s_HIJ: Array, null_H: Array | None = None) -> Array:
  """p_HIJ = softmax_j(s[h,i,j]), in which the logit null[h] joins where there is one: it has no
  value, so that the weights of a row sum to less than 1."""
  if null_H is None:
    return jax.nn.softmax(s_HIJ, axis=-1)
  null_H11 = null_H[:, None, None]
  top_HI1 = lax.stop_gradient(jnp.maximum(s_HIJ.max(-1, keepdims=True), null_H11))
  p_HIJ = jnp.exp(s_HIJ - top_HI1)
  return p_HIJ / (p_HIJ.sum(-1, keepdims=True) + jnp.exp(null_H11 - top_HI1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """Which keys a query sees; packed documents and padding come on top, as segments of `Rows`.

  causal: none that lie ahead.
  window: the nearest `window` keys, the query's own included; None sees all.
  sinks: and, beyond the window, the first `sinks` keys of the document (Xiao et al. 2023,
    arXiv:2309.17453). Packed rows then visit every tile before the query's.
  chunk: only keys of the query's own chunk of `chunk` tokens, counted from the start of the
    document (Llama 4); None does not cut.
  memory: and the `memory` keys before that chunk.
  """

  causal: bool = True
  window: int | None = None
  sinks: int = 0
  chunk: int | None = None
  memory: int = 0

  def __post_init__(self):
    if self.window is not None and self.window < 1:
      raise ValueError(
        f'A window of {self.window} keys leaves a query nothing to see. '
        'Give window >= 1 (its own key counts), or None for all keys.'
      )
    if self.chunk is not None and self.chunk < 1:
      raise ValueError(
        f'A chunk of {self.chunk} tokens leaves a query nothing to see. '
        'Give chunk >= 1, or None for rows in one piece.'
      )
    if self.sinks < 0 or (self.sinks and self.window is None):
      raise ValueError(
        f'{self.sinks} sinks without a window: every key is seen already. '
        'Give sinks >= 0, and a window with them.'
      )
    if self.sinks and self.chunk is not None:
      raise ValueError(
        f'{self.sinks} sinks and chunks of {self.chunk}: the first keys lie outside all chunks but '
        'one. Use either.'
      )
    if self.memory < 0 or (self.memory and self.chunk is None):
      raise ValueError(
        f'A memory of {self.memory} keys lies before a chunk. '
        'Give memory >= 0, and a chunk with it.'
      )
    for name in ('window', 'chunk'):
      if getattr(self, name) is not None and not self.causal:
        raise ValueError(
          f'A {name} of {getattr(self, name)} keys is defined for causal attention only. '
          f'Use Mask(causal=True, {name}=...), or no {name}.'
        )

  @property
  def counts_from_begin(self) -> bool:
    """Whether `Rows.begin_L` matters."""
    return bool(self.sinks) or self.chunk is not None

  def visible(self, tile: Tile) -> Array:
    """visible_IJ, True where the query sees the key."""
    query, key = tile.query, tile.key
    i_I1, j_1J = query.index_L[:, None], key.index_L[None, :]
    visible_IJ = (j_1J <= i_I1) if self.causal else jnp.ones((i_I1.size, j_1J.size), bool)
    if self.window is not None:
      near_IJ = j_1J > i_I1 - self.window
      if self.sinks:
        near_IJ |= j_1J < i_I1 - query.place_L[:, None] + self.sinks
      visible_IJ &= near_IJ
    if self.chunk is not None:
      visible_IJ &= j_1J >= i_I1 - (query.place_L % self.chunk)[:, None] - self.memory
    if query.segment_L is not None:
      visible_IJ &= query.segment_L[:, None] == key.segment_L[None, :]
    return visible_IJ

  def key_tiles(self, query_I: Rows, J: int, count: int) -> tuple[Any, Callable[[Any], Any]]:
    """(N, tile): of `count` key tiles of J rows the queries may see tile(0) ... tile(N - 1) only.

    Newest first: a state that counts along the keys starts at the query (`Logits.walk`).
    """
    first, last = query_I.index_L[0], query_I.index_L[-1]
    high = jnp.minimum(last // J + 1, count) if self.causal else count
    oldest = 0
    if self.window is not None:
      oldest = jnp.maximum(oldest, first - self.window + 1)
    if self.chunk is not None:
      # With documents that begin anywhere, whichever the query is in: a batch has one range.
      back = first % self.chunk if query_I.begin_L is None else self.chunk - 1
      oldest = jnp.maximum(oldest, first - back - self.memory)
    near = high - oldest // J
    if not self.sinks:
      return near, lambda n: high - 1 - n
    if query_I.begin_L is not None:  # a document, and its sinks, may begin anywhere
      return high, lambda n: high - 1 - n
    first_ones = jnp.minimum(-(-self.sinks // J), high - near)
    return near + first_ones, lambda n: jnp.where(n < near, high, near + first_ones) - 1 - n


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits:
  """From raw products q . k to masked logits: all of a tile but its matmuls. Static and hashable.

    logit = temperature * score(scale * q . k), hidden where the mask says so

  score: `score(*operands, s_HIJ, tile) -> s_HIJ` in float32; None leaves logits alone.
  walk: a score that carries a state from newer keys to older: `walk(*operands, s_HIJ, tile, state)
    -> (s_HIJ, state)`, before `score`. A tile's state is what all newer keys left, and
    `start(*operands, query)` makes the first one: a pytree of float32 arrays.
  table: what a score needs of distances, where positions are contiguous: `table(*operands, r_R)`
    makes a pytree of arrays [R, ...] once for all tiles and sequences, and each tile gets its own
    part (`Tile.table_M`).
  prepare: features of keys for tiles of J, from features as they are: `prepare(*operands, key, J)`.
  read: what each query reads beside values: `read(*operands, p_HIJ, tile) -> out_HIV`, linear in
    the weights p, which are those of the tile up to a factor per row.
  """

  scale: float
  mask: Mask = Mask()
  score: Callable[..., Array] | None = None
  table: Callable[..., Any] | None = None
  start: Callable[..., Any] | None = None
  walk: Callable[..., tuple[Array, Any]] | None = None
  prepare: Callable[..., Any] | None = None
  read: Callable[..., Array] | None = None

  @property
  def plain(self) -> bool:
    """Whether a kernel that knows no score computes these logits."""
    return self.score is None and self.walk is None and self.read is None

  def tabled(self, operands, query: Rows, key: Rows):
    """The table for these rows: from the last query's distance to the first key downwards, as many
    as there are rows in all; None where there is none."""
    tile = Tile(query, key)
    return self.table(*operands, tile.distance_M) if self.table and tile.contiguous else None

  def begin(self, operands, query: Rows):
    """The state before the newest key; without a walk, none."""
    return () if self.start is None else self.start(*operands, query)

  def prepared(self, operands, key: Rows, J: int) -> Rows:
    """Keys whose features are those for tiles of J; their number is a multiple of it."""
    if self.prepare is None:
      return key
    return dataclasses.replace(key, features_L=self.prepare(*operands, key, J))

  def __call__(self, temperature, operands, raw_HIJ: Array, tile: Tile, state=()):
    """(masked s_HIJ, state). temperature: a number, one per head, or None: queries carry it."""
    s_HIJ = raw_HIJ * self.scale
    if self.walk is not None:
      s_HIJ, state = self.walk(*operands, s_HIJ, tile, state)
    if self.score is not None:
      s_HIJ = self.score(*operands, s_HIJ, tile)
    if temperature is not None:
      s_HIJ *= jnp.asarray(temperature)[..., None, None]
    return jnp.where(tile.visible_IJ, s_HIJ, HIDDEN), state
