"""What every task has: ids, draws whose bits are promised, examples, sizes.

Ids are raw and lie within the byte vocabulary, so that any model of text can be asked, too, and a
scheme that looks for digits finds them where text has them:

  0           opens a document, as everywhere
  1 .. 5      marks: END, SEPARATOR, NEEDLE, QUERY, PLUS; control characters that no text holds
  48 .. 57    the digits 0 to 9
  64 ..       symbols
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BOS, END, SEPARATOR, NEEDLE, QUERY, PLUS = range(6)
DIGIT, SYMBOL = 48, 64


class Draw:
  """Random numbers as a function of whole numbers: seed, purpose, index.

  Only raw bits are used: NumPy promises those of Philox and SeedSequence for all versions, but
  neither `integers` nor `permutation`.
  """

  def __init__(self, *seeds: int):
    self._bits = np.random.Philox(np.random.SeedSequence(seeds))

  def below(self, n: int, count: int) -> np.ndarray:
    """`count` numbers from 0 .. n - 1, int64. The remainder's bias is below n / 2^64."""
    return (self._bits.random_raw(count) % np.uint64(n)).astype(np.int64)

  def one(self, n: int) -> int:
    """A number from 0 .. n - 1."""
    return int(self.below(n, 1)[0])

  def distinct(self, n: int, count: int) -> np.ndarray:
    """`count` different numbers from 0 .. n - 1, in random order, int64."""
    return np.argsort(self._bits.random_raw(n), kind='stable')[:count]

  def weighted(self, weight_N: np.ndarray, count: int) -> np.ndarray:
    """`count` indices n, drawn with whole weights, int64."""
    ends_N = np.cumsum(weight_N)
    return np.searchsorted(ends_N, self.below(int(ends_N[-1]), count), side='right')


class Example(NamedTuple):
  """token_T, int32, of which the first is BOS; answer_T says which of them are to be predicted."""

  token_T: np.ndarray
  answer_T: np.ndarray


class Answer(tuple):
  """Tokens that are to be predicted, among the parts of `join`."""


def join(*parts: Sequence[int] | np.ndarray) -> Example:
  """BOS and the parts, end to end."""
  token_T = np.concatenate([[BOS], *(np.asarray(part, np.int32) for part in parts)])
  answer_T = np.concatenate([[False], *([isinstance(p, Answer)] * len(p) for p in parts)])
  return Example(token_T.astype(np.int32), answer_T.astype(bool))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """A recipe of examples. Subclasses say what `size` counts."""

  vocabulary = DIGIT + 10  # all ids lie below

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and (type(value) is not int or value < 1):
        raise ValueError(
          f'{type(self).__name__} with {field.name} {value!r}. Set '
          f'--config.data.task.{field.name} to a whole number >= 1.'
        )

  @property
  def smallest(self) -> int:
    """The smallest size that makes sense."""
    return 1

  def length(self, size: int) -> int:
    """Tokens of the longest example of a size, BOS and answer included; grows with the size."""
    raise NotImplementedError

  def make(self, draw: Draw, size: int) -> Example:
    """An example of this size, a function of the draw."""
    raise NotImplementedError

  def example(self, seed: int, index: int, size: int) -> Example:
    """Example `index` of the held-out ones of a seed. Raises ValueError for sizes too small."""
    self.check(size)
    return self.make(Draw(seed, 1, index), size)

  def lesson(self, seed: int, index: int, largest: int) -> Example:
    """Example `index` to learn from, of a size drawn uniformly from smallest .. largest."""
    self.check(largest)
    draw = Draw(seed, 0, index)
    return self.make(draw, self.smallest + draw.one(largest - self.smallest + 1))

  def check(self, size: int) -> None:
    if size < self.smallest:
      raise ValueError(
        f'{type(self).__name__} has no examples of size {size} with these settings: the smallest '
        f'is {self.smallest}. Use larger sizes, or settings that need less room: {self}.'
      )

  def fit(self, length: int) -> int:
    """The largest size whose examples have at most `length` inputs (all tokens but the last)."""
    sizes = range(self.smallest, max(self.smallest, length) + 1)  # a size reads a token at least
    fitting = bisect_right(sizes, length + 1, key=self.length)
    if not fitting:
      raise ValueError(
        f'Rows of {length} tokens are too short for {type(self).__name__}: its smallest example '
        f'has {self.length(self.smallest) - 1} inputs. Raise --config.train.length, or use '
        f'settings that need less room: {self}.'
      )
    return sizes[fitting - 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Symbolic(Task):
  """A task whose examples hold symbols.

  symbols: how many ids from SYMBOL on it uses.
  """

  symbols: int = 32

  @property
  def vocabulary(self):
    return SYMBOL + self.symbols
