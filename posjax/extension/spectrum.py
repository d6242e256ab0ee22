"""What a scheme uses but does not learn: the numbers that an extension changes."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from posjax.extension.far import Far


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    'frequency_F', 'slope_H', 'rate', 'temperature', 'amplitude', 'log_length', 'offset', 'far',
  ],
  meta_fields=['fixed'],
)  # fmt: skip
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
  """What a scheme uses but does not learn; None where it uses no such thing.

  frequency_F: radians per token, of each rotated pair or sinusoid; or [P, F], a row for each
    position, where tokens keep the frequencies that held when they came (`dynamic`).
  slope_H: logits per token of distance, for each head.
  rate: table rows, bucket units, or whatever else counts tokens, per token: 1 as trained.
  temperature: multiplies the whole logit (DeepSeek's convention), 1 as trained.
  amplitude: multiplies what is rotated, of queries and of keys (YaRN's convention), 1 as trained;
    or [P], for each position. None: the scheme rotates neither.
  log_length: queries past exp(log_length) tokens are multiplied by ln(pos + 1) / log_length.
  offset: added to positions that are counted from some start; training steps draw their own.
  far: how far keys are seen, where not as they are (extension/far.py).
  fixed: extensions leave it alone, as that of layers whose windows stay as they are.
  """

  frequency_F: np.ndarray | jax.Array | None = None
  slope_H: np.ndarray | jax.Array | None = None
  rate: float | jax.Array | None = None
  temperature: float | jax.Array = 1.0
  amplitude: float | np.ndarray | jax.Array | None = None
  log_length: float | jax.Array | None = None
  offset: float | jax.Array | None = None
  far: Far | None = None
  fixed: bool = False

  def rescaled(self, divisor_F, temperature) -> 'Spectrum':
    """Each wave longer by its divisor, all logits times the temperature."""
    return dataclasses.replace(
      self, frequency_F=self.frequency_F / divisor_F, temperature=self.temperature * temperature
    )

  @property
  def capacity(self) -> float:
    """Positions it has numbers for."""
    frequency_F = self.frequency_F
    return len(frequency_F) if frequency_F is not None and frequency_F.ndim == 2 else np.inf


def each(change: Callable[[Spectrum], Spectrum], spectrum: Any) -> Any:
  """The pytree with every Spectrum changed."""
  return jax.tree.map(change, spectrum, is_leaf=lambda x: isinstance(x, Spectrum))


def spectra(spectrum: Any) -> list[Spectrum]:
  """Those of a pytree, in order."""
  return jax.tree.leaves(spectrum, is_leaf=lambda x: isinstance(x, Spectrum))
