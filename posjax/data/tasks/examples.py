"""Tasks as a source of batches: one example a row, and nothing to learn but its answer."""

import dataclasses
import sys

import numpy as np

from posjax.data.tasks.base import Example, Task

FORMAT = 1  # of what a seed means; a change of any task's bits raises it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
  """What to learn of a task: endless examples, of sizes drawn uniformly up to the largest.

  size: the largest; None takes what fits into the rows.
  """

  task: Task
  size: int | None = None

  bytes_per_token = None  # ids stand for no text

  @property
  def fingerprint(self) -> str:
    """What the examples are a function of, beside the seed, in words."""
    return f'{self.task}, size {self.size}, format {FORMAT}'

  def largest(self, length: int) -> int:
    """The largest size trained on in rows of `length`. Raises ValueError where it does not fit."""
    fits = self.task.fit(length)
    if self.size is not None and self.size > fits:
      raise ValueError(
        f'Rows of {length} tokens hold {type(self.task).__name__} up to size {fits}, not '
        f'{self.size}. Lower --config.data.size, or raise --config.train.length to '
        f'{self.task.length(self.size) - 1}.'
      )
    largest = fits if self.size is None else self.size
    self.task.check(largest)
    return largest


class Lessons:
  """The endless sequence of one host's batches: item t is step t's. Grain's random-access source.

  Row r of the stream holds example r from its first token on; what it leaves over has segment 0.
  Rows are not packed: packing prefers short examples, and sizes would not be uniform.

  begin: (0, number of the first example). steps: batches there are; None: endless.
  """

  rows = sys.maxsize  # of an epoch

  def __init__(
    self, examples: Examples, *, length: int, batch: int, seed: int, positions: str,
    host: int, hosts: int, begin: tuple[int, int] = (0, 0), steps: int | None = None,
  ):  # fmt: skip
    del positions  # every row shows its example from the first token on: both kinds agree
    self._task, self._largest = examples.task, examples.largest(length)
    self._length, self._batch, self._seed = length, batch, seed
    self._host, self._hosts, self._begin, self._steps = host, hosts, begin[1], steps

  def __len__(self) -> int:
    return sys.maxsize if self._steps is None else self._steps  # Grain's word for endless

  def end(self) -> tuple[int, int]:
    """Returns (0, number of the first example after the last of `steps`)."""
    return 0, self._begin + self._steps * self._batch

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    share = self._batch // self._hosts
    first = self._begin + step * self._batch + self._host * share
    lessons = [self._task.lesson(self._seed, i, self._largest) for i in range(first, first + share)]
    return rows(lessons, self._length)


def rows(examples: list[Example], length: int) -> dict[str, np.ndarray]:
  """Examples as rows [len, length] of tokens, targets, positions and segments, int32.

  Targets are the next tokens, and -1 where these are not to be predicted (posjax/loss.py).
  """
  tokens_BL, positions_BL, segments_BL = np.zeros((3, len(examples), length), np.int32)
  targets_BL = np.full_like(tokens_BL, -1)
  for b, (token_T, answer_T) in enumerate(examples):
    n = len(token_T) - 1
    tokens_BL[b, :n] = token_T[:-1]
    targets_BL[b, :n] = np.where(answer_T[1:], token_T[1:], -1)
    positions_BL[b, :n] = np.arange(n)
    segments_BL[b, :n] = 1
  return {
    'tokens': tokens_BL, 'targets': targets_BL, 'positions': positions_BL, 'segments': segments_BL
  }  # fmt: skip
