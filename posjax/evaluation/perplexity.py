"""Loss, perplexity and bits per byte, of targets that are the same for every length and recipe."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from posjax.evaluation.bootstrap import estimate
from posjax.evaluation.windows import batches, non_overlapping, sliding


def score(
  losses: Callable,
  spectrum: Any,
  token_DT: np.ndarray,
  *,
  length: int,
  stride: int,
  batch_tokens: int,
) -> dict[str, np.ndarray]:
  """Returns loss_DN, in nats, by estimator: 'sliding' and 'non-overlapping'.

  The two differ only in the context that each target sees. Windows that both need (with a stride of
  length / 2, every second one) run once. All batches have one shape, so `losses` compiles once.

  Raises ValueError if a loss is not finite.
  """
  D, N = token_DT.shape[0], token_DT.shape[1] - 1
  estimators = {
    'sliding': sliding(N, length, stride),
    'non-overlapping': non_overlapping(N, length),
  }
  starts = sorted({w.start for windows in estimators.values() for w in windows})
  rows = min(max(1, batch_tokens // length), D * len(starts))
  loss_BL = np.concatenate(
    [np.asarray(losses(spectrum, batch)) for batch in batches(token_DT, starts, length, rows)]
  )
  loss_DWL = loss_BL[: D * len(starts)].reshape(D, len(starts), length)
  loss_DN = {
    name: np.concatenate(
      [loss_DWL[:, starts.index(w.start), w.first - w.start : w.stop - w.start] for w in windows],
      axis=1,
    )
    for name, windows in estimators.items()
  }
  for x_DN in loss_DN.values():
    if bad := np.count_nonzero(~np.isfinite(x_DN)):
      raise ValueError(
        f'{bad} of {x_DN.size} losses at length {length} are not finite. '
        'Use float32 activations, or a length and factor that the model can bear.'
      )
  return loss_DN


def summarize(
  loss_DN: np.ndarray, weight_SD: np.ndarray, bytes_per_token: float
) -> dict[str, float | None]:
  """Returns the loss in nats per token, every target weighing the same, its interval, and

    perplexity = exp(loss),   bits per byte = loss / ln 2 / bytes_per_token

  of which only bits per byte compare models with different tokenizers.
  """
  summary = estimate(loss_DN, weight_SD)
  loss = summary.pop('mean')
  return {
    'loss': loss,
    **summary,
    'perplexity': math.exp(loss),
    'bits_per_byte': loss / math.log(2) / bytes_per_token,
    'tokens': loss_DN.size,
    'documents': len(loss_DN),
  }


def compare(loss_of: dict[str, np.ndarray], weight_SD: np.ndarray) -> dict[str, dict]:
  """Returns for each recipe, from its loss_DN, how far `behind` the best it is, in nats per token.

  The interval is paired. `best` marks the lowest loss, and what the interval cannot tell from it.
  """
  best_DN = min(loss_of.values(), key=lambda loss_DN: loss_DN.mean(dtype=np.float64))
  standing = {}
  for recipe, loss_DN in loss_of.items():
    behind = estimate(loss_DN.astype(np.float64) - best_DN, weight_SD)
    standing[recipe] = {
      'behind': behind['mean'],
      'behind_low': behind['low'],
      'behind_high': behind['high'],
      'best': loss_DN is best_DN or (behind['low'] is not None and behind['low'] <= 0),
    }
  return standing


def tabulate(
  scored: dict[tuple[int, str], dict[str, np.ndarray]],
  factor: dict[tuple[int, str], float | None],
  weight_SD: np.ndarray,
  bytes_per_token: float,
) -> list[dict]:
  """Returns a row per estimator, length and recipe: what was set, `summarize` and `compare`.

  `scored` holds for each (length, recipe) what `score` returned, `factor` its extension factor.
  """
  rows = []
  for estimator in ('sliding', 'non-overlapping'):
    for length in dict.fromkeys(at for at, _ in scored):
      loss_of = {recipe: x[estimator] for (at, recipe), x in scored.items() if at == length}
      standing = compare(loss_of, weight_SD)
      rows += [
        {
          'length': length,
          'recipe': recipe,
          'factor': factor[length, recipe],
          'estimator': estimator,
          **summarize(loss_DN, weight_SD, bytes_per_token),
          **standing[recipe],
        }
        for recipe, loss_DN in loss_of.items()
      ]
  return rows
