"""Extensions found by measuring: a divisor for each wave, and a temperature, for frozen weights.

  python -m posjax.fit --workdir=runs/quickstart --factor=8 --method=gradient

  gradient.py   descends the loss of long texts
  evolution.py  searches as LongRoPE does
  grid.py       the best of the closed forms, for the same number of tokens read
"""

from posjax.fit.budget import Budget, Found
from posjax.fit.evolution import evolution
from posjax.fit.files import resolve, save
from posjax.fit.gradient import gradient
from posjax.fit.grid import grid

METHODS = {'gradient': gradient, 'evolution': evolution, 'grid': grid}

__all__ = ['METHODS', 'Budget', 'Found', 'resolve', 'save']
