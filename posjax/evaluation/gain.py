"""What long context gains: the same targets, predicted with a short and with a long context.

Loss falls with length in most plots because longer windows hold a smaller share of targets with
little context. Here both sides score the same targets, so that what is left is the context.
"""

import numpy as np

from posjax.evaluation.bootstrap import interval


def gain(
    short_DN: np.ndarray, long_DN: np.ndarray, scored_N: np.ndarray, weight_SD: np.ndarray
) -> dict[str, float | None]:
  """Returns mean(short - long) over the targets `scored_N`, nats per token; positive: it helps.

  The interval is paired: documents are redrawn, both contexts are compared on each draw.
  """
  saved_DN = (short_DN.astype(np.float64) - long_DN)[:, scored_N]
  low, high = interval(saved_DN.sum(1), np.full(len(saved_DN), saved_DN.shape[1]), weight_SD)
  return {'gain': float(saved_DN.mean()), 'low': low, 'high': high, 'tokens': saved_DN.size}


def gains(
    scored: dict[tuple[int, str], dict[str, np.ndarray]], scored_N: np.ndarray,
    weight_SD: np.ndarray, trained_length: int,
) -> list[dict]:
  """Returns each recipe's gain at each length over the same recipe at the trained length.

  Both contexts come from sliding windows: the short one is half a window at least, never nothing.
  """
  return [
      {'recipe': recipe, 'length': length, **gain(
          scored[trained_length, recipe]['sliding'], loss_DN['sliding'], scored_N, weight_SD)}
      for (length, recipe), loss_DN in scored.items()
      if length > trained_length and (trained_length, recipe) in scored]
