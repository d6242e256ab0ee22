"""Intervals over documents: how much the numbers would move with other documents.

Tokens of a document are not independent, documents nearly are; so documents are what is redrawn.
"""

import numpy as np


def resample(documents: int, samples: int, seed: int) -> np.ndarray:
  """Returns weight_SD: how often each sample draws each document, with replacement.

  All intervals of an evaluation share one weight_SD: differences of two recipes, or of two
  contexts, are then paired, because both sides are computed on the same draw.
  """
  rng = np.random.default_rng(seed)
  return rng.multinomial(documents, np.full(documents, 1 / documents), size=samples)


def estimate(x_DN: np.ndarray, weight_SD: np.ndarray) -> dict[str, float | None]:
  """Returns the mean of x_DN over all targets and its 95 % percentile interval (Efron 1979).

  All documents have N targets, so that the mean over targets is the mean of the documents' means.
  One document has no interval: low and high are None.
  """
  mean_D = x_DN.mean(1, dtype=np.float64)
  low, high = None, None
  if len(mean_D) > 1:
    low, high = np.percentile(weight_SD @ mean_D / len(mean_D), (2.5, 97.5)).tolist()
  return {'mean': float(mean_D.mean()), 'low': low, 'high': high}


def estimate_some(
  x_DN: np.ndarray, some_DN: np.ndarray, weight_SD: np.ndarray
) -> dict[str, float | int | None]:
  """Returns the mean of x_DN over the targets in some_DN, its interval, and how many `tokens`.

  Documents have as many of them as they have: an interval redraws sums and counts together.
  Samples that drew none say nothing and are left out; of one document's targets there is none.
  """
  count_D = some_DN.sum(1)
  sum_D = np.where(some_DN, x_DN, 0).sum(1, dtype=np.float64)
  low, high = None, None
  if (count_D > 0).sum() > 1:
    drawn_S = weight_SD @ count_D
    mean_S = (weight_SD @ sum_D)[drawn_S > 0] / drawn_S[drawn_S > 0]
    low, high = np.percentile(mean_S, (2.5, 97.5)).tolist()
  tokens = int(count_D.sum())
  return {'mean': float(sum_D.sum() / tokens), 'low': low, 'high': high, 'tokens': tokens}
