"""Tasks that gather from all of a context: variables and words, after RULER.

RULER (Hsieh et al. 2024, arXiv:2404.06654, sec. 3) asks in sentences and takes the answers in any
order. Here ids are asked, and the answer has one order, so that it is one. `size` is tokens that
are read: all of an example but the last.
"""

import dataclasses

import numpy as np

from posjax.data.tasks.base import (
  DIGIT,
  END,
  NEEDLE,
  QUERY,
  SYMBOL,
  Answer,
  Example,
  Symbolic,
  join,
)  # fmt: skip
from posjax.data.tasks.retrieval import hide

RANKS = 1000  # words of the power law; those beyond are rounded away at any length that is read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variables(Symbolic):
  """Filler with NEEDLE x digits, later NEEDLE y x, later NEEDLE z y, ..; then QUERY digits | x y z
  (RULER's variable tracking). size: tokens read.

  Names of variables are the last symbols, which the filler does not use.

  chains: values that are passed on, one of which is asked for. hops: copies after the first
  assignment, in each chain. digits: of a value.
  """

  symbols: int = 96
  chains: int = 1
  hops: int = 2
  digits: int = 3

  def __post_init__(self):
    super().__post_init__()
    if self.names >= self.symbols or self.chains > 10**self.digits:
      raise ValueError(
        f'{self.chains} chains of {self.hops} hops need {self.names} names and different values, '
        f'of {self.symbols} symbols and {self.digits} digits. Use more symbols or digits, or fewer '
        'chains or hops.'
      )

  @property
  def names(self) -> int:
    return self.chains * (self.hops + 1)

  @property
  def smallest(self):
    statements = self.chains * (2 + self.digits + 3 * self.hops)
    return statements + 1 + self.digits + self.hops + 1

  def length(self, size):
    return size + 1

  def make(self, draw, size) -> Example:
    name_CN = SYMBOL + self.symbols - 1 - draw.distinct(self.names, self.names)
    name_CN = name_CN.reshape(self.chains, self.hops + 1)
    value_CD = spell(draw.distinct(10**self.digits, self.chains), 10, self.digits)
    # A random order of chains, each as often as it has statements: copies follow what they copy.
    turns = draw.distinct(self.names, self.names) % self.chains
    statements, said = [], [0] * self.chains
    for c in turns:
      n, said[c] = said[c], said[c] + 1
      right = DIGIT + value_CD[c] if n == 0 else [name_CN[c, n - 1]]
      statements.append(np.array([NEEDLE, name_CN[c, n], *right]))
    room = size - self.smallest
    places = np.sort(draw.below(room + 1, len(statements)))
    filler = self.symbols - self.names
    context = hide(draw, statements, places, room=room, symbols=filler)
    return join(context, [QUERY], DIGIT + value_CD[0], Answer(name_CN[0].tolist()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common(Symbolic):
  """Words in random order QUERY | the common ones, in the order of their ids, END (RULER's common
  words). size: tokens read; a longer list has more words that are not common.

  words: common ones. often, rarely: how often these and the others occur. letters: symbols of a
  word.
  """

  words: int = 2
  often: int = 6
  rarely: int = 2
  letters: int = 2

  def __post_init__(self):
    super().__post_init__()
    if self.often <= self.rarely or self.words > self.symbols**self.letters:
      raise ValueError(
        f'{self.words} words, {self.often} times among others {self.rarely} times, of '
        f'{self.symbols} symbols and {self.letters} letters, are not told apart. Use often > '
        'rarely, and more letters or symbols for more words.'
      )

  @property
  def smallest(self):
    return 2 + self.letters * self.words * (self.often + 1)

  def length(self, size):
    return size + 1

  def check(self, size):
    super().check(size)
    if (different := self.words + self.others(size)) > self.symbols**self.letters:
      raise ValueError(
        f'{size} tokens need {different} different words, of {self.symbols} symbols and '
        f'{self.letters} letters. Use more letters or symbols, or smaller sizes.'
      )

  def others(self, size: int) -> int:
    """Different words that are not common; the last may occur less often than `rarely`."""
    return -(-((size - self.smallest) // self.letters) // self.rarely)

  def make(self, draw, size) -> Example:
    ids = draw.distinct(self.symbols**self.letters, self.words + self.others(size))
    common, other = np.sort(ids[: self.words]), ids[self.words :]
    rest = np.repeat(other, self.rarely)[: (size - self.smallest) // self.letters]
    list_N = np.concatenate([np.repeat(common, self.often), rest])
    list_N = list_N[draw.distinct(len(list_N), len(list_N))]
    write = lambda ids: SYMBOL + spell(ids, self.symbols, self.letters).ravel()
    return join(write(list_N), [QUERY], Answer([*write(common), END]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frequent(Symbolic):
  """Words by a power law, in random order QUERY | the most frequent ones, the first first, END
  (RULER's frequent words). size: tokens read.

  The n-th word occurs in proportion to n^-power; what rounding leaves over are words that occur
  once. RULER's most frequent word is noise that is not asked for; here it is the first asked for.

  words: asked for. power: whole. letters: symbols of a word.
  """

  words: int = 2
  power: int = 2
  letters: int = 2

  def __post_init__(self):
    super().__post_init__()
    last, after = [*self.weights(), 0, 0][self.words - 1 : self.words + 1]
    if self.words >= self.symbols**self.letters or last <= after:
      raise ValueError(
        f'{self.words} words of {self.symbols} symbols and {self.letters} letters, by a power of '
        f'{self.power}, are not told from others. Use fewer words, more symbols or a lower power.'
      )

  @property
  def smallest(self):
    # From here on the counts of the words asked for differ, from each other and from the next: the
    # closest two are a whole apart, and the last is more than the single words left over.
    weight = self.weights()
    total, (last, after) = weight.sum(), weight[self.words - 1 : self.words + 1]
    return self.fixed + self.letters * int(max(-(-total // (last - after)), -(-2 * total // last)))

  @property
  def fixed(self) -> int:
    """Tokens read beside the list: BOS, QUERY and the answer."""
    return 2 + self.letters * self.words

  def weights(self) -> np.ndarray:
    """2^32 / n^power of each rank n, in whole numbers: the same on every machine."""
    weight = np.full(RANKS, 2**32)
    for _ in range(self.power):
      weight //= np.arange(1, RANKS + 1)
    return weight

  def counts(self, n: int) -> np.ndarray:
    """How often each word occurs in a list of n, most frequent first; no zeros."""
    counts = n * self.weights() // self.weights().sum()
    return np.concatenate([counts[counts > 0], np.ones(n - counts.sum(), np.int64)])

  def length(self, size):
    return size + 1

  def check(self, size):
    super().check(size)
    different = len(self.counts((size - self.fixed) // self.letters))
    if different > self.symbols**self.letters:
      raise ValueError(
        f'{size} tokens need {different} different words, of {self.symbols} symbols and '
        f'{self.letters} letters. Use more letters or symbols, or smaller sizes.'
      )

  def make(self, draw, size) -> Example:
    counts = self.counts((size - self.fixed) // self.letters)
    ids = draw.distinct(self.symbols**self.letters, len(counts))
    list_N = np.repeat(ids, counts)
    list_N = list_N[draw.distinct(len(list_N), len(list_N))]
    write = lambda ids: SYMBOL + spell(ids, self.symbols, self.letters).ravel()
    return join(write(list_N), [QUERY], Answer([*write(ids[: self.words]), END]))


def spell(number, base: int, places: int) -> np.ndarray:
  """The numbers' places in a base, the highest first, on a last axis."""
  return np.asarray(number)[..., None] // base ** np.arange(places)[::-1] % base
