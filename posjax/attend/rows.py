"""What an attention form is told besides vectors: rows, tiles of logits, and which keys are seen.

Axes: B batch, L rows, I/J query/key rows of a tile, H heads, N = I + J - 1 diagonals of a tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
HIDDEN = -1e30  # not -inf: a row whose first tile is all hidden must not compute inf - inf


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['index_L', 'pos_L', 'segment_L', 'features_L'],
  meta_fields=['contiguous'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """What attention knows of one sequence's queries, or keys, apart from their vectors.

  index_L: place in the sequence; decides causality and windows.
  pos_L: the position a scheme works with, in tokens.
  segment_L: document of a packed row; tokens see their own document only. None: one document.
  features_L: pytree of arrays [L, ...] that a scheme computed from content (`Scheme.features`).
  contiguous: promises that pos_L rises by one per token within each document, so that distances
    are those of index_L: one table of biases for the whole batch instead of one per sequence.
  """

  index_L: Array
  pos_L: Array
  segment_L: Array | None = None
  features_L: Any = None
  contiguous: bool = False

  def cut(self, start, size: int) -> 'Rows':
    """Rows [start, start + size)."""
    return jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), self)

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
      features_L=jax.tree.map(grow, self.features_L),
    )


@functools.partial(jax.tree_util.register_dataclass, data_fields=['query', 'key'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Tile:
  """What a score may know of the logits s_HIJ it is given: the rows they belong to."""

  query: Rows
  key: Rows

  @property
  def contiguous(self) -> bool:
    return self.query.contiguous and self.key.contiguous

  @property
  def distance_IJ(self) -> Array:
    """Query position minus key position, in tokens; negative where the key lies ahead."""
    if self.contiguous:
      return self.query.index_L[:, None] - self.key.index_L[None, :]
    return self.query.pos_L[:, None] - self.key.pos_L[None, :]

  def by_distance(self, bias: Callable[[Array], Array]) -> Array:
    """bias_HIJ from `bias`, a function of distances r_X -> bias_HX of any shape X.

    Where positions are contiguous a tile holds I + J - 1 distances, not I x J: `bias` is evaluated
    on these and spread along the diagonals, and its derivative sums along them.
    """
    if not self.contiguous:
      return bias(self.distance_IJ)
    I, J = len(self.query.index_L), len(self.key.index_L)
    largest = self.query.index_L[I - 1] - self.key.index_L[0]
    return spread(bias(largest - jnp.arange(I + J - 1)), I, J)


def spread(bias_HN: Array, I: int, J: int) -> Array:
  """bias_HIJ[h, i, j] = bias_HN[h, I - 1 - i + j]: one value per diagonal, and no gather.

  R rows are written by reading rows of M values as rows of M - 1: each slips by one, the pattern of
  diagonals. The other rows are windows of these, R places further each time: most of the tile, and
  of its derivative, is plain copies and sums.
  """
  H, N = bias_HN.shape
  R = math.gcd(I, 16)
  M = 1 << N.bit_length()  # above N; index arithmetic with shifts in place of divisions
  rows_HRM = jnp.broadcast_to(jnp.pad(bias_HN, [(0, 0), (0, M - N)])[:, None], (H, R, M))
  slipped_HX = rows_HRM.reshape(H, R * M)[:, R - 1 : R - 1 + R * (M - 1)]
  slipped_HRM = slipped_HX.reshape(H, R, M - 1)
  windows = [slipped_HRM[:, :, I - R - i : I - R - i + J] for i in range(0, I, R)]
  return jnp.concatenate(windows, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
  """Which keys a query sees; packed documents and padding come on top, as segments of `Rows`.

  causal: none that lie ahead.
  window: the nearest `window` keys, the query's own included; None sees all.
  """

  causal: bool = True
  window: int | None = None

  def __post_init__(self):
    if self.window is not None and self.window < 1:
      raise ValueError(
        f'A window of {self.window} keys leaves a query nothing to see. '
        'Give window >= 1 (its own key counts), or None for all keys.'
      )
    if self.window is not None and not self.causal:
      raise ValueError(
        f'A window of {self.window} keys is defined for causal attention only. '
        'Use Mask(causal=True, window=...), or no window.'
      )

  def visible(self, tile: Tile) -> Array:
    """visible_IJ, True where the query sees the key."""
    i_I1, j_1J = tile.query.index_L[:, None], tile.key.index_L[None, :]
    visible_IJ = (j_1J <= i_I1) if self.causal else jnp.ones((i_I1.size, j_1J.size), bool)
    if self.window is not None:
      visible_IJ &= j_1J > i_I1 - self.window
    if tile.query.segment_L is not None:
      visible_IJ &= tile.query.segment_L[:, None] == tile.key.segment_L[None, :]
    return visible_IJ

  def key_tiles(self, query_I: Rows, J: int, count: int):
    """Range [low, high) of those of the `count` key tiles of J rows that the queries may see."""
    first, last = query_I.index_L[0], query_I.index_L[-1]
    low = 0 if self.window is None else jnp.maximum(0, first - self.window + 1) // J
    high = jnp.minimum(last // J + 1, count) if self.causal else count
    return low, high


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logits:
  """From raw products q . k to masked logits: all of a tile but its matmuls. Static and hashable.

    logit = temperature * score(scale * q . k), hidden where the mask says so

  score: `score(*operands, s_HIJ, tile) -> s_HIJ` in float32; None leaves logits alone.
  temperature: None where the queries carry it already.
  """

  scale: float
  mask: Mask = Mask()
  score: Callable[..., Array] | None = None

  def __call__(self, temperature, operands, raw_HIJ: Array, tile: Tile) -> Array:
    s_HIJ = raw_HIJ * self.scale
    if self.score is not None:
      s_HIJ = self.score(*operands, s_HIJ, tile)
    if temperature is not None:
      s_HIJ *= temperature
    return jnp.where(self.mask.visible(tile), s_HIJ, HIDDEN)
