"""Loss by distance: is what the text has said before predicted better, however far back it stands?

A target is a repeat where the `n` tokens before it and itself stood in the window once before; its
distance is that to the last such place. Only a model that looks so far back can copy it.
"""

import numpy as np

from posjax.evaluation.bootstrap import estimate_some
from posjax.evaluation.windows import contexts, non_overlapping


def repeats(token_T: np.ndarray, n: int) -> np.ndarray:
  """Returns back_N: tokens from each target back to where it last followed the same `n` tokens; inf
  where it never did. Time T log T, memory T.
  """
  back_N = np.full(len(token_T) - 1, np.inf)
  if len(token_T) <= n:
    return back_N
  # Equal numbers for equal texts of 1, 2, .. n + 1 tokens: exact, where a hash could err.
  text_X = token_T.astype(np.int64)
  for size in range(1, n + 1):
    pair_X = text_X[:-1] * (token_T.max() + 1) + token_T[size:]
    text_X = np.unique(pair_X, return_inverse=True)[1]
  order_X = np.argsort(text_X, kind='stable')
  again_X = np.diff(text_X[order_X]) == 0
  back_N[n - 1 + order_X[1:][again_X]] = np.diff(order_X)[again_X]
  return back_N


def by_distance(
  loss_DN: np.ndarray, back_DN: np.ndarray, weight_SD: np.ndarray
) -> tuple[list[dict], dict | None]:
  """Returns a row for each octave (above, distance] that has targets, in tokens, and one for those
  that repeat nothing, or None: mean loss in nats, interval.
  """
  bins, above, largest = [], 0, back_DN[np.isfinite(back_DN)].max(initial=0)
  while above < largest:
    distance = max(1, 2 * above)
    part_DN = (above < back_DN) & (back_DN <= distance)
    if part_DN.any():
      row = estimate_some(loss_DN, part_DN, weight_SD)
      bins.append({'above': above, 'distance': distance, **row})
    above = distance
  new_DN = np.isinf(back_DN)
  return bins, estimate_some(loss_DN, new_DN, weight_SD) if new_DN.any() else None


def distances(
  scored: dict[tuple[int, str], dict[str, np.ndarray]],
  token_DT: np.ndarray,
  weight_SD: np.ndarray,
  n: int,
) -> list[dict]:
  """Returns by_distance of each recipe, in non-overlapping windows of the longest length it has.

  A repeat counts if its window shows all of what it repeats. As in position.curves a document's
  first window is left out where there is another.
  """
  longest = {recipe: length for length, recipe in scored}  # lengths ascend
  far_DN = np.stack([repeats(token_T, n) for token_T in token_DT])
  N, rows = far_DN.shape[1], []
  for recipe, length in longest.items():
    loss_DN = scored[length, recipe]['non-overlapping']
    context_N = contexts(non_overlapping(N, length))
    back_DN = np.where(far_DN + n <= context_N, far_DN, np.inf)
    first = length if 2 * length <= N else 0
    bins, new = by_distance(loss_DN[:, first:], back_DN[:, first:], weight_SD)
    rows.append({'recipe': recipe, 'length': length, 'bins': bins, 'new': new})
  return rows
