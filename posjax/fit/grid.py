"""The best of the closed forms, for what the other ways of fitting may spend."""

import numpy as np

from posjax.fit.budget import Budget, Found

FORMS = ('linear', 'ntk', 'by_parts', 'yarn')


def grid(budget: Budget, seed: int) -> Found:
  """Every closed form at factors spread evenly, by their logarithms, from half to four times the
  one that the length asks for; as many as the budget pays for. Nothing is random."""
  del seed
  count = max(1, budget.left // budget.windows // len(FORMS))
  factors = np.geomspace(max(1.0, budget.factor / 2), 4 * budget.factor, count)
  if count == 1:
    factors = np.array([budget.factor])
  losses, history = {}, []
  for factor in factors.tolist():
    for name in FORMS:
      if budget.left >= budget.windows:
        losses[name, factor] = budget.measure({'name': name, 'factor': factor})
        history.append((budget.spent, min(losses.values())))
  name, factor = min(losses, key=losses.get)
  return Found(
    recipe={'name': name, 'factor': factor},
    loss=losses[name, factor],
    passes=budget.spent,
    history=history,
  )
