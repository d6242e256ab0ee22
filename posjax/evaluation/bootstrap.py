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
