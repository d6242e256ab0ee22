"""The model a few tokens at a time, with a cache of those before.

Training runs all layers as one scan over stacked weights. Decoding runs one layer after the other,
each with weights and cache of its own: a scan would copy both at every step, and reading them is
all that a step costs.

Letters: B rows, S new tokens of each, T tokens before them, D model width.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from posjax import layers
from posjax.attend import Rows
from posjax.cache import NOBODY, Blank, LayerCache
from posjax.decoder import Block, Decoder


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['layers', 'length_B', 'tokens_BT'],
  meta_fields=['size'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Cache:
  """What is kept of a batch of rows that hold up to `size` tokens each.

  layers: one for each layer, a leading B on every array.
  length_B: tokens of each row so far.
  tokens_BT: the newest of them, for schemes whose `embed` looks back; -1: none.
  """

  layers: tuple[LayerCache, ...]
  length_B: jax.Array
  tokens_BT: jax.Array
  size: int

  @property
  def bytes(self) -> int:
    """Of all layers."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.layers))


def unstacked(model: Decoder, params) -> dict[str, Any]:
  """The parameters as `advance` takes them; matrices in the type that the model computes in."""
  ends = {name: x for name, x in params.items() if name not in ('blocks', 'rest')}
  each = [layers.weights(model, params, n) for n in range(model.layers)]
  return {'ends': ends, 'layers': jax.tree.map_with_path(functools.partial(_cast, model), each)}


def _cast(model: Decoder, path, x):
  # Those that `project` casts at every use.
  matrix = re.search(r'_(DX|XD|DM|MD|CX|DC|DR)$', path[-1].key)
  return x.astype(model.compute_dtype) if matrix else x


def empty(
  model: Decoder, weights, spectrum, *, batch: int, size: int, turned: bool = True
) -> Cache:
  """For `batch` rows of up to `size` tokens.

  turned: whether keys are kept as the spectrum turned them when they came; if not, every step turns
    all of them again, for the spectrum it is given.

  Raises ValueError for a layer that cannot be cached.
  """
  reads = model.pattern[0].scheme.embed_reads
  cache = Cache(
    layers=(Blank(size=size, turned=turned),) * model.layers,
    length_B=jnp.zeros(batch, jnp.int32),
    tokens_BT=jnp.full((batch, reads), -1, jnp.int32),
    size=size,
  )
  one_B1 = jnp.zeros((batch, 1), jnp.int32)
  _, shapes = jax.eval_shape(
    lambda weights, spectrum: advance(model, weights, spectrum, cache, one_B1, one_B1[:, 0]),
    weights,
    spectrum,
  )
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes.layers)
  return dataclasses.replace(cache, layers=zeros)


def advance(
  model: Decoder, weights, spectrum, cache: Cache, tokens_BS, count_B
) -> tuple[jax.Array, Cache]:
  """hidden_BSD of new tokens (`Decoder.logits` reads it), and the cache with them.

  Of each row the first count_B tokens are there, the others are filling. Where S > 1, all rows that
  get any must have the same length. The cache must have room for them; nobody looks, so count on
  the host.
  """
  S, T = tokens_BS.shape[1], cache.tokens_BT.shape[1]
  start_B = cache.length_B
  if S > 1:  # one place for all rows, so that tiles are visited alike
    start_B = jnp.broadcast_to(jnp.max(jnp.where(count_B > 0, start_B, 0)), start_B.shape)
  place_BS = start_B[:, None] + jnp.arange(S)
  rows_B = Rows(
    index_L=place_BS[0] if S > 1 else place_BS,
    pos_L=place_BS,
    segment_L=jnp.where(jnp.arange(S) < count_B[:, None], 1, NOBODY),
  )
  tokens_BY = jnp.concatenate([cache.tokens_BT, tokens_BS], axis=1)
  place_BY = start_B[:, None] + jnp.arange(-T, S)
  ends = {'params': weights['ends']}
  x_BYD, positions = model.apply(ends, tokens_BY, spectrum, place_BY, method='begin')
  x_BSD, kept = x_BYD[:, T:], []
  for n, (own, past) in enumerate(zip(weights['layers'], cache.layers, strict=True)):
    at = layers.place(model, n)[2]
    block = Block(model, model.pattern[at])
    x_BSD, past = block.apply({'params': own}, x_BSD, positions[at], rows_B, past)
    kept.append(past)
  newest = jax.vmap(lambda tokens_Y, count: jax.lax.dynamic_slice_in_dim(tokens_Y, count, T))
  return model.apply(ends, x_BSD, method='end'), dataclasses.replace(
    cache,
    layers=tuple(kept),
    length_B=cache.length_B + count_B,
    tokens_BT=newest(tokens_BY, count_B),
  )
