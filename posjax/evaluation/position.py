"""Loss by position: where in its context a model predicts well, and where it fails."""

import numpy as np

from posjax.evaluation.bootstrap import estimate
from posjax.evaluation.windows import contexts, non_overlapping


def edges(length: int, trained_length: int) -> np.ndarray:
  """Returns the bins' upper edges, in tokens of context: two per octave, rounded, up to `length`.

  They count from `trained_length`, so that no bin mixes lengths seen in training with unseen ones.
  """
  first, last = (round(2 * np.log2(n / trained_length)) for n in (1, length))
  edge = np.unique(np.round(trained_length * 2 ** (np.arange(first - 1, last + 1) / 2)).astype(int))
  return np.append(edge[(edge > 0) & (edge < length)], length)


def by_position(
  loss_DN: np.ndarray, context_N: np.ndarray, weight_SD: np.ndarray, trained_length: int
) -> list[dict]:
  """Returns a row for each bin (above, context], in tokens of context: mean loss in nats, interval.

  `context_N` is the context of each target: windows.contexts.
  """
  bins, above = [], 0
  for context in edges(int(context_N.max()), trained_length).tolist():
    part_DN = loss_DN[:, (above < context_N) & (context_N <= context)]
    bins.append(
      {'above': above, 'context': context, **estimate(part_DN, weight_SD), 'tokens': part_DN.size}
    )
    above = context
  return bins


def curves(
  scored: dict[tuple[int, str], dict[str, np.ndarray]], weight_SD: np.ndarray, trained_length: int
) -> list[dict]:
  """Returns by_position of each recipe, in non-overlapping windows of the longest length it has.

  A document's first window is left out where there is another: documents begin alike (salutations,
  titles), which would make short contexts look better than they are.
  """
  longest = {recipe: length for length, recipe in scored}  # lengths ascend
  rows = []
  for recipe, length in longest.items():
    loss_DN = scored[length, recipe]['non-overlapping']
    N = loss_DN.shape[1]
    first = length if 2 * length <= N else 0
    context_N = contexts(non_overlapping(N, length))
    bins = by_position(loss_DN[:, first:], context_N[first:], weight_SD, trained_length)
    rows.append({'recipe': recipe, 'length': length, 'bins': bins})
  return rows
