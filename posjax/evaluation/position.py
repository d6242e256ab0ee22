"""Loss by position: where in its context a model predicts well, and where it fails."""

import numpy as np

from posjax.evaluation.bootstrap import interval
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
) -> dict[str, list]:
  """Returns per bin of context: its edges (low, high], the mean loss in nats, interval, tokens."""
  high_P = edges(int(context_N.max()), trained_length)
  bin_N = np.searchsorted(high_P, context_N)
  curve = {'above': [0, *high_P[:-1].tolist()], 'context': high_P.tolist(),
           'loss': [], 'low': [], 'high': [], 'tokens': []}
  for p in range(len(high_P)):
    part_DN = loss_DN[:, bin_N == p].astype(np.float64)
    low, high = interval(part_DN.sum(1), np.full(len(part_DN), part_DN.shape[1]), weight_SD)
    for key, value in (('loss', float(part_DN.mean())), ('low', low), ('high', high),
                       ('tokens', part_DN.size)):
      curve[key].append(value)
  return curve


def curves(
    scored: dict[tuple[int, str], dict[str, np.ndarray]], weight_SD: np.ndarray, trained_length: int
) -> list[dict]:
  """Returns by_position of each recipe, in non-overlapping windows of the longest length it has."""
  curve_of = {}
  for (length, recipe), loss_DN in sorted(scored.items(), key=lambda item: item[0][0]):
    context_N = contexts(non_overlapping(loss_DN['sliding'].shape[1], length))
    curve_of[recipe] = {'recipe': recipe, 'length': length, **by_position(
        loss_DN['non-overlapping'], context_N, weight_SD, trained_length)}
  return list(curve_of.values())
