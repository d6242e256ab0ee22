"""Tasks that are computed from a string: what a model learns short, and should do at any length.

Copy, reverse, sort, addition, parity and sums are those on which position schemes are commonly
compared (Deletang et al. 2022, arXiv:2207.02098; Kazemnejad et al. 2023, arXiv:2305.19466; Zhou et
al. 2023, arXiv:2310.16028). Answers of several tokens close with END, so that a model must also
know when to stop.
"""

import dataclasses

import numpy as np

from posjax.data.tasks.base import (
  DIGIT,
  END,
  PLUS,
  QUERY,
  SEPARATOR,
  SYMBOL,
  Answer,
  Example,
  Symbolic,
  Task,
  join,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(Symbolic):
  """s_1 .. s_n SEPARATOR | s_1 .. s_n END, symbols drawn uniformly. size: symbols of the string."""

  def length(self, size):
    return 2 * size + 3

  def make(self, draw, size) -> Example:
    string = SYMBOL + draw.below(self.symbols, size)
    return join(string, [SEPARATOR], Answer([*self.solve(string), END]))

  def solve(self, string: np.ndarray) -> np.ndarray:
    return string


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reverse(Copy):
  """s_1 .. s_n SEPARATOR | s_n .. s_1 END. size: symbols of the string."""

  def solve(self, string):
    return string[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sort(Copy):
  """The symbols in the order of their ids, repeated ones as often. size: symbols of the string."""

  def solve(self, string):
    return np.sort(string)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parity(Task):
  """Digits 0 and 1 SEPARATOR | their sum modulo 2. size: digits."""

  def length(self, size):
    return size + 3

  def make(self, draw, size) -> Example:
    digits = draw.below(2, size)
    return join(DIGIT + digits, [SEPARATOR], Answer([DIGIT + digits.sum() % 2]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summation(Task):
  """Digits SEPARATOR | their sum modulo 10 (Kazemnejad et al. 2023, app. B). size: digits."""

  def length(self, size):
    return size + 3

  def make(self, draw, size) -> Example:
    digits = draw.below(10, size)
    return join(DIGIT + digits, [SEPARATOR], Answer([DIGIT + digits.sum() % 10]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Addition(Task):
  """a PLUS b SEPARATOR | a + b END, all with the least significant digit first and none padded
  (McLeish et al. 2024, arXiv:2405.17399, sec. 3). size: digits of a, and of b."""

  def length(self, size):
    return 3 * size + 5  # the sum may have one digit more

  def make(self, draw, size) -> Example:
    a, b = (draw.below(10, size) for _ in range(2))
    if size > 1:
      a[-1], b[-1] = 1 + draw.below(9, 2)  # numbers do not begin with 0
    sums, carry = [], 0
    for column in a + b:
      carry, digit = divmod(int(column) + carry, 10)
      sums.append(DIGIT + digit)
    carried = [DIGIT + carry] if carry else []
    return join(DIGIT + a, [PLUS], DIGIT + b, [SEPARATOR], Answer([*sums, *carried, END]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Induction(Symbolic):
  """s_1 .. s_n, then QUERY s_i | s_(i+1) for several i (Olsson et al. 2022, arXiv:2209.11895).

  A symbol that is asked for occurs once in the string, and is no answer itself. size: symbols of
  the string.

  queries: how often is asked; more questions a row teach faster.
  """

  queries: int = 4

  def __post_init__(self):
    super().__post_init__()
    if self.symbols <= self.queries:
      raise ValueError(
        f'{self.symbols} symbols leave none beside {self.queries} that are asked for. Set '
        f'--config.data.task.symbols to {self.queries + 1} or more.'
      )

  @property
  def smallest(self):
    return 2 * self.queries

  def length(self, size):
    return size + 3 * self.queries + 1

  def make(self, draw, size) -> Example:
    order = SYMBOL + draw.distinct(self.symbols, self.symbols)
    asked, others = order[: self.queries], order[self.queries :]
    string = others[draw.below(len(others), size)]
    # Of places in rising order each moves by its rank, so that no two are neighbours.
    places = np.sort(draw.distinct(size - self.queries, self.queries)) + np.arange(self.queries)
    string[places] = asked
    questions = []
    for i in draw.distinct(self.queries, self.queries):
      questions += [[QUERY, asked[i]], Answer([string[places[i] + 1]])]
    return join(string, *questions)
