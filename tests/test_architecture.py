"""Who may import whom: one table, held against the imports of every file."""

import ast
import functools
import importlib
import pathlib

import pytest

from posjax import extension, positions

ROOT = pathlib.Path(__file__).parent.parent

# A file may import the rooms named here, and its own; the longest prefix that fits counts.
MAY_IMPORT = {
  'posjax.extension': '',
  'posjax.rotary': '',
  'posjax.linear': '',
  'posjax.norm': 'linear',
  'posjax.activation': 'linear',
  'posjax.sharding': '',
  'posjax.checkpoint': '',
  'posjax.run': 'config',
  'posjax.config': '',
  'posjax.metrics': '',
  'posjax.report': '',
  'posjax.data': '',
  'posjax.attend': '',
  'posjax.bias': 'attend',
  'posjax.positions.base': 'attend extension',
  'posjax.positions': 'attend bias extension rotary positions.base',
  'posjax.composition': 'attend positions',
  'posjax.recurrence': 'attend',
  'posjax.sampling': '',
  'posjax.around': 'positions',
  'posjax.remapping': 'around attend composition extension positions',
  'posjax.attention': 'around attend extension linear norm positions recurrence remapping',
  'posjax.latent': 'around attend attention linear norm',
  'posjax.balancing': '',
  'posjax.grouped': '',
  'posjax.moe': 'balancing grouped linear',
  'posjax.adaptive': '',
  'posjax.mlp': 'activation linear moe',
  'posjax.block': 'activation attend attention latent mlp norm positions',
  'posjax.checks': 'activation adaptive attend block latent mlp norm',
  'posjax.decoder': 'adaptive attend attention block checks extension latent linear moe norm '
  'positions',
  'posjax.experiment': 'attend attention composition decoder extension latent moe sampling',
  'posjax.cache': 'attend attention positions slots',
  'posjax.slots': 'attend',
  'posjax.layers': 'decoder',
  'posjax.decoding': 'attend block cache decoder layers',
  'posjax.generation': 'decoding',
  'posjax.phases': 'config experiment',
  'posjax.loss': 'decoder extension',
  'posjax.cost': 'attention decoder decoding',
  'posjax.meter': 'cost decoder training',
}
ABOVE = {  # anything
  'posjax.training', 'posjax.evaluation', 'posjax.interop', 'posjax.cli', 'posjax.atlas',
  'posjax.loading', 'posjax.fit', 'posjax.conversion',
}  # fmt: skip
FLAX = {
  'posjax.attention', 'posjax.block', 'posjax.decoder', 'posjax.latent', 'posjax.mlp', 'posjax.moe',
  'posjax.norm',
}  # fmt: skip


def files(room):
  return sorted((ROOT / room).rglob('*.py'))


def module_of(file):
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@functools.cache
def nodes(file):
  return list(ast.walk(ast.parse(file.read_text())))


@functools.cache
def imports(file):
  """Full names of what a file imports, wherever in the file it does so."""
  found = []
  for node in nodes(file):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file}: relative import'
      names = [f'{node.module}.{alias.name}' for alias in node.names]
      found += [n if is_module(n) else node.module for n in names]
  return found


def is_module(name):
  path = ROOT.joinpath(*name.split('.'))
  return path.is_dir() or path.with_suffix('.py').exists()


def inside(name, room):
  return name == room or name.startswith(room + '.')


def room_of(module, rooms):
  return max((room for room in rooms if inside(module, room)), key=len, default=None)


@pytest.mark.parametrize('file', files('posjax'), ids=module_of)
def test_a_file_imports_only_from_the_rooms_below_it(file):
  module = module_of(file)
  if module == 'posjax' or room_of(module, ABOVE):
    return
  room = room_of(module, MAY_IMPORT)
  assert room, f'{module} has no row in MAY_IMPORT: say what it may import'
  allowed = {room, *(f'posjax.{name}' for name in MAY_IMPORT[room].split())}
  for name in imports(file):
    if inside(name, 'posjax'):
      assert any(inside(name, other) for other in allowed), f'{module} must not import {name}'


@pytest.mark.parametrize('scheme', positions.names())
def test_a_scheme_imports_no_other_scheme(scheme):
  others = [f'posjax.positions.{name}' for name in positions.names() if name != scheme]
  for name in imports(ROOT / 'posjax' / 'positions' / f'{scheme}.py'):
    assert not any(inside(name, other) for other in others)
    assert name != 'posjax.positions', 'it finds the schemes: import posjax.positions.base'


@pytest.mark.parametrize('file', files('posjax'), ids=module_of)
def test_flax_stays_in_the_modules_that_hold_parameters(file):
  uses_flax = any(inside(name, 'flax') for name in imports(file))
  assert not uses_flax or room_of(module_of(file), FLAX)


@pytest.mark.parametrize('file', files('configs'), ids=module_of)
def test_configs_load_without_posjax_or_jax(file):
  for name in imports(file):
    assert name == 'ml_collections' or inside(name, 'configs'), f'{file} imports {name}'


@pytest.mark.parametrize('file', files('posjax'), ids=module_of)
def test_no_file_but_its_own_names_a_scheme(file):
  """Neither by module, nor by class, nor as a quoted string. Words that also name an extension
  ('none') say nothing about schemes. Import translates what other libraries call them."""
  if inside(module_of(file), 'posjax.interop'):
    return
  schemes = {positions.find(name).__name__: name for name in positions.names()}
  if file.parent.name == 'positions':
    schemes = {kind: name for kind, name in schemes.items() if name != file.stem}
  for scheme in schemes.values():
    assert not any(inside(name, f'posjax.positions.{scheme}') for name in imports(file))
  words = set(schemes.values()) - extension.METHODS.keys()
  for node in nodes(file):
    named = getattr(node, 'id', None) or getattr(node, 'attr', None)
    assert named not in schemes, f'{file}:{node.lineno} names the scheme {named}'
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
      assert node.value not in words, f"{file}:{node.lineno} names the scheme '{node.value}'"


@pytest.mark.parametrize('file', files('benchmarks'), ids=module_of)
def test_a_benchmark_finds_what_it_imports(file):
  importlib.import_module(module_of(file))
