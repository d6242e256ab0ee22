"""What every way of fitting is given, what it may spend, and what it returns.

Letters: F frequencies.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from posjax.extension import Spectrum, applicable, extend, spectra, takes


@dataclasses.dataclass(kw_only=True)
class Budget:
  """The loss to lower, and how many windows of text may be read to do so.

  spectrum: of the model, as trained. Texts have `length` tokens, factor x trained_length.
  loss: (spectrum, n) -> mean loss of window n, in nats. One program for spectra of one form.
  slope: (log_divisor_F, log_temperature, n) -> the loss of window n, and its derivatives by both.
  windows: how many there are.
  passes: windows that may be read; one with its derivative counts as three, about what it takes.
  """

  spectrum: Any
  factor: float
  trained_length: int
  length: int
  loss: Callable[[Any, int], Any]
  slope: Callable[[Any, Any, int], tuple[Any, tuple[Any, Any]]]
  windows: int
  passes: int
  spent: int = 0

  def __post_init__(self):
    least = self.windows + 3
    if self.passes < least:
      raise ValueError(
        f'{self.passes} windows are too few to read: a step takes 3, a last look {self.windows}. '
        f'Use --passes={least} or more.'
      )

  @property
  def left(self) -> int:
    return self.passes - self.spent

  def measure(self, recipe: dict) -> float:
    """Mean loss of all windows under an extension, in nats: `windows` spent."""
    self.spent += self.windows
    return self.look(recipe)

  def look(self, recipe: dict) -> float:
    """The same for whoever only compares."""
    spectrum = self.extended(recipe)
    return float(np.mean([np.asarray(self.loss(spectrum, n)) for n in range(self.windows)]))

  def extended(self, recipe: dict) -> Any:
    """The spectrum under an extension; where the recipe does not say, with the factor to fit."""
    settings = {
      'factor': self.factor, 'trained_length': self.trained_length, 'length': self.length,
    }  # fmt: skip
    known = takes(recipe['name'])
    return extend(self.spectrum, **{k: v for k, v in settings.items() if k in known} | recipe)

  def divisors(self, name: str) -> np.ndarray:
    """divisor_F of a closed form at the factor to fit."""
    return waves(self.spectrum).frequency_F / waves(self.extended({'name': name})).frequency_F


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """recipe: an extension; loss: of all windows, in nats; passes: spent; history: (passes, loss)
  along the way, of single windows by gradient, of the best so far by search."""

  recipe: dict[str, Any]
  loss: float
  passes: int
  history: list[tuple[int, float]]


def fits(spectrum: Spectrum) -> bool:
  """Whether `rescale`, which is what is found, changes it."""
  return 'rescale' in applicable(spectrum)


def waves(spectrum: Any) -> Spectrum:
  """The spectrum to fit: the first that has waves. Others get the same divisors.

  Raises ValueError where there is none, or they differ.
  """
  found = [one for one in spectra(spectrum) if fits(one)]
  if not found:
    raise ValueError(
      'There are no waves to fit: no scheme of the model has any, or only in layers that '
      'extensions leave alone. Extend it by a closed form: --eval=configs/eval/extend.py.'
    )
  for one in found:
    if not np.array_equal(one.frequency_F, found[0].frequency_F):
      raise ValueError(
        'The model has different waves, which one list of divisors cannot fit. Where its layers '
        "differ, leave all but one kind as they are: 'extended': False in config.layers."
      )
  return found[0]
