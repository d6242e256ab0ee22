"""Loads an experiment: a Python file that returns a ConfigDict, and overrides of its keys.

  config = load('configs/rope.py:smoke', ['--config.train.steps=10'])

Every key must exist in configs/base.py, so a typo is an error that names the nearest key.
"""

import ast
import difflib
import importlib.util
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

HOUSE = Path(__file__).resolve().parents[1]  # the folder of posjax/, configs/ and train.py

# These hold a name and the keywords of what it names; whoever builds that checks them.
OPEN = ('position', 'extension', 'sampling', 'data.task')

# Keys that may be None, absent: `configs/base.py` says what that means for each.
ABSENT = (
  'init_from', 'eval', 'layers', 'phases', 'extension.trained_length', 'model.vocabulary',
  'model.window', 'model.chunk', 'model.segment', 'model.activation', 'model.norm_epsilon',
  'model.attention_cap', 'model.logit_cap', 'model.cutoffs', 'model.gate_limit',
  'model.qk_norm_after',
  'model.embedding_scale', 'model.latent.width', 'model.latent.query', 'model.latent.value',
  'model.latent.epsilon', 'model.latent.norm', 'data.size', 'data.glob', 'data.data_dir',
  'data.cache_dir', 'train.clip', 'train.loss_chunk', 'sampler.top_k',
)  # fmt: skip


def load(
  path: str, overrides: Sequence[str] = (), *, flag: str = 'config', base: str = 'configs/base.py'
) -> ConfigDict:
  """Returns get_config(variant) of the file `path[:variant]` with `--config.KEY=VALUE` applied.

  Args:
    path: looked up from the working directory, then beside posjax/; `:variant` goes to get_config.
    overrides: command-line words, each `--config.KEY=VALUE`. The type is the key's, or None.
    flag: the word that overrides start with.
    base: the config whose keys are all that may be used; '' takes those of `path` itself.

  Raises ValueError for a missing file, an unknown key, a value of another type, a malformed word.
  Lists become tuples, so that what is stored as JSON and read back is equal.
  """
  config = _import(path)
  if base:
    check_keys(config, _import(base), where=path)
  for word in overrides:
    _override(config, word, flag)
  return _thaw(_freeze(config))


def flatten(config: ConfigDict) -> dict[str, Any]:
  """The values by dotted key: {'train.steps': 1000, ...}."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat |= {f'{key}.{inner}': leaf for inner, leaf in flatten(value).items()}
    else:
      flat[key] = value
  return flat


def difference(old: ConfigDict, new: ConfigDict) -> list[tuple[str, Any, Any]]:
  """(dotted key, old value, new value) wherever they differ; None where the key is absent."""
  before, after = flatten(old), flatten(new)
  keys = sorted(before | after)
  return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]


def check_keys(config: ConfigDict, reference: ConfigDict, *, where: str = 'this config') -> None:
  """Raises ValueError for a key of `config` that `reference` lacks, outside the OPEN sections."""
  known = flatten(reference)
  for key in flatten(config):
    if key not in known and not is_open(key):
      raise ValueError(f"'{key}' of {where} is a key nobody reads. {nearest(key, known)}")


def complete(config: ConfigDict, reference: ConfigDict) -> list[str]:
  """Gives `config` what only `reference` has, outside the OPEN sections; returns the keys."""
  lacking = [k for k in flatten(reference) if k not in flatten(config) and not is_open(k)]
  with config.unlocked():
    for key in lacking:
      section, _, last = key.rpartition('.')
      inner = config
      for part in section.split('.') if section else ():
        if part not in inner:
          inner[part] = ConfigDict()
        inner = inner[part]
      inner[last] = _find(reference, key)
  return lacking


def is_open(key: str) -> bool:
  """Whether a key belongs to a section whose keys are those of what it names."""
  return key.startswith(tuple(f'{section}.' for section in OPEN))


def nearest(name: str, names: Iterable[str]) -> str:
  """The way out of a misspelt name, as a sentence: the nearest of `names`, or all of them."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1)
  # A key in the wrong section is nearest by its last part: learning_rate -> train.learning_rate.
  close = close or [other for other in names if other.split('.')[-1] == name.split('.')[-1]]
  return f"Did you mean '{close[0]}'?" if close else f'There are: {", ".join(names)}.'


def to_json(config: ConfigDict) -> str:
  """Sorted, indented JSON. Raises ValueError for a value that is not plain data."""
  try:
    return json.dumps(_freeze(config), indent=2, sort_keys=True) + '\n'
  except TypeError as error:
    raise ValueError(f'The config holds a value that is not plain data: {error}.') from error


def from_json(text: str) -> ConfigDict:
  """The ConfigDict that `to_json` wrote. Raises ValueError if `text` is not one."""
  config = _thaw(json.loads(text))
  if not isinstance(config, ConfigDict):
    raise ValueError(f'A config is a JSON object, not {text[:40]!r}.')
  return config


def _import(path: str) -> ConfigDict:
  name, _, variant = path.partition(':')
  file = next((f for f in (Path(name), HOUSE / name) if f.is_file()), None)
  if file is None:
    folder = Path(name).parent
    others = [*folder.glob('[!_]*.py'), *(HOUSE / folder).glob('[!_]*.py')]
    names = {str(folder / other.name) for other in others} or {'configs/base.py'}
    raise ValueError(f"No config file '{name}'. {nearest(name, names)}")
  spec = importlib.util.spec_from_file_location(f'config_{file.stem}', file)
  module = importlib.util.module_from_spec(spec)
  sys.path.insert(0, str(HOUSE))  # `from configs import base` is ours, wherever we were started
  try:
    spec.loader.exec_module(module)
  finally:
    sys.path.remove(str(HOUSE))
  if not hasattr(module, 'get_config'):
    raise ValueError(f"'{name}' has no get_config(variant). configs/base.py shows one.")
  return module.get_config(variant)


def _override(config: ConfigDict, word: str, flag: str) -> None:
  prefix = f'--{flag}.'
  key, equals, text = word.removeprefix(prefix).partition('=')
  if not word.startswith(prefix) or not equals:
    raise ValueError(f"'{word}' is not understood. Overrides are written {prefix}KEY=VALUE.")
  known = flatten(config)
  if isinstance(_find(config, key), ConfigDict):
    inside = ', '.join(k for k in known if k.startswith(key + '.'))
    raise ValueError(f"'{key}' is a section. Set one of its keys: {inside}.")
  if key not in known and not is_open(key):
    raise ValueError(f"No key '{key}' in the config. {nearest(key, known)}")
  section, _, last = key.rpartition('.')
  with config.unlocked():
    (_find(config, section) if section else config)[last] = _parse(key, text, known.get(key))


def _find(config: ConfigDict, key: str) -> Any:
  for part in key.split('.'):
    config = config.get(part) if isinstance(config, ConfigDict) else None
  return config


def _parse(key: str, text: str, current: Any) -> Any:
  """`text` as a value of the type of `current`, or None; any literal or word where that is None."""
  if text == 'None':
    if current is None or key in ABSENT or key.startswith('position.'):
      return None
    raise ValueError(f'{key}=None: this key cannot be absent; it is {current!r} now. Give a value.')
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
  except (ValueError, SyntaxError):
    value = text
  if isinstance(current, str):
    return text
  if isinstance(current, float) and type(value) in (int, float):
    return float(value)
  if isinstance(current, (tuple, list)) and isinstance(value, (tuple, list)):
    return tuple(value)
  if current is None or type(value) is type(current):
    return value
  expected = {'tuple': 'tuple, as (1, 2)', 'bool': 'bool: true or false'}
  name = type(current).__name__
  raise ValueError(f'{key}={text}: expected {expected.get(name, name)}; it is {current!r} now.')


def _freeze(value: Any) -> Any:
  if isinstance(value, (ConfigDict, dict)):
    return {key: _freeze(inner) for key, inner in value.items()}
  return [_freeze(v) for v in value] if isinstance(value, (tuple, list)) else value


def _thaw(value: Any) -> Any:
  if isinstance(value, dict):
    return ConfigDict({key: _thaw(inner) for key, inner in value.items()})
  return tuple(_thaw(v) for v in value) if isinstance(value, list) else value
