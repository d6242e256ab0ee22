"""Cuts documents into windows, so that every target is scored exactly once.

Letters of this package: D documents, N targets of a document, B rows of a batch, L tokens of a
row, S bootstrap samples. Target n of a document is its token n + 1, predicted from the tokens up to
n, so a document of T tokens has T - 1 targets and its first token (bos) is never one.

All documents of an evaluation give the same number of targets, so one list of windows serves all.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
  """Tokens start:stop are seen, targets first:stop are scored. Target n has n - start + 1 tokens
  of context."""

  start: int
  first: int
  stop: int


def non_overlapping(targets: int, length: int) -> list[Window]:
  """Windows side by side: cheap, and pessimistic, because half the targets see little context."""
  return sliding(targets, length, stride=length)


def sliding(targets: int, length: int, stride: int) -> list[Window]:
  """Windows `stride` tokens apart, each of which scores only what the one before has not.

  The first window scores all it sees; later ones score their last `stride` targets, with more than
  length - stride tokens of context each. Cost grows with length / stride.

  Raises ValueError if stride is not in 1..length: targets would be repeated or skipped.
  """
  if not 1 <= stride <= length:
    raise ValueError(
      f'A stride of {stride} tokens does not tile windows of {length} tokens. '
      f'Use a stride between 1 and {length}.'
    )
  windows = [Window(0, 0, min(length, targets))]
  while (seen := windows[-1].stop) < targets:
    windows.append(Window(seen + stride - length, seen, min(seen + stride, targets)))
  return windows


def contexts(windows: list[Window]) -> np.ndarray:
  """Returns context_N: tokens that each target is predicted from, itself excluded."""
  return np.concatenate([np.arange(w.first, w.stop) - w.start + 1 for w in windows])


def batches(
  token_DT: np.ndarray, starts: list[int], length: int, rows: int
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the windows that begin at `starts`, of all documents, as batches of one shape.

  Rows go document by document. Positions count from the window's first token, so a model trained at
  `length` meets no position it has not seen. What is not there has segment 0: tokens past a
  document's last target, and the rows that fill up the last batch.
  """
  D, T = token_DT.shape
  cuts = [(d, start) for d in range(D) for start in starts]
  for i in range(0, len(cuts), rows):
    tokens_BL, targets_BL, segments_BL = np.zeros((3, rows, length), np.int32)
    for b, (d, start) in enumerate(cuts[i : i + rows]):
      n = min(length, T - 1 - start)
      tokens_BL[b, :n] = token_DT[d, start : start + n]
      targets_BL[b, :n] = token_DT[d, start + 1 : start + n + 1]
      segments_BL[b, :n] = 1
    positions_BL = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)) * segments_BL
    yield {
      'tokens': tokens_BL,
      'targets': targets_BL,
      'positions': positions_BL,
      'segments': segments_BL,
    }
