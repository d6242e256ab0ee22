"""Divisors by evolutionary search, as LongRoPE finds them."""

import math

import numpy as np

from posjax.fit.budget import Budget, Found

STARTS = ('linear', 'ntk', 'yarn')  # the paper's first individuals
PARENTS = 8  # of a generation; the paper: 32 of 64, for 40 generations
CHILDREN = 8  # by mutation, and as many by crossover
CHANCE = 0.3  # of a divisor to be drawn anew; the paper's p
BEYOND = 1.25  # the largest divisor, in factors; the paper's space
GRAIN = 0.01  # of the divisors; the paper's


def evolution(budget: Budget, seed: int) -> Found:
  """Evolutionary search over divisors that never fall from fast to slow waves (Ding et al. 2024,
  arXiv:2402.13753, sec. 3.2 and algorithm 1).

  A generation is the best so far, children with some divisors drawn anew, and children that have
  each divisor from one of two parents. The amplitude is the paper's, sqrt(1 + ln s / ln trained).
  Two deviations: populations are smaller, and children that fall are raised to a running maximum
  where the paper draws again. First positions are not kept as trained (`rescale`'s start = 0).
  """
  rng = np.random.default_rng(seed)
  amplitude = math.sqrt(1 + math.log(budget.factor) / math.log(budget.trained_length))
  most = BEYOND * budget.factor
  seen, history = {}, []

  def recipe_of(divisors):
    return {'name': 'rescale', 'divisors': divisors, 'attention_factor': amplitude}

  def measure(divisor_F):
    divisors = tuple(np.round(np.maximum.accumulate(divisor_F) / GRAIN).astype(int).tolist())
    if divisors not in seen and budget.left >= budget.windows:
      seen[divisors] = budget.measure(recipe_of(tuple(n * GRAIN for n in divisors)))
      history.append((budget.spent, min(seen.values())))

  def draw_anew(divisor_F):
    drawn_F = rng.uniform(1, most, len(divisor_F))
    return np.where(rng.random(len(divisor_F)) < CHANCE, drawn_F, divisor_F)

  for name in STARTS:
    measure(budget.divisors(name))
  idle = 0
  while budget.left >= budget.windows and idle < 100:  # a tiny space may have been seen whole
    before = len(seen)
    best = [GRAIN * np.array(d) for d in sorted(seen, key=seen.get)[:PARENTS]]
    for _ in range(CHILDREN):
      measure(draw_anew(best[rng.integers(len(best))]))
    for _ in range(CHILDREN):
      one, other = (best[rng.integers(len(best))] for _ in range(2))
      measure(np.where(rng.random(len(one)) < 0.5, one, other))
    idle = idle + 1 if len(seen) == before else 0
  found = min(seen, key=seen.get)
  return Found(
    recipe=recipe_of(tuple(n * GRAIN for n in found)),
    loss=seen[found],
    passes=budget.spent,
    history=history,
  )
