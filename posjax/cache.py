"""What decoding keeps of a row, and how new tokens attend to it; posjax/slots.py says where it is.

A layer keeps of each token what its attention hands to the operator: its key as the scheme turned
it, its value, and what the scheme knows of its content. Of a layer with a window, a chunk or
segments only as many tokens as its queries can see have slots.

Every row of a batch is one document from its first token on, and rows may differ in length. A
token's place in its row is its position.

Letters: B rows of a batch, S new tokens of each, R slots, T tokens before the new ones, Y = T + S,
N keys that new tokens attend to, H query heads, G key/value heads, K head width, V value width, D
model width.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from posjax.attend import Logits, Mask, Rows, step, tiled
from posjax.attention import Layer, encoded, scored
from posjax.slots import NOBODY, Slots, heads, stored


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['key_GRK', 'value_GRV', 'features_R', 'past_TD'],
  meta_fields=['pinned', 'whole', 'turned'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCache(Slots):
  """What one layer keeps of a row, for new tokens to attend to; of several, as `Slots` says."""

  def attend(
    self, layer: Layer, position, x_BSD, q_BSHK, k_BSGK, v_BSGV, rows_B: Rows, scale: float,
    read: Callable = lambda k_GRK, v_GRV: (k_GRK, v_GRV), null_H: jax.Array | None = None,
  ) -> tuple[jax.Array, 'LayerCache']:  # fmt: skip
    """out_BSHV of new tokens that see what is kept and each other, and the cache with them.

    v_BSGV: None where keys are values, too.
    rows_B: the new tokens, of which those of segment NOBODY are not there. If there are several,
      all rows have their first at the same place, or none that is there.
    read: what keys and values are made of those kept. null_H: as of posjax/attend.
    """
    own = kept(layer, position[1], scale)
    one = functools.partial(_attend, own, position, scale, read, null_H)
    vectors = x_BSD, q_BSHK, k_BSGK, v_BSGV
    if len(x_BSD) == 1:
      vectors, rows = _first((vectors, rows_B))
      out_SHV, cache = one(self, *vectors, rows)
      return out_SHV[None], cache
    return jax.vmap(one, in_axes=(0, 0, 0, 0, 0, rows_B.axes))(self, *vectors, rows_B)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blank:
  """In the place of a `LayerCache` that does not exist yet: makes it as the layer turns out."""

  size: int
  turned: bool

  def attend(self, layer: Layer, position, x_BSD, q_BSHK, k_BSGK, v_BSGV, rows_B, scale, **more):
    """As of `LayerCache`, with nothing kept so far."""

    own = kept(layer, position[1], scale)
    count, pinned = slots(own, self.size)

    def one(x_SD, q_SHK, k_SGK, v_SGV, rows):
      rows = dataclasses.replace(rows, segment_L=None)
      _, turned_SGK, _, key = encoded(
        own.scheme, position, x_SD, q_SHK, k_SGK, rows, scale, columns=False
      )
      k_SGK = turned_SGK if self.turned else k_SGK
      empty = lambda x_SGK: stored(jnp.zeros((count, *x_SGK.shape[1:]), x_SGK.dtype))
      return LayerCache(
        key_GRK=empty(k_SGK.astype(jnp.float32) if own.scheme.ages else k_SGK),
        value_GRV=None if v_SGV is None else empty(v_SGV),
        features_R=jax.tree.map(
          lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype),
          own.scheme.remembered(key.features_L),
        ),
        past_TD=jnp.zeros((own.scheme.features_read, x_SD.shape[1]), x_SD.dtype),
        pinned=pinned,
        whole=count == self.size,
        turned=self.turned,
      )

    vectors = x_BSD, q_BSHK, k_BSGK, v_BSGV
    if len(x_BSD) == 1:
      first, rows = _first((vectors, rows_B))
      cache = one(*first, rows)
    else:
      cache = jax.vmap(one, in_axes=(0, 0, 0, 0, rows_B.axes))(*vectors, rows_B)
    return cache.attend(layer, position, *vectors, rows_B, scale, **more)


def slots(layer: Layer, size: int) -> tuple[int, int]:
  """Slots that a layer needs for rows of `size` tokens, and how many of them are pinned."""
  mask, sees = layer.mask, size
  if mask.window is not None:
    sees = min(sees, mask.sinks + mask.window)
  if mask.chunk is not None:
    sees = min(sees, mask.chunk + mask.memory)
  return sees, mask.sinks if sees < size else 0


def kept(layer: Layer, spectrum, scale: float) -> Layer:
  """The layer as its cache knows it, under its spectrum: segments are what their mask lets see.

  Raises ValueError for segments of a scheme that looks back: what it sees of a memory's first
  tokens hangs on the segment that looks.
  """
  layer = layer.under(spectrum, scale)
  if layer.segment is None:
    return layer
  if layer.scheme.features_read:
    raise ValueError(
      f'{type(layer.scheme).__name__} looks {layer.scheme.features_read} tokens back, and a memory '
      'of segments begins anew with each: there is no cache for that. Use model.segment = None.'
    )
  mask = dataclasses.replace(layer.mask, chunk=layer.segment, memory=layer.memory)
  return dataclasses.replace(layer, mask=mask, segment=None, memory=0)


def _attend(
  layer, position, scale, read, null_H, cache: LayerCache, x_SD, q_SHK, k_SGK, v_SGV, rows
):
  """One row of `LayerCache.attend`."""
  scheme, start, S = layer.scheme, rows.index_L[0], len(x_SD)
  cache = _recalled(scheme, position, cache)
  q_SHK, turned_SGK, query_features, features_S, past_YD = _encoded(
    scheme, position, scale, cache, x_SD, q_SHK, k_SGK, start
  )
  new = turned_SGK if cache.turned else k_SGK, v_SGV, features_S
  after = cache.written(*new, past_YD, rows)
  aged = _aged(scheme, position, after, features_S, rows)
  if S == 1:  # of keys as they are now
    after = aged
  if cache.whole or S == 1:
    place_N = after.places(start + jnp.sum(rows.segment_L != NOBODY))
    everything = heads(after.key_GRK), heads(after.value_GRV), after.features_R
  else:
    everything, place_N = _beside(cache, new, rows)
  if not cache.whole and (S > 1 or scheme.walks):
    everything, place_N = _oldest_first(everything, place_N)
  k_GNK, v_GNV, features_N = everything
  if not cache.turned:
    turn = functools.partial(scheme.key, *position)
    k_GNK = jnp.swapaxes(turn(jnp.swapaxes(k_GNK, 0, 1), jnp.maximum(place_N, 0)), 0, 1)
  k_GNK, v_GNV = read(k_GNK, v_GNV)
  v_GNV = k_GNK if v_GNV is None else v_GNV

  logits = scored(Logits(scale=scale, mask=layer.mask), scheme, layer.cap)
  operands = () if logits.plain else position
  temperature = scheme.temperature(position[1], q_SHK.shape[1])
  query, key = _rows(layer.mask, rows.index_L, place_N, query_features, features_N)
  numbered = cache.whole or (S > 1 and not cache.pinned)
  if numbered:
    query, key = _numbered(query, key, start, whole=cache.whole)
  if numbered and S > 1:
    k_NGK, v_NGV = jnp.swapaxes(k_GNK, 0, 1), jnp.swapaxes(v_GNV, 0, 1)
    out_SHV = tiled(
      q_SHK, k_NGK, v_NGV, query, key, logits, temperature, operands, null_H=null_H
    )
    return out_SHV, aged
  return step(q_SHK, k_GNK, v_GNV, query, key, logits, temperature, operands, null_H), aged


def _recalled(scheme, position, cache: LayerCache) -> LayerCache:
  """With features as new tokens have them, in the place of those that are remembered."""
  if not scheme.ages:
    return cache
  k_RGK = jnp.swapaxes(heads(cache.key_GRK), 0, 1)
  features_R = scheme.recalled(position[0], cache.features_R, k_RGK)
  return dataclasses.replace(cache, features_R=features_R)


def _aged(scheme, position, after: LayerCache, features_S, rows: Rows) -> LayerCache:
  """What is kept after these tokens, which are written already."""
  if not scheme.ages:
    return after
  there_S = rows.segment_L != NOBODY
  place_S = jnp.where(there_S, rows.index_L, -1)
  place_R = after.places(rows.index_L[0] + jnp.sum(there_S))
  k_GRK = scheme.age(*position, heads(after.key_GRK), place_R, features_S, place_S)
  return dataclasses.replace(
    after,
    key_GRK=k_GRK.reshape(after.key_GRK.shape),
    features_R=scheme.remembered(after.features_R),
  )


def _encoded(scheme, position, scale, cache: LayerCache, x_SD, q_SHK, k_SGK, start):
  """What hooks make of new tokens, in the light of those before them."""
  T, S = len(cache.past_TD), len(x_SD)
  past_YD = jnp.concatenate([cache.past_TD, x_SD])
  place_Y = start + jnp.arange(-T, S)
  early = lambda x_SHK: jnp.pad(x_SHK, [(T, 0), (0, 0), (0, 0)])
  rows = Rows(index_L=place_Y, pos_L=place_Y, contiguous=True)
  q_YHK, k_YGK, query, key = encoded(
    scheme, position, past_YD, early(q_SHK), early(k_SGK), rows, scale, columns=False
  )
  last = cache.slot(jnp.maximum(start - 1, 0))
  gap = jax.tree.map(
    lambda kept_R, new_Y: jnp.where(start > 0, kept_R[last], 0) - (new_Y[T - 1] if T else 0),
    cache.features_R, key.features_L,
  )  # fmt: skip
  late = lambda tree: scheme.continued(jax.tree.map(lambda x_Y: x_Y[T:], tree), gap)
  return q_YHK[T:], k_YGK[T:], late(query.features_L), late(key.features_L), past_YD


def _first(tree):
  """The only row of a batch."""
  cut = lambda rows: dataclasses.replace(
    jax.tree.map(lambda x: x[0], dataclasses.replace(rows, index_L=None)),
    index_L=rows.index_L if rows.index_L.ndim == 1 else rows.index_L[0],
  )
  rows = lambda x: isinstance(x, Rows)
  return jax.tree.map(lambda x: cut(x) if rows(x) else x[0], tree, is_leaf=rows)



def _beside(cache: LayerCache, new, rows: Rows):
  """All that is kept, and the new tokens after it; the place of each."""
  k_SGK, v_SGV, features_S = new
  beside = lambda x_GRK, x_SGK: jnp.concatenate(
    [heads(x_GRK), jnp.swapaxes(x_SGK, 0, 1)], axis=1
  )
  features_N = jax.tree.map(lambda *x: jnp.concatenate(x), cache.features_R, features_S)
  v_GNV = None if v_SGV is None else beside(cache.value_GRV, v_SGV)
  place_N = jnp.concatenate([cache.places(rows.index_L[0]), rows.index_L])
  return (beside(cache.key_GRK, k_SGK), v_GNV, features_N), place_N


def _oldest_first(everything, place_N):
  order_N = jnp.argsort(place_N)
  k_GNK, v_GNV, features_N = everything
  v_GNV = None if v_GNV is None else v_GNV[:, order_N]
  features_N = jax.tree.map(lambda x_N: x_N[order_N], features_N)
  return (k_GNK[:, order_N], v_GNV, features_N), place_N[order_N]


def _rows(mask: Mask, place_S, place_N, query_features, features_N) -> tuple[Rows, Rows]:
  """Queries and keys; empty slots are nobody's."""

  def rows(place_L, features_L):
    return Rows(
      index_L=place_L,
      pos_L=jnp.maximum(place_L, 0),
      segment_L=jnp.where(place_L < 0, NOBODY, 0),
      begin_L=jnp.zeros_like(place_L) if mask.counts_from_begin else None,
      features_L=features_L,
    )

  return rows(place_S, query_features), rows(place_N, features_N)


def _numbered(query: Rows, key: Rows, start, *, whole: bool) -> tuple[Rows, Rows]:
  """Rows as tiles want them: keys, the oldest first, numbered from 0 on."""
  N, S = len(key.index_L), len(query.index_L)
  if whole:  # a slot's number is its place; what is not there yet lies ahead
    key = dataclasses.replace(key, index_L=jnp.arange(N), pos_L=jnp.arange(N), segment_L=None)
    return dataclasses.replace(query, segment_L=None, contiguous=True), dataclasses.replace(
      key, contiguous=True
    )
  first = start - (N - S)  # place of the key 0, below 0 where slots are empty
  shifted = lambda rows, index_L: dataclasses.replace(
    rows,
    index_L=index_L,
    begin_L=None if rows.begin_L is None else jnp.full(len(index_L), -first),
    contiguous=True,
  )
  return shifted(query, N - S + jnp.arange(S)), shifted(key, jnp.arange(N))
