"""Position schemes, one file each, found by file name: posjax/positions/<name>.py."""

import difflib
import importlib
import inspect
import pathlib

from posjax.positions.base import Dims, Scheme, merged

__all__ = ['Dims', 'Scheme', 'make', 'merged', 'names']


def names() -> list[str]:
  """Names of all schemes: those of the files beside this one."""
  here = pathlib.Path(__file__).parent
  return sorted(f.stem for f in here.glob('*.py') if f.stem not in ('__init__', 'base'))


def find(name: str) -> type[Scheme]:
  """The class that posjax/positions/<name>.py defines. Raises ValueError if there is none."""
  if name not in names():
    close = difflib.get_close_matches(name, names(), n=1)
    meant = f"Did you mean '{close[0]}'? " if close else ''
    raise ValueError(f"No position scheme '{name}'. {meant}There are: {', '.join(names())}.")
  module = importlib.import_module(f'{__name__}.{name}')
  defined = [
    c
    for _, c in inspect.getmembers(module, inspect.isclass)
    if issubclass(c, Scheme) and c.__module__ == module.__name__
  ]
  if len(defined) != 1:
    raise ImportError(f'{module.__file__} must define exactly one Scheme, not {len(defined)}.')
  return defined[0]


def make(name: str, **hyperparameters) -> Scheme:
  """The scheme `name` with its hyperparameters. Raises ValueError where either is unknown."""
  scheme = find(name)
  known = list(inspect.signature(scheme).parameters)
  for key in hyperparameters:
    if key not in known:
      close = difflib.get_close_matches(key, known, n=1)
      meant = f"Did you mean '{close[0]}'? " if close else ''
      takes = ', '.join(known) or 'nothing'
      raise ValueError(f"Position scheme '{name}' has no '{key}'. {meant}It takes: {takes}.")
  return scheme(**hyperparameters)
