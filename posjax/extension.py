"""Context extensions: functions from one spectrum to another, on the host, in float64.

A spectrum holds what a scheme uses but does not learn. An extension swaps these numbers and
nothing else: no weight changes, the parameter tree cannot change, and as the spectrum is an
argument of the compiled function, a sweep over a hundred settings compiles once.

`extend(spectrum, name='yarn', factor=4.0, trained_length=2048)` picks a function of this file by
its name. Every method takes `factor`, how many times longer than `trained_length` (tokens) the text
gets, and is the identity at factor 1. Where schemes are combined, a model has a pytree of spectra:
each changes that the method makes sense for.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['frequency_F', 'slope_H', 'rate', 'temperature', 'offset'],
  meta_fields=['fixed'],
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum:
  """What a scheme uses but does not learn; None where it uses no such thing.

  frequency_F: radians per token, of each rotated pair or sinusoid.
  slope_H: logits per token of distance, for each head.
  rate: table rows, bucket units, or whatever else counts tokens, per token: 1 as trained.
  temperature: multiplies the whole logit (DeepSeek's convention), 1 as trained.
  offset: added to positions that are counted from some start; training steps draw their own.
  fixed: extensions leave it alone, as that of layers whose windows stay as they are.
  """

  frequency_F: np.ndarray | jax.Array | None = None
  slope_H: np.ndarray | jax.Array | None = None
  rate: float | jax.Array | None = None
  temperature: float | jax.Array = 1.0
  offset: float | jax.Array | None = None
  fixed: bool = False


def none(spectrum: Spectrum) -> Spectrum:
  """Leaves the spectrum as trained."""
  return spectrum


def linear(spectrum: Spectrum, *, factor: float, trained_length: int) -> Spectrum:
  """Position interpolation: `factor` tokens take the place of one (Chen et al. 2023,
  arXiv:2306.15595, eq. 4).

    every rate per token / factor: frequencies, slopes, table rows

  For rotary schemes this is frequency / factor (positions stay as they are: scaling both would
  divide twice); for biases and tables the distance or position is what shrinks.
  """
  # A plain number stays one: an array in its place would be another type, and compile again.
  shrink = lambda x: None if x is None else x / factor
  return dataclasses.replace(
    spectrum,
    frequency_F=shrink(spectrum.frequency_F),
    slope_H=shrink(spectrum.slope_H),
    rate=shrink(spectrum.rate),
  )


def ntk(spectrum: Spectrum, *, factor: float, trained_length: int) -> Spectrum:
  """NTK-aware: raises the base, so that fast waves stay and the slowest is interpolated (bloc97
  2023, "NTK-Aware Scaled RoPE"; Peng et al. 2023, arXiv:2309.00071, sec. 3.1).

    theta' = theta factor^(d / (d - 2)), so  frequency'[f] = frequency[f] factor^(-f / (F - 1))

  with d = 2F rotated dimensions; the last pair becomes exactly `linear`. No temperature.
  """
  w_F = _geometric(spectrum, 'ntk')
  F = len(w_F)
  return dataclasses.replace(spectrum, frequency_F=w_F * factor ** (-np.arange(F) / (F - 1)))


def yarn(
  spectrum: Spectrum,
  *,
  factor: float,
  trained_length: int,
  fast: float = 32.0,
  slow: float = 1.0,
  truncate: bool = True,
  attention_factor: float | None = None,
) -> Spectrum:
  """Stretches slow waves by `factor` and keeps fast ones (Peng et al. 2023, arXiv:2309.00071,
  sec. 3.2 and 3.4).

    frequency'[f] = frequency[f] * (keep[f] + (1 - keep[f]) / factor)
    temperature'  = temperature * attention_factor^2,   attention_factor = 0.1 ln(factor) + 1

  keep falls from 1 to 0 between the waves that turn `fast` and `slow` times within
  `trained_length` tokens; linearly in the index f, as in the authors' code (the paper: linearly in
  the number of turns). `truncate` rounds the two indices outward, as they do too. The authors
  multiply cosines and sines by attention_factor, on queries and keys: logits get its square.
  """
  w_F = _geometric(spectrum, 'yarn')
  F = len(w_F)
  index = lambda turns: math.log(w_F[0] * trained_length / (2 * math.pi * turns)) / math.log(
    w_F[0] / w_F[1]
  )
  low, high = index(fast), index(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * F - 1)  # 2F - 1, not F - 1: the authors' code
  if low == high:
    high += 0.001  # theirs too: no division by zero
  keep_F = 1 - np.clip((np.arange(F) - low) / (high - low), 0, 1)
  m = 0.1 * math.log(factor) + 1 if attention_factor is None else attention_factor
  return dataclasses.replace(
    spectrum,
    frequency_F=w_F * (keep_F + (1 - keep_F) / factor),
    temperature=spectrum.temperature * m**2,
  )


METHODS: dict[str, Callable[..., Spectrum]] = {
  method.__name__: method for method in (none, linear, ntk, yarn)
}


def extend(spectrum: Any, *, name: str, **settings) -> Any:
  """The spectrum, or pytree of spectra, after method `name` with its `settings`, in float64.

  Raises ValueError for an unknown method or setting, a factor below 1, a trained length that is
  missing, or a method that makes no sense for the spectrum; the message says which one would.
  """
  if name not in METHODS:
    raise ValueError(f"No extension '{name}'. There are: {', '.join(METHODS)}.")
  if name == 'none':
    if settings.get('factor') not in (None, 1):
      raise ValueError(
        f"Extension 'none' with factor {settings['factor']} would leave everything as trained. "
        f'Name a method: {", ".join(applicable(spectrum)[1:]) or "this scheme has none"}.'
      )
    return spectrum
  known = set(inspect.signature(METHODS[name]).parameters) - {'spectrum'}
  if unknown := sorted(set(settings) - known):
    raise ValueError(
      f"Extension '{name}' has no setting {unknown[0]!r}. It takes: {', '.join(sorted(known))}."
    )
  for key in ('factor', 'trained_length'):
    if settings.get(key) is None:
      raise ValueError(
        f"Extension '{name}' needs {key}. Set --config.extension.{key}, "
        'in tokens for trained_length, as a multiple of it for factor.'
      )
    if not settings[key] >= 1:
      raise ValueError(
        f"Extension '{name}' got {key} = {settings[key]}, which would shorten the context. "
        f'Use {key} >= 1.'
      )
  able = applicable(spectrum)
  if name not in able:
    raise ValueError(
      f"Extension '{name}' makes no sense here: {_why_not(spectrum)}. Use: {', '.join(able)}."
    )
  if settings['factor'] == 1:
    return spectrum
  method = functools.partial(METHODS[name], **settings)
  return each(lambda one: method(one) if name in applicable(one) else one, spectrum)


def each(change: Callable[[Spectrum], Spectrum], spectrum: Any) -> Any:
  """The pytree with every Spectrum changed."""
  return jax.tree.map(change, spectrum, is_leaf=lambda x: isinstance(x, Spectrum))


def applicable(spectrum: Any) -> list[str]:
  """Names of the methods that make sense for this spectrum, or for one of a pytree of spectra."""
  able = {'none'}
  for one in _spectra(spectrum):
    if one.frequency_F is not None:
      able |= METHODS.keys()
    if one.slope_H is not None or one.rate is not None:
      able |= {'linear'}
  return [name for name in METHODS if name in able]


def _spectra(spectrum: Any) -> list[Spectrum]:
  """Those of a pytree that an extension may change."""
  leaves = jax.tree.leaves(spectrum, is_leaf=lambda x: isinstance(x, Spectrum))
  return [one for one in leaves if not one.fixed]


def _why_not(spectrum: Any) -> str:
  if not any(one.slope_H is not None or one.rate is not None for one in _spectra(spectrum)):
    return 'the scheme has neither frequencies nor anything else that counts tokens'
  return 'it changes frequencies, and the scheme has none'


def _geometric(spectrum: Spectrum, name: str) -> np.ndarray:
  """The frequencies, if they fall by one ratio, as the methods that raise a base assume."""
  w_F = np.asarray(spectrum.frequency_F, np.float64)
  if len(w_F) < 2 or not np.allclose(w_F[1:] / w_F[:-1], w_F[1] / w_F[0], rtol=1e-9):
    raise ValueError(
      f"Extension '{name}' needs at least two frequencies that fall by one ratio, got {w_F}. "
      'Apply it to the spectrum as trained, not to one that was extended before.'
    )
  return w_F
