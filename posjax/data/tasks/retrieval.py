"""Tasks that hide something in a long context and ask for it.

`size` is tokens that are read: all of an example but the last. What is hidden lies in filler:
symbols drawn by Zipf's law, the n-th with a weight of 1 / n, as frequencies of words fall in text.
"""

import dataclasses

import numpy as np

from posjax.data.tasks.base import (
  DIGIT,
  NEEDLE,
  QUERY,
  SYMBOL,
  Answer,
  Draw,
  Example,
  Symbolic,
  join,
)  # fmt: skip


def hide(draw: Draw, parts: list, places: np.ndarray, *, room: int, symbols: int) -> np.ndarray:
  """`room` symbols of filler and, among them, the parts; those of the same place in their order.

  places: how many symbols of filler stand before each part, 0 .. room.
  """
  filler = SYMBOL + draw.weighted(2**32 // np.arange(1, symbols + 1), room)
  pieces, done = [], 0
  for i in np.argsort(places, kind='stable'):
    pieces += [filler[done : places[i]], parts[i]]
    done = places[i]
  return np.concatenate([*pieces, filler[done:]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needles(Symbolic):
  """Filler with needles NEEDLE key digits, then QUERY key | digits (RULER, Hsieh et al. 2024,
  arXiv:2404.06654, sec. 3: single, multi-key, multi-value, multi-query). size: tokens read.

  keys: different ones in the context. values: needles of each key; all are asked for, in the order
  in which they stand. queries: keys that are asked for. digits: of a value.
  depth: share of the filler before a needle of the first key asked for, 0 .. 1; None draws it, as
    those of all other needles are drawn.
  """

  symbols: int = 64
  keys: int = 4
  values: int = 1
  queries: int = 1
  digits: int = 3
  depth: float | None = None

  def __post_init__(self):
    super().__post_init__()
    if self.queries > self.keys or self.keys > self.symbols:
      raise ValueError(
        f'{self.queries} of {self.keys} keys, of {self.symbols} symbols, cannot be asked for. Use '
        '--config.data.task.queries <= keys <= symbols.'
      )
    if self.depth is not None and not 0 <= self.depth <= 1:
      raise ValueError(f'A depth of {self.depth} is outside the context. Use 0 <= depth <= 1.')

  @property
  def smallest(self):
    asked = self.queries * (2 + self.values * self.digits)
    return self.keys * self.values * (2 + self.digits) + asked

  def length(self, size):
    return size + 1

  def make(self, draw, size) -> Example:
    keys = SYMBOL + draw.distinct(self.symbols, self.keys)
    value_KVD = DIGIT + draw.below(10, self.keys * self.values * self.digits).reshape(
      self.keys, self.values, self.digits
    )
    needles = [[NEEDLE, key, *value] for key, value_VD in zip(keys, value_KVD, strict=True)
               for value in value_VD]  # fmt: skip
    room = size - self.smallest
    places = draw.below(room + 1, len(needles))
    if self.depth is not None:
      places[0] = round(self.depth * room)
    context = hide(draw, needles, places, room=room, symbols=self.symbols)
    questions = []
    for key in keys[: self.queries]:
      # Asked for in the order in which they stand, which is not that in which they were made.
      starts = np.flatnonzero((context[:-1] == NEEDLE) & (context[1:] == key)) + 2
      values = [context[start : start + self.digits] for start in starts]
      questions += [[QUERY, key], Answer(np.concatenate(values).tolist())]
    return join(context, *questions)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passkey(Needles):
  """A single needle of five digits (Mohtashami & Jaggi 2023, arXiv:2305.16300, sec. 4.2)."""

  keys: int = 1
  digits: int = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recall(Symbolic):
  """Pairs key value, then every key again, in random order, | with its value: multi-query
  associative recall (MQAR; Arora et al. 2023, arXiv:2312.04927, sec. 3).

  Keys are the first half of the symbols, each at most once, values the second. The paper also
  scatters the questions, by a power law; here they follow each other. size: pairs.
  """

  symbols: int = 128

  def __post_init__(self):
    super().__post_init__()
    if self.symbols < 2:
      raise ValueError('1 symbol is no key and value. Set --config.data.task.symbols to 2 or more.')

  def length(self, size):
    return 4 * size + 1

  def check(self, size):
    super().check(size)
    if size > self.symbols // 2:
      raise ValueError(
        f'{size} pairs need as many keys, but half of {self.symbols} symbols are keys. Set '
        f'--config.data.task.symbols to {2 * size} or more, or use smaller sizes.'
      )

  def fit(self, length):
    return min(super().fit(length), self.symbols // 2)

  def make(self, draw, size) -> Example:
    half = self.symbols // 2
    keys = SYMBOL + draw.distinct(half, size)
    values = SYMBOL + half + draw.below(half, size)
    questions = []
    for i in draw.distinct(size, size):
      questions += [[keys[i]], Answer([values[i]])]
    return join(np.stack([keys, values], axis=1).ravel(), *questions)
