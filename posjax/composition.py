"""Several schemes as one: together on all heads, or each on heads of its own.

  {'name': 'together', 'parts': ({'name': 'learned'}, {'name': 'alibi'})}
  {'name': 'heads', 'parts': ({'name': 'rope', 'share': 3}, {'name': 'none', 'share': 1})}

A part may itself be made of parts. What makes no sense together is refused when it is built. Every
learned parameter, state and spectrum is a tuple or dict with one entry per part.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from posjax import positions
from posjax.attend import Tile
from posjax.positions import Dims, Scheme


def make(settings: Mapping[str, Any]) -> Scheme:
  """The scheme of a config's `position`: one of posjax/positions/, or several of them.

  Raises ValueError for an unknown name or hyperparameter, and for parts that make no sense.
  """
  settings = dict(settings)
  name = settings.pop('name')
  if name not in ('together', 'heads'):
    return positions.make(name, **settings)
  parts = [dict(part) for part in settings.pop('parts', ())]
  if settings or len(parts) < 2:
    wrong = f'{len(parts)} parts' if len(parts) < 2 else f"'{next(iter(settings))}'"
    raise ValueError(f"'{name}' takes `parts`, a tuple of two or more, and no more: not {wrong}.")
  if name == 'together':
    return Together(parts=tuple(map(make, parts)))
  shares = [part.pop('share', 1) for part in parts]
  return Heads(parts=tuple(map(make, parts)), shares=tuple(shares))


def label(settings: Mapping[str, Any]) -> str:
  """What a reader calls it: 'rope', 'rope + fox' together, 'rope | none' on heads of their own."""
  if 'parts' not in settings:
    return settings['name']
  names = [label(part) for part in settings['parts']]
  return (' + ' if settings['name'] == 'together' else ' | ').join(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(Scheme):
  """What both kinds share: each part has its own parameters, spectrum, features and state."""

  parts: tuple[Scheme, ...]

  @property
  def relative(self) -> bool:
    return all(part.relative for part in self.parts)

  @property
  def reads_positions(self) -> bool:
    return any(part.reads_positions for part in self.parts)

  @property
  def replaces_logits(self) -> bool:
    return any(part.replaces_logits for part in self.parts)

  @property
  def embed_reads(self) -> int:
    return max(part.embed_reads for part in self.parts)

  @property
  def features_read(self) -> int:
    return max(part.features_read for part in self.parts)

  def overrides(self, hook):
    return any(part.overrides(hook) for part in self.parts)

  @property
  def factorises(self):
    return self.scores and all(part.factorises or not part.scores for part in self.parts)

  def dims_of(self, dims: Dims) -> tuple[Dims, ...]:
    """The sizes that each part sees."""
    return (dims,) * len(self.parts)

  def init(self, key, dims):
    return self._drawn('init', key, dims)

  def init_layer(self, key, dims):
    return self._drawn('init_layer', key, dims)

  def _drawn(self, init, key, dims):
    keys = jax.random.split(key, len(self.parts))
    drawn = [
      getattr(part, init)(key, own)
      for part, key, own in zip(self.parts, keys, self.dims_of(dims), strict=True)
    ]
    return {f'part_{n}': params for n, params in enumerate(drawn) if params}

  def spectrum(self, dims):
    both = zip(self.parts, self.dims_of(dims), strict=True)
    return tuple(part.spectrum(own) for part, own in both)

  def sample(self, spectrum, key):
    keys = jax.random.split(key, len(self.parts))
    each = zip(self.parts, spectrum, keys, strict=True)
    return tuple(part.sample(own, key) for part, own, key in each)

  def capacity(self, spectrum, dims):
    each = zip(self.parts, spectrum, self.dims_of(dims), strict=True)
    return min(part.capacity(own, sizes) for part, own, sizes in each)

  def each(self, params, spectrum):
    """(part, its parameters, its spectrum) of every part."""
    both = zip(self.own(params), spectrum, strict=True)
    return [(part, own, numbers) for (part, own), numbers in both]

  def own(self, params):
    """(part, its parameters) of every part."""
    return [(part, params.get(f'part_{n}', {})) for n, part in enumerate(self.parts)]

  def table(self, params, spectrum, r_R):
    each = self.each(params, spectrum)
    return tuple(part.table(own, numbers, r_R) for part, own, numbers in each)

  def continued(self, features_L, gap):
    each = zip(self.parts, features_L, gap, strict=True)
    return tuple(part.continued(own, theirs) for part, own, theirs in each)

  def remembered(self, features_L):
    both = zip(self.parts, features_L, strict=True)
    return tuple(part.remembered(own_L) for part, own_L in both)

  def start(self, params, spectrum, query):
    return tuple(
      part.start(own, numbers, _rows_of(query, n))
      for n, (part, own, numbers) in enumerate(self.each(params, spectrum))
    )

  def prepare(self, params, spectrum, key, J):
    return tuple(
      part.prepare(own, numbers, _rows_of(key, n), J)
      for n, (part, own, numbers) in enumerate(self.each(params, spectrum))
    )

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    for part, own, numbers in self.each(params, spectrum):
      x_LD = part.embed(own, numbers, x_LD, tokens_L, pos_L)
    return x_LD

  def query(self, params, spectrum, q_LHK, pos_L):
    return self.through(q_LHK, [
      functools.partial(part.query, own, numbers, pos_L=pos_L)
      for part, own, numbers in self.each(params, spectrum)
    ])

  def key(self, params, spectrum, k_LGK, pos_L):
    return self.through(k_LGK, [
      functools.partial(part.key, own, numbers, pos_L=pos_L)
      for part, own, numbers in self.each(params, spectrum)
    ])

  def through(self, x_LHK, changes: Sequence[Callable]):
    """Queries, or keys, after a change by each part."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Together(Parts):
  """Every part acts on all heads, in the order given; biases add up."""

  def __post_init__(self):
    for hook, what in (
      ('embed', 'add a vector to the input'),
      ('key', 'turn the keys'),
      ('walk', 'carry a state along the keys'),
      ('read', 'add to what is read'),
    ):
      if sum(part.overrides(hook) for part in self.parts) > 1:
        raise ValueError(f'{_names(self.parts)} make no sense together: two {what}. Use one.')
    for part in self.parts:
      if not _acts(part):
        raise ValueError(
          f'{_names(self.parts)} make no sense together: one does nothing. Leave it out.'
        )
      if self.parts.count(part) > 1:
        raise ValueError(f'{_names(self.parts)}: the same scheme twice. Use it once.')
    if any(
      part.replaces_logits and other.overrides('key')
      for part, other in itertools.permutations(self.parts, 2)
    ):
      raise ValueError(
        f'{_names(self.parts)} make no sense together: one computes logits from keys as projected, '
        'which the other would have turned. Use one of them.'
      )

  def through(self, x_LHK, changes):
    for change in changes:
      x_LHK = change(x_LHK)
    return x_LHK

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    pairs, each = [], self.each(params, spectrum)
    for n, (part, own, numbers) in enumerate(each):
      own_LHK = q_LHK
      if part.replaces_logits:  # from queries as the others leave them
        for other, *theirs in each[:n] + each[n + 1 :]:
          own_LHK = other.query(*theirs, own_LHK, rows.pos_L)
      pairs.append(part.features(own, numbers, x_LD, own_LHK, k_LGK, rows))
    return tuple(zip(*pairs, strict=True))

  def age(self, params, spectrum, k_GRK, place_R, features_S, place_S):
    for (part, own, numbers), own_S in zip(self.each(params, spectrum), features_S, strict=True):
      k_GRK = part.age(own, numbers, k_GRK, place_R, own_S, place_S)
    return k_GRK

  def recalled(self, params, features_R, k_RGK):
    both = zip(self.own(params), features_R, strict=True)
    return tuple(part.recalled(own, own_R, k_RGK) for (part, own), own_R in both)

  def score(self, params, spectrum, s_HIJ, tile):
    for n, (part, own, numbers) in enumerate(self.each(params, spectrum)):
      s_HIJ = part.score(own, numbers, s_HIJ, _tile_of(tile, n))
    return s_HIJ

  def walk(self, params, spectrum, s_HIJ, tile, state):
    new = []
    for n, (part, own, numbers) in enumerate(self.each(params, spectrum)):
      s_HIJ, left = part.walk(own, numbers, s_HIJ, _tile_of(tile, n), state[n])
      new.append(left)
    return s_HIJ, tuple(new)

  def read(self, params, spectrum, p_HIJ, tile):
    n, part = next((n, part) for n, part in enumerate(self.parts) if part.reads)
    return part.read(*self.each(params, spectrum)[n][1:], p_HIJ, _tile_of(tile, n))

  def columns(self, params, spectrum, query, key, **sizes):
    pairs = [
      part.columns(own, numbers, _rows_of(query, n), _rows_of(key, n), **sizes)
      for n, (part, own, numbers) in enumerate(self.each(params, spectrum))
      if part.scores
    ]
    q_LHC, k_LGC = zip(*pairs, strict=True)
    most = max(k.shape[1] for k in k_LGC)
    wide = [jnp.broadcast_to(k, (k.shape[0], most, k.shape[2])) for k in k_LGC]
    return jnp.concatenate(q_LHC, axis=-1), jnp.concatenate(wide, axis=-1)

  def temperature(self, spectrum, heads):
    total = 1.0
    for part, numbers in zip(self.parts, spectrum, strict=True):
      total = total * part.temperature(numbers, heads)
    return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads(Parts):
  """Each part has heads of its own, query and key/value heads in the proportion of `shares`.

  The first part has the first heads. Where a part widens its heads, the others are filled with
  zeros.
  """

  shares: tuple[int, ...]

  def __post_init__(self):
    if not all(isinstance(share, int) and share > 0 for share in self.shares):
      raise ValueError(
        f'{_names(self.parts)} cannot have shares of {list(self.shares)} of the heads. '
        'Use whole numbers >= 1.'
      )
    for hook, what in (
      ('embed', 'acts on the input, which all heads share'),
      ('read', 'adds to what is read'),
    ):
      if self.overrides(hook):
        raise ValueError(
          f'Of {_names(self.parts)} one {what}, so it cannot have heads of its own. Combine it by '
          "'together' instead."
        )

  def dims_of(self, dims):
    both = zip(self.counts(dims.heads), self.counts(dims.kv_heads), strict=True)
    return tuple(dataclasses.replace(dims, heads=H, kv_heads=G) for H, G in both)

  def counts(self, heads: int) -> list[int]:
    """Heads of each part. Raises ValueError where `heads` cannot be shared out."""
    total = sum(self.shares)
    if heads % total:
      raise ValueError(
        f'{heads} heads cannot be shared out {" : ".join(map(str, self.shares))}. Make model.heads '
        f'and model.kv_heads multiples of {total}, or change the shares.'
      )
    return [heads // total * share for share in self.shares]

  def cut(self, x, axis: int) -> list:
    """The parts' heads along `axis`."""
    ends = list(itertools.accumulate(self.counts(x.shape[axis])))
    return jnp.split(x, ends[:-1], axis=axis)

  def through(self, x_LHK, changes):
    both = zip(changes, self.cut(x_LHK, 1), strict=True)
    return _level([change(own_LHK) for change, own_LHK in both])

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    parts = zip(
      self.each(params, spectrum), self.cut(q_LHK, 1), self.cut(k_LGK, 1), strict=True
    )
    pairs = [part.features(own, numbers, x_LD, q, k, rows) for (part, own, numbers), q, k in parts]
    return tuple(zip(*pairs, strict=True))

  def age(self, params, spectrum, k_GRK, place_R, features_S, place_S):
    parts = zip(self.each(params, spectrum), self.cut(k_GRK, 0), features_S, strict=True)
    return jnp.concatenate([
      part.age(own, numbers, k, place_R, own_S, place_S)
      for (part, own, numbers), k, own_S in parts
    ])

  def recalled(self, params, features_R, k_RGK):
    parts = zip(self.own(params), features_R, self.cut(k_RGK, 1), strict=True)
    return tuple(part.recalled(own, own_R, k) for (part, own), own_R, k in parts)

  def score(self, params, spectrum, s_HIJ, tile):
    parts = zip(self.each(params, spectrum), self.cut(s_HIJ, 0), strict=True)
    return jnp.concatenate([
      part.score(own, numbers, s, _tile_of(tile, n))
      for n, ((part, own, numbers), s) in enumerate(parts)
    ])

  def walk(self, params, spectrum, s_HIJ, tile, state):
    parts = zip(self.each(params, spectrum), self.cut(s_HIJ, 0), state, strict=True)
    pairs = [
      part.walk(own, numbers, s, _tile_of(tile, n), one)
      for n, ((part, own, numbers), s, one) in enumerate(parts)
    ]
    scores, states = zip(*pairs, strict=True)
    return jnp.concatenate(scores), tuple(states)

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    """Each part's columns stand side by side; the heads of other parts have zeros there."""
    L, q_LHC, k_LGC, h, g = len(key.index_L), [], [], 0, 0
    counts = zip(self.counts(heads), self.counts(kv_heads), strict=True)
    for n, ((part, own, numbers), (H, G)) in enumerate(
      zip(self.each(params, spectrum), counts, strict=True)
    ):
      if part.scores:
        q, k = part.columns(
          own, numbers, _rows_of(query, n), _rows_of(key, n),
          heads=H, kv_heads=G, scale=scale, dtype=dtype,
        )  # fmt: skip
        k = jnp.broadcast_to(k, (L, G, k.shape[2]))
        q_LHC.append(jnp.pad(q, [(0, 0), (h, heads - h - H), (0, 0)]))
        k_LGC.append(jnp.pad(k, [(0, 0), (g, kv_heads - g - G), (0, 0)]))
      h, g = h + H, g + G
    return jnp.concatenate(q_LHC, axis=-1), jnp.concatenate(k_LGC, axis=-1)

  def temperature(self, spectrum, heads):
    each = zip(self.parts, self.counts(heads), spectrum, strict=True)
    return jnp.concatenate([
      jnp.broadcast_to(jnp.asarray(part.temperature(numbers, H), jnp.float32), (H,))
      for part, H, numbers in each
    ])


def _acts(scheme: Scheme) -> bool:
  return any(
    scheme.overrides(hook)
    for hook in ('embed', 'query', 'key', 'score', 'walk', 'read')
  )


def _names(parts) -> str:
  return ' and '.join(type(part).__name__ for part in parts)


def _rows_of(rows, n: int):
  return dataclasses.replace(rows, features_L=rows.features_L[n])


def _tile_of(tile: Tile, n: int) -> Tile:
  table_M = tile.table_M and tile.table_M[n]
  query, key = _rows_of(tile.query, n), _rows_of(tile.key, n)
  return dataclasses.replace(tile, query=query, key=key, table_M=table_M)


def _level(vectors_LHK: list):
  """Side by side along the heads, narrower ones filled with zeros."""
  K = max(x.shape[-1] for x in vectors_LHK)
  return jnp.concatenate(
    [jnp.pad(x, [(0, 0), (0, 0), (0, K - x.shape[-1])]) for x in vectors_LHK], axis=1
  )
