"""The phases of a run: one after the other on the same parameters, each with its own config.

  config.phases = (
    {'train': {'length': 1024, 'steps': 50}, 'extension': {'name': 'yarn', 'factor': 8.0}},
  )

The first phase is the config itself. Each that follows is the config with what it sets differently.
"""

import bisect
import itertools
from typing import Any

import jax
from ml_collections import ConfigDict

from posjax.config import nearest
from posjax.experiment import trained_length

SECTIONS = ('train', 'position', 'layers', 'sampling', 'extension')  # that a phase may set


def unroll(config: ConfigDict) -> tuple[ConfigDict, ...]:
  """The config of each phase, the first one's first.

  A later phase's extension counts from the length that the weights were first trained at, unless it
  says otherwise. Raises ValueError for a key that a phase cannot set, or a value of another type.
  """
  first = _copy(config)
  phases = [first]
  for number, changes in enumerate(config.phases or (), 2):
    phase = _copy(config)
    for key, value in changes.items():
      _set(phase, key, value, number)
    if phase.extension.trained_length is None:
      phase.extension.trained_length = trained_length(first)
    if (phase.train.clip is None) != (first.train.clip is None):
      raise ValueError(
        f'Phase {number} has train.clip = {phase.train.clip}, the first {first.train.clip}: the '
        'optimizer would be another. Clip in all phases, at a large norm to do nothing, or in none.'
      )
    phases.append(phase)
  return tuple(phases)


def last(config: ConfigDict) -> ConfigDict:
  """The config that a run's final parameters were trained with."""
  return unroll(config)[-1]


def at_step(config: ConfigDict, step: int) -> ConfigDict:
  """The config that the parameters after `step` steps were trained with; a phase's last step is its
  own."""
  phases = unroll(config)
  ends = list(itertools.accumulate(phase.train.steps for phase in phases))
  return phases[min(bisect.bisect_left(ends, step), len(phases) - 1)]


def check_parameters(first: ConfigDict, like: Any, phase: ConfigDict, other: Any) -> None:
  """Raises ValueError unless two phases, of parameters `like` and `other`, can hand them over."""
  before, after = _shapes(like), _shapes(other)
  names = [name for name in before | after if before.get(name) != after.get(name)]
  if names:
    keys = [key for key in ('position', 'layers') if first[key] != phase[key]]
    if trained_length(first) != trained_length(phase):
      keys.append('extension.trained_length')
    was, is_ = (shapes.get(names[0], 'absent') for shapes in (before, after))
    raise ValueError(
      f'{" and ".join(keys)} would make other parameters than the first phase has: {names[0]} '
      f'{is_}, not {was}. Set what leaves them alone, or train the phase as a run of its own, '
      'with --config.init_from.'
    )


def _copy(config: ConfigDict) -> ConfigDict:
  config = config.copy_and_resolve_references()
  config.phases = None
  return config


def _set(phase: ConfigDict, key: str, value: Any, number: int) -> None:
  """Sets a section: `train` key by key, the others as a whole, as what they name has other keys."""
  if key not in SECTIONS:
    raise ValueError(f"Phase {number} cannot set '{key}'. {nearest(key, SECTIONS)}")
  if key == 'extension':
    value = {'name': 'none', 'factor': 1.0, 'trained_length': None} | dict(value)
  if key != 'train':
    with phase.ignore_type():
      phase[key] = value
    return
  for name, setting in value.items():
    if name not in phase.train:
      raise ValueError(f'Phase {number} sets train.{name}. {nearest(name, phase.train)}')
    try:
      phase.train[name] = setting
    except TypeError:
      raise ValueError(
        f'Phase {number} sets train.{name} = {setting!r}. '
        f'Give it the type of the first, which is {phase.train[name]!r}.'
      ) from None


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
  return {name(path): leaf.shape for path, leaf in leaves}
