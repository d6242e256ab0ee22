"""What a family's file gives: how its config reads, and how its weights are called."""

import dataclasses
import importlib
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from posjax.interop.keys import Keys
from posjax.interop.table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A checkpoint's model in posjax's words.

  model, position, layers, extension: sections of configs/base.py, as far as they differ from it.
  length: tokens that it is made to read.
  prefix: of the names of its tensors, which a checkpoint without a head may lack.
  """

  model: dict[str, Any]
  position: dict[str, Any]
  extension: dict[str, Any] = dataclasses.field(default_factory=lambda: {'name': 'none'})
  layers: tuple[dict[str, Any], ...] | None = None
  length: int
  table: Table
  prefix: str = ''


def names() -> list[str]:
  """Names of all families: those of the files in families/."""
  here = pathlib.Path(__file__).parent / 'families'
  return sorted(file.stem for file in here.glob('*.py') if file.stem != '__init__')


def load(name: str) -> ModuleType:
  return importlib.import_module(f'posjax.interop.families.{name}')


def find(keys: Keys) -> ModuleType:
  """The family of a config.json, by its `architectures`, or else by its `model_type`.

  A family's file has ARCHITECTURES, MODEL_TYPE and read(keys) -> Recipe.
  """
  architectures, kind = keys.take('architectures', []), keys.take('model_type', None)
  if not isinstance(architectures, list) or len(architectures) > 1:
    raise keys.refuse('architectures', architectures, 'It reads a list of one.')
  families = [load(name) for name in names()]
  for family in families:
    if architectures and architectures[0] in family.ARCHITECTURES:
      if kind not in (None, family.MODEL_TYPE):
        raise keys.refuse('model_type', kind, f'For {architectures[0]} it is {family.MODEL_TYPE}.')
      return family
    if not architectures and kind == family.MODEL_TYPE:
      return family
  known = ', '.join(name for family in families for name in family.ARCHITECTURES)
  if architectures:
    raise keys.refuse('architectures', architectures[0], f'It knows: {known}.')
  raise keys.refuse('model_type', kind, f'It knows: {known}.')


def pattern(layers: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...] | None:
  """The shortest pattern that, repeated over the depth, gives these layers; None if all say
  nothing of their own."""
  for period in range(1, len(layers) + 1):
    if all(layer == layers[n % period] for n, layer in enumerate(layers)):
      return None if period == 1 and not layers[0] else tuple(layers[:period])
  return None
