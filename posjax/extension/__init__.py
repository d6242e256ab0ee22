"""Context extensions: functions from one spectrum to another, on the host, in float64.

A spectrum holds what a scheme uses but does not learn. An extension swaps these numbers and
nothing else: no weight changes, the parameter tree cannot change, and as the spectrum is an
argument of the compiled function, a sweep over a hundred settings compiles once.

`extend(spectrum, name='yarn', factor=4.0, trained_length=2048)` picks a function of this package by
its name. Those that take a `factor`, how many times longer than `trained_length` (tokens) the text
gets, are the identity at factor 1; but for LongRoPE's, whose divisors are given. Where schemes are
combined, a model has a pytree of spectra: each changes that the method makes sense for.

  frequencies.py  closed forms, the same for every position
  dynamic.py      what follows the length of the text, exactly or as keys are cached
  far.py          far keys seen from other places than their own
"""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from posjax.extension import dynamic, far, frequencies
from posjax.extension.far import Far
from posjax.extension.spectrum import Spectrum, each, spectra

__all__ = ['METHODS', 'Far', 'Spectrum', 'applicable', 'each', 'extend', 'spectra', 'takes']


def none(spectrum: Spectrum) -> Spectrum:
  """Leaves the spectrum as trained."""
  return spectrum


def _anything(spectrum: Spectrum) -> bool:
  return True


def _rates(spectrum: Spectrum) -> bool:
  return any(x is not None for x in (spectrum.frequency_F, spectrum.slope_H, spectrum.rate))


def _frequencies(spectrum: Spectrum) -> bool:
  return spectrum.frequency_F is not None


def _rotation(spectrum: Spectrum) -> bool:
  return spectrum.frequency_F is not None and spectrum.amplitude is not None


# What each method needs of a spectrum.
NEEDS: dict[Callable[..., Spectrum], Callable[[Spectrum], bool]] = {
  none: _anything,
  frequencies.linear: _rates,
  frequencies.ntk: _frequencies,
  frequencies.by_parts: _frequencies,
  frequencies.ntk_by_parts: _frequencies,
  frequencies.yarn: _frequencies,
  frequencies.llama3: _frequencies,
  dynamic.rescale: _frequencies,
  frequencies.rebase: _frequencies,
  frequencies.drop: _rotation,
  frequencies.log_n: _anything,
  dynamic.dynamic_linear: _rotation,
  dynamic.dynamic_ntk: _rotation,
  dynamic.dynamic_yarn: _rotation,
  dynamic.longrope: _rotation,
  far.rerope: _rotation,
  far.self_extend: _rotation,
  far.dual_chunk: _rotation,
  far.streaming: _rotation,
}
METHODS: dict[str, Callable[..., Spectrum]] = {method.__name__: method for method in NEEDS}
WHY_NOT = {
  _rates: 'the scheme has neither frequencies nor anything else that counts tokens',
  _frequencies: 'it changes frequencies, and the scheme has none',
  _rotation: 'it is about queries and keys that are rotated, and the scheme rotates none',
}
FIXED = "the layers that it is for have 'extended': False in config.layers"


def extend(spectrum: Any, *, name: str, **settings) -> Any:
  """The spectrum, or pytree of spectra, after method `name` with its `settings`, in float64.

  A setting that is None counts as not given; so does a factor of 1 where the method takes none.

  Raises ValueError for an unknown method or setting, one that is missing, a factor below 1, or a
  method that makes no sense for the spectrum; the message says which one would.
  """
  settings = {key: value for key, value in settings.items() if value is not None}
  known, able = takes(name), applicable(spectrum)
  if name not in able:
    needs = NEEDS[METHODS[name]]
    fixed = any(needs(one) for one in spectra(spectrum))
    raise ValueError(
      f"Extension '{name}' makes no sense here: {FIXED if fixed else WHY_NOT[needs]}. "
      f'Use: {", ".join(able)}.'
    )
  if name == 'none' and settings.get('factor', 1) != 1:
    raise ValueError(
      f"Extension 'none' with factor {settings['factor']} would leave everything as trained. "
      f'Name a method: {", ".join(able[1:])}.'
    )
  for key in {'factor', 'trained_length', 'length'} - known.keys():
    if key != 'factor' or settings.get('factor', 1) == 1:
      settings.pop(key, None)
  if unknown := sorted(settings.keys() - known.keys()):
    raise ValueError(
      f"Extension '{name}' has no setting {unknown[0]!r}. {_meant(unknown[0], known)}"
      f'It takes: {", ".join(sorted(known)) or "none"}.'
    )
  for key, parameter in known.items():
    if parameter.default is parameter.empty and key not in settings:
      raise ValueError(
        f"Extension '{name}' needs {key}. Set --config.extension.{key}"
        + {
          'trained_length': ', in tokens.',
          'factor': ', how many times longer than trained_length the text gets.',
        }.get(key, '.')
      )
  for key in ('factor', 'trained_length'):
    if key in settings and not settings[key] >= 1:
      raise ValueError(
        f"Extension '{name}' got {key} = {settings[key]}, which would shorten the context. "
        f'Use {key} >= 1.'
      )
  for key in ('temperature', 'attention_factor'):
    if key in settings and not settings[key] > 0:
      raise ValueError(
        f"Extension '{name}' got {key} = {settings[key]}, which would turn attention away from "
        f'what it is meant for. Use {key} > 0.'
      )
  if name == 'none' or (settings.get('factor') == 1 and METHODS[name] is not dynamic.longrope):
    return spectrum
  method = functools.partial(METHODS[name], **settings)
  return each(lambda one: method(one) if _can(name, one) else one, spectrum)


def takes(name: str) -> dict[str, inspect.Parameter]:
  """The settings of a method. Raises ValueError for an unknown one."""
  if name not in METHODS:
    raise ValueError(
      f"No extension '{name}'. {_meant(name, METHODS)}There are: {', '.join(METHODS)}."
    )
  return dict(list(inspect.signature(METHODS[name]).parameters.items())[1:])


def applicable(spectrum: Any) -> list[str]:
  """Names of the methods that make sense for this spectrum, or for one of a pytree of spectra."""
  return [name for name in METHODS if any(_can(name, one) for one in spectra(spectrum))]


def _can(name: str, spectrum: Spectrum) -> bool:
  return name == 'none' or (not spectrum.fixed and NEEDS[METHODS[name]](spectrum))


def _meant(name: str, names: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, names, n=1)
  return f"Did you mean '{close[0]}'? " if close else ''
