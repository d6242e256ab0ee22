"""What long context gains: the same targets, predicted with a short and with a long context.

Loss falls with length in most plots because longer windows hold a smaller share of targets with
little context. Here both sides score the same targets, so that what is left is the context.
"""

import numpy as np

from posjax.evaluation.bootstrap import estimate


def gains(
  scored: dict[tuple[int, str], dict[str, np.ndarray]],
  full_N: np.ndarray,
  weight_SD: np.ndarray,
  trained_length: int,
) -> list[dict]:
  """Returns for each recipe and length: mean(short - long), nats per token; positive: it helps.

  The short context is the trained length's, by the same recipe; `full_N` says which targets count.
  Both come from sliding windows, so that the short one is not mostly the beginnings of windows.
  The interval is paired: documents are redrawn, and both contexts are compared on each draw.
  """
  rows = []
  for (length, recipe), loss_DN in scored.items():
    if length > trained_length and (trained_length, recipe) in scored:
      short_DN = scored[trained_length, recipe]['sliding'].astype(np.float64)
      saved_DN = (short_DN - loss_DN['sliding'])[:, full_N]
      gain = estimate(saved_DN, weight_SD)
      rows.append({'recipe': recipe, 'length': length, **gain, 'tokens': saved_DN.size})
  return rows
