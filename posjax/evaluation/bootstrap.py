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


def interval(
    nats_D: np.ndarray, tokens_D: np.ndarray, weight_SD: np.ndarray
) -> tuple[float | None, float | None]:
  """95 % percentile interval of sum(nats) / sum(tokens) (Efron 1979), in nats per token.

  `nats_D` may be a difference of two sums over the same tokens. One document has no interval: None.
  """
  if len(nats_D) < 2:
    return None, None
  mean_S = (weight_SD @ nats_D) / (weight_SD @ tokens_D)
  low, high = np.percentile(mean_S, (2.5, 97.5))
  return float(low), float(high)
