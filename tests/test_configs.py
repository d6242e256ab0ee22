"""Every config runs, states its scheme's hyperparameters in full, and loads without JAX."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from e2e import ROOT, train_here, words

import train
from posjax import phases, positions
from posjax.config import flatten, from_json, is_open, load, to_json
from posjax.experiment import label

EXPERIMENTS = sorted(
  path.stem for path in (ROOT / 'configs').glob('[!_]*.py') if path.stem != 'base'
)
PATTERNS = [name for name in EXPERIMENTS if load(f'configs/{name}.py').layers is not None]
EVALUATIONS = sorted(path.stem for path in (ROOT / 'configs' / 'eval').glob('[!_]*.py'))


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run of the quickstart, for the configs that continue one."""
  workdir = tmp_path_factory.mktemp('source') / 'run'
  train_here(workdir, config='configs/quickstart.py:smoke')
  return workdir


def source_of(name, request) -> list[str]:
  """What a config that continues a run lacks: the run."""
  continues = load(f'configs/{name}.py').extension.name != 'none'
  return [f'init_from={request.getfixturevalue("source")}'] if continues else []


# One of each kind of data, of parameters and of going on; the slow tests evaluate every config.
REPORTED = ('xl', 'irope', 'randomized', 'phases', 'extend_yarn', 'copy')


# By default one of each kind: a scheme for each way to act, a pattern, latents. Phases, experts, a
# task and runs that go on from another have files of their own; the contract holds every scheme and
# combination as it is, and the slow tests train the others.
KINDS = {
  'learned', 'rope', 't5', 'xl', 'cope', 'rope_fox', 'irope', 'randomized', 'mla', 'quickstart',
}  # fmt: skip


@pytest.mark.parametrize(
  'name', [pytest.param(n, marks=[pytest.mark.slow] * (n not in KINDS)) for n in EXPERIMENTS]
)
def test_every_config_trains(name, request, tmp_path, capsys):
  """And is evaluated and reported, at one length, where it is the first of its kind.

  The others attend densely, which compiles in half the time: that tiles have the same values and
  gradients is promised by the contract of every scheme, and the slow tests train in them.
  """
  rows = train_here(
    tmp_path / 'run',
    *source_of(name, request),
    *(() if name in REPORTED else ('model.attention=dense',)),
    config=f'configs/{name}.py:smoke',
    evaluate='configs/eval/base.py:smoke' if name in REPORTED else None,
  )
  config = load(f'configs/{name}.py:smoke')
  assert rows[-1]['step'] == sum(phase.train.steps for phase in phases.unroll(config))
  # A run that goes on from another starts low: it must stay below what knows nothing.
  assert rows[-1]['loss'] < max(rows[0]['loss'], math.log(config.model.vocabulary or 256))
  if name not in REPORTED:
    return
  assert capsys.readouterr().out.endswith(f'Report: {tmp_path}/run/report.html\n')
  results = json.loads((tmp_path / 'run' / 'evaluation' / 'base.json').read_text())
  assert results['rows'] and results['facts']['scheme'] == label(config)
  assert '<svg' in (tmp_path / 'run' / 'report.html').read_text()


@pytest.mark.parametrize('name', PATTERNS)
def test_a_smoke_run_has_each_kind_of_layer_once_and_the_experiment_has_parameters_for_all(name):
  config, smoke = load(f'configs/{name}.py'), load(f'configs/{name}.py:smoke')
  assert len(smoke.layers) == smoke.model.layers < len(config.layers)
  assert all(smoke.layers.count(layer) == 1 for layer in config.layers)
  train.complete(config)
  job = train.prepare(config)
  assert len(job.spectrum) == len(job.like.params['blocks']) == len(config.layers)


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_config_runs_as_its_command_says(name, request, tmp_path):
  settings = source_of(name, request)
  config = load(f'configs/{name}.py:smoke')
  train.main(words(tmp_path / 'run', *settings, config=f'configs/{name}.py:smoke')[:2]
             + [f'--config.{setting}' for setting in settings])  # fmt: skip
  settings = load(config.eval, flag='eval', base='configs/eval/base.py')
  results = json.loads((tmp_path / 'run' / 'evaluation' / f'{settings.name}.json').read_text())
  assert len(results['lengths']) == len(settings.multiples) > 1


@pytest.mark.parametrize('name', positions.names())
def test_every_scheme_has_a_config_that_states_its_hyperparameters(name):
  fields = {field.name: field.default for field in dataclasses.fields(positions.find(name))}
  position = load(f'configs/{name}.py').position
  assert {'name': name, **fields} in [dict(part) for part in position.get('parts', (position,))]


@pytest.mark.parametrize('name', EXPERIMENTS)
@pytest.mark.parametrize('variant', ['', ':smoke'])
def test_every_config_has_all_keys_of_base_and_no_other(name, variant):
  config = load(f'configs/{name}.py{variant}')
  keys = lambda config: {key for key in flatten(config) if not is_open(key)}
  assert keys(config) == keys(load('configs/base.py'))
  assert from_json(to_json(config)) == config  # it is stored beside the run


@pytest.mark.parametrize('name', EVALUATIONS)
@pytest.mark.parametrize('variant', ['', ':smoke'])
def test_every_evaluation_has_all_keys_of_its_base_and_no_other(name, variant):
  config = load(f'configs/eval/{name}.py{variant}', flag='eval', base='configs/eval/base.py')
  base = load('configs/eval/base.py', flag='eval', base='configs/eval/base.py')
  assert flatten(config).keys() == flatten(base).keys()
  assert config.name == name


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_every_config_opens_with_its_command(name):
  text = (ROOT / 'configs' / f'{name}.py').read_text()
  assert f'\n  python train.py --config=configs/{name}.py ' in text
  with pytest.raises(ValueError, match=r"No variant 'smok' of this config. Use .*FILE:smoke"):
    load(f'configs/{name}.py:smok')


LOAD = """
import sys
sys.path.insert(0, '.')
import importlib
for name in sys.argv[1:]:
  importlib.import_module(name).get_config()
print(sorted({name.split('.')[0] for name in sys.modules} & {'jax', 'jaxlib', 'flax', 'posjax'}))
"""


def test_configs_are_plain_data_they_load_without_jax_and_without_posjax():
  names = [f'configs.{n}' for n in EXPERIMENTS] + [f'configs.eval.{n}' for n in EVALUATIONS]
  out = subprocess.check_output([sys.executable, '-c', LOAD, *names], cwd=ROOT, text=True)
  assert out == '[]\n'
