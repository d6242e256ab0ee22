"""The model a few tokens at a time, with a cache of those before.

  decoding = Decoding(model, params, lambda length: spectrum, batch=2, size=4096)
  logits_BV = decoding.read([prompt, another])    # in chunks; prompts may differ in length
  logits_BV = decoding.step(tokens_B)             # one more token for each row

Training runs all layers as one scan over stacked weights. Decoding runs one layer after the other,
each with weights and cache of its own: a scan would copy both at every step, and reading them is
all that a step costs.

Letters: B rows, S new tokens of each, T tokens before them, D model width, V vocabulary.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posjax import layers
from posjax.attend import Rows
from posjax.block import Block
from posjax.cache import NOBODY, Blank, LayerCache
from posjax.decoder import Decoder, check_length


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


class Decoding:
  """A batch of rows that grow: what they hold so far, and the program that reads on.

  It compiles once for chunks and once for steps, whatever the lengths.
  """

  def __init__(
    self, model: Decoder, params, spectrum_at: Callable[[int], Any], *, batch: int, size: int,
    chunk: int = 256, turned: bool = True,
  ):  # fmt: skip
    """
    Args:
      spectrum_at: of rows of so many tokens. If keys are kept `turned`, only that of `size` is ever
        used; otherwise every read and step takes that of the length which rows then have, all the
        same. What deeper layers keep of a token stays as it was made when it came.
      batch: rows. size: tokens that a row can hold. chunk: tokens that are read at once.

    Raises ValueError where a layer cannot be cached, or has no positions for `size` tokens.
    """
    for name, value in {'batch': batch, 'size': size, 'chunk': chunk}.items():
      if value < 1:
        raise ValueError(f'Decoding with {name} = {value} has nothing to do. Use {name} >= 1.')
    self.model, self.size, self.chunk, self.turned = model, size, min(chunk, size), turned
    self.weights = unstacked(model, params)
    self._newest = jax.jit(functools.partial(_newest, model), donate_argnums=2)
    self._each = jax.jit(functools.partial(_each, model), donate_argnums=2)
    self._make = jax.jit(
      functools.partial(empty, model, batch=batch, size=size, turned=turned)
    )
    self.lengths = np.zeros(batch, np.int64)
    self.restart(spectrum_at)

  def restart(self, spectrum_at: Callable[[int], Any] | None = None) -> None:
    """Empties all rows; the program stays, and without another the spectrum. Raises ValueError as
    the constructor does."""
    if spectrum_at is not None:
      check_length(self.model, spectrum_at(self.size), self.size)
      self._spectrum_at, self._last = spectrum_at, _on_device(spectrum_at(self.size))
    self.cache = self._make(self.weights, self._last)
    self.lengths = np.zeros_like(self.lengths)

  def __call__(self, tokens_BS) -> jax.Array:
    """logits_BSV of S more tokens for each row, which are read at once. Compiles for each S.

    Raises ValueError as `read` does.
    """
    self.check(tokens_BS)
    tokens_BS = np.asarray(tokens_BS)
    count_B = np.full(len(tokens_BS), tokens_BS.shape[1])
    self._follow(count_B)
    return self._advance(self._each, tokens_BS, count_B)

  def read(self, rows: Sequence[Sequence[int]]) -> jax.Array:
    """logits_BV after each row's newest token, which follow what it holds.

    Raises ValueError if there are other rows than the cache has, if one is empty or does not fit,
    if rows that already differ in length read more than a token, or if keys are turned anew for a
    length that is not that of all rows.
    """
    self.check(rows)
    rows = [np.asarray(row) for row in rows]
    counts = np.array([len(row) for row in rows])
    if counts.max() == 1:
      return self.step(np.concatenate(rows))
    self._follow(counts)
    logits_BV = None
    for at in range(0, counts.max(), self.chunk):
      count_B = np.clip(counts - at, 0, self.chunk)
      tokens_BS = np.zeros((len(rows), self.chunk), np.int32)
      for n, row in enumerate(rows):
        tokens_BS[n, : count_B[n]] = row[at : at + self.chunk]
      new_BV = self._advance(self._newest, tokens_BS, count_B)
      logits_BV = new_BV if at == 0 else jnp.where(count_B[:, None] > 0, new_BV, logits_BV)
    return logits_BV

  def step(self, tokens_B, reads_B=None) -> jax.Array:
    """logits_BV after one more token for each row; of rows that do not read it, of no meaning.

    Raises ValueError as `read` does.
    """
    tokens_B1 = np.asarray(tokens_B)[:, None]
    reads_B = np.ones(len(tokens_B1), bool) if reads_B is None else np.asarray(reads_B, bool)
    self.check(tokens_B1, reads_B)
    count_B = reads_B.astype(np.int64)
    self._follow(count_B)
    return self._advance(self._newest, tokens_B1, count_B)

  def _follow(self, count_B):
    """Takes the spectrum of rows with so many more tokens, however many chunks they come in."""
    if not self.turned:
      self._last = _on_device(self._spectrum_at(int((self.lengths + count_B).max())))

  def _advance(self, program, tokens_BS, count_B):
    self.lengths = self.lengths + count_B
    new = (jnp.asarray(x, jnp.int32) for x in (tokens_BS, count_B))
    logits, self.cache = program(self.weights, self._last, self.cache, *new)
    return logits

  def check(self, rows: Sequence[Sequence[int]], reads_B=True) -> None:
    """Raises ValueError where these rows cannot be read on, as `read` says."""
    rows = [np.asarray(row) for row in rows]
    if len(rows) != len(self.lengths):
      raise ValueError(
        f'{len(rows)} rows of tokens for a cache of {len(self.lengths)} rows. Give each row its '
        f'tokens, or make a cache of batch = {len(rows)}.'
      )
    check_tokens(self.model, rows)
    if np.shape(reads_B) not in ((), (len(rows),)):
      raise ValueError(
        f'{len(reads_B)} rows are said to read or not, of {len(rows)}. Say it of each row.'
      )
    if len(set(self.lengths)) > 1 and any(len(row) > 1 for row in rows):
      raise ValueError(
        f'Rows of {self.lengths.tolist()} tokens cannot read on side by side, but token by token. '
        'Use `step`, or rows of the same length.'
      )
    after_B = self.lengths + np.array([len(row) for row in rows]) * reads_B
    if not self.turned and np.any(reads_B) and np.ptp(after_B[np.broadcast_to(reads_B, len(rows))]):
      raise ValueError(
        f'Keys are turned anew for the length of a row, but rows would have {after_B.tolist()} '
        'tokens. Give rows of the same length, or one at a time.'
      )
    longest = int(max(after_B))
    if longest > self.size:
      raise ValueError(
        f'The cache holds {self.size} tokens of a row, and one would have {longest}. Use size >= '
        f'{longest}.'
      )


def check_tokens(model: Decoder, rows: Sequence[np.ndarray]) -> None:
  """Raises ValueError where a row is empty, or holds what is no token of the model."""
  if not (len(rows) and all(row.size for row in rows)):
    raise ValueError('A row without tokens has nothing to follow. Begin rows with bos.')
  if any(row.ndim != 1 or row.dtype.kind not in 'iu' for row in rows):
    found = ', '.join(sorted({f'{row.dtype} {list(row.shape)}' for row in rows}))
    raise ValueError(f'A row of tokens is a list of ids, whole numbers, not {found}. Encode it.')
  least, largest = min(row.min() for row in rows), max(row.max() for row in rows)
  if least < 0 or largest >= model.vocabulary:
    wrong = least if least < 0 else largest
    raise ValueError(
      f'There is no token {wrong} in a vocabulary of {model.vocabulary}. Encode the text with the '
      "run's own tokenizer."
    )


def _on_device(spectrum):
  return jax.tree.map(jnp.float32, spectrum)


def _newest(model: Decoder, weights, spectrum, cache: Cache, tokens_BS, count_B):
  """(logits_BV after each row's last token that is there, cache)."""
  hidden_BSD, cache = advance(model, weights, spectrum, cache, tokens_BS, count_B)
  last_B11 = jnp.maximum(count_B - 1, 0)[:, None, None]
  hidden_B1D = jnp.take_along_axis(hidden_BSD, last_B11, axis=1)
  return model.apply({'params': weights['ends']}, hidden_B1D[:, 0], method='logits'), cache


def _each(model: Decoder, weights, spectrum, cache: Cache, tokens_BS, count_B):
  """(logits_BSV after every token, cache)."""
  hidden_BSD, cache = advance(model, weights, spectrum, cache, tokens_BS, count_B)
  return model.apply({'params': weights['ends']}, hidden_BSD, method='logits'), cache
