"""Far keys seen from other places than their own, so that no distance is new to the model.

A `Far` says which pairs of query and key are far, and where both then stand. A pair that is near
stays as it is. Keys and queries are turned again for each kind of far pair, in memory linear in
length, and logits are computed again in tiles that have such pairs.

Letters: m position of a query, n of a key, L tokens, I/J query/key rows of a tile.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp


class Far:
  """Pairs of kind 0 are near; those of kind c = 1, 2, .. stand at places(pos_L)[c - 1]."""

  def places(self, pos_L) -> list[tuple[jax.Array, jax.Array]]:
    """For each kind: where tokens at pos_L stand as queries, and as keys; float32, in tokens."""
    raise NotImplementedError

  def kind(self, pos_I, pos_J) -> jax.Array:
    """kind_IJ of each pair."""
    raise NotImplementedError

  @property
  def mask(self) -> dict[str, int]:
    """What the method sets of the layer's mask."""
    return {}


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['window', 'group'], meta_fields=['whole']
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouped(Far):
  """Pairs `window` tokens apart and more: their distance grows by 1 in `group` tokens.

    query at m / group + window - window / group, key at n / group    (whole: each / rounded down)

  group: inf holds all of them at `window`.
  """

  window: float | jax.Array
  group: float | jax.Array
  whole: bool

  def places(self, pos_L):
    shrunk = lambda x: x // self.group if self.whole else x / self.group
    window, key_L = jnp.float32(self.window), shrunk(jnp.float32(pos_L))
    return [(key_L + window - shrunk(window), key_L)]

  def kind(self, pos_I, pos_J):
    return jnp.int32(pos_I[:, None] - pos_J[None, :] >= self.window)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['chunk', 'reach'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunked(Far):
  """Pairs of different chunks of `chunk` tokens; keys stand at their place in their chunk.

    next chunk:     query at min(m mod chunk + chunk, reach)
    farther chunks: query at min(2 chunk - 1, reach)
  """

  chunk: float | jax.Array
  reach: float | jax.Array

  def places(self, pos_L):
    key_L = jnp.mod(jnp.float32(pos_L), self.chunk)
    farther_L = jnp.full(key_L.shape, jnp.minimum(2 * self.chunk - 1.0, self.reach))
    return [(jnp.minimum(key_L + self.chunk, self.reach), key_L), (farther_L, key_L)]

  def kind(self, pos_I, pos_J):
    chunk_I, chunk_J = (jnp.float32(pos) // self.chunk for pos in (pos_I, pos_J))
    return jnp.clip(jnp.int32(chunk_I[:, None] - chunk_J[None, :]), 0, 2)


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=[], meta_fields=['window', 'sinks']
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots(Far):
  """A window and the first keys, numbered as slots of a cache that holds no others."""

  window: int
  sinks: int

  def places(self, pos_L):
    pos_L = jnp.float32(pos_L)
    return [(jnp.minimum(pos_L, self.sinks + self.window - 1.0), pos_L)]

  def kind(self, pos_I, pos_J):
    sink_IJ = (pos_J < self.sinks)[None, :] & (pos_I[:, None] - pos_J[None, :] >= self.window)
    return jnp.int32(sink_IJ)

  @property
  def mask(self):
    return {'window': self.window, 'sinks': self.sinks}


def rerope(spectrum, *, window: int, group: float = math.inf):
  """ReRoPE: no key is farther than `window` tokens (Su 2023, kexue.fm/archives/9708); with a
  finite `group`, its leaky form (archives/9731): farther ones are, by 1 / group of a token each.

    distance r < window: r;    else: window + (r - window) / group

  The authors multiply queries beyond the trained length by ln(m + 1) / ln(length), too: add
  `log_n`. Raises ValueError if window < 1 or group < 1.
  """
  _at_least('rerope', 1, window=window, group=group)
  return _seen(spectrum, Grouped(window=window, group=group, whole=False))


def self_extend(spectrum, *, window: int, group: int):
  """Self-Extend: far keys and their queries stand on the floors of position / group (Jin et al.
  2024, arXiv:2401.01325, sec. 3.2).

    distance r < window: r;    else: floor(m / group) - floor(n / group) + window - window / group

  A model trained on L tokens meets no new distance in (L - window) group + window. The authors'
  code divides window / group in prefill and rounds it down in decoding; here group divides window,
  so that both agree. Raises ValueError where it does not.
  """
  _at_least('self_extend', 1, window=window, group=group)
  if window % group:
    raise ValueError(
      f"Extension 'self_extend' needs whole groups in its window, but {group} does not divide "
      f'{window}. Use window = {max(1, round(window / group)) * group}.'
    )
  return _seen(spectrum, Grouped(window=window, group=group, whole=True))


def dual_chunk(
  spectrum, *, trained_length: int, reach: int | None = None, local: int | None = None
):
  """Dual-chunk attention: keys of other chunks stand at their place in their own chunk (An et al.
  2024, arXiv:2402.17463, sec. 3; the authors' `chunkllama_attn_replace.py`).

    chunk = reach - local tokens; queries at m mod chunk for keys of their own chunk,
    at min(m mod chunk + chunk, reach) for the chunk before, at min(2 chunk - 1, reach) for the rest

  So within `local` tokens at least, neighbours keep their distance. reach: in tokens, the farthest
  a key seems to be, None: 3/4 of the trained length. local: None: 1/16 of it. Raises ValueError
  unless 1 <= local < reach <= trained_length.
  """
  reach = trained_length * 3 // 4 if reach is None else reach
  local = max(1, trained_length // 16) if local is None else local
  if not 1 <= local < reach <= trained_length:
    raise ValueError(
      f"Extension 'dual_chunk' got reach = {reach} and local = {local} for {trained_length} "
      'trained tokens. Use 1 <= local < reach <= trained_length.'
    )
  return _seen(spectrum, Chunked(chunk=reach - local, reach=reach))


def streaming(spectrum, *, window: int, sinks: int = 4):
  """StreamingLLM: queries see the first `sinks` keys and the last `window`, their own included, at
  their places in a cache of just these (Xiao et al. 2023, arXiv:2309.17453, sec. 3.2).

  Distances in the window are as in the text; a sink n is sinks + window - 1 - n away at most.
  Raises ValueError if window or sinks < 1.
  """
  _at_least('streaming', 1, window=window, sinks=sinks)
  return _seen(spectrum, Slots(window=int(window), sinks=int(sinks)))


def _seen(spectrum, far: Far):
  return dataclasses.replace(spectrum, far=far)


def _at_least(name: str, least: float, **settings) -> None:
  for key, value in settings.items():
    if not value >= least:
      raise ValueError(f"Extension '{name}' got {key} = {value}. Use {key} >= {least}.")
