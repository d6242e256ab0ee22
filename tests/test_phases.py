"""A run of several phases: one text, one set of parameters, resumed exactly wherever it stops."""

import dataclasses
import json
import shutil
import signal
import types

import jax
import numpy as np
import pytest
from e2e import (
  assert_close,
  assert_same_bits,
  finish,
  launch,
  losses,
  stored,
  train_here,
  train_there,
  wait_for_step,
  words,
)

import eval as evaluation
import train
from posjax import data, loading, metrics, phases, report
from posjax.checkpoint import Checkpoints
from posjax.config import load
from posjax.experiment import as_trained, build
from posjax.loss import token_losses
from posjax.training import make_schedule

YARN = {'name': 'yarn', 'factor': 8.0}
LONG = {'train': {'length': 256, 'batch': 1, 'steps': 6, 'warmup': 1}, 'extension': YARN}
DROPPED = {'train': {'length': 64, 'steps': 4}, 'position': {'name': 'none'}}
ENDS = [8, 14, 18]
SETTINGS = (
  f'phases={(LONG, DROPPED)}', 'train.steps=8', 'log.every=1', 'checkpoint.every=3',
  'checkpoint.keep=1',
)  # fmt: skip


def config(*settings, base='configs/rope.py:smoke'):
  return load(base, [f'--config.{setting}' for setting in settings])


def ready(*settings, **kwargs):
  """With a vocabulary, and what it goes on from."""
  one = config(*settings, **kwargs)
  train.complete(one)
  return one


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """RoPE on rows of 32, YaRN on rows of 256, then no positions on rows of 64: never stopped."""
  workdir = tmp_path_factory.mktemp('phases') / 'run'
  train_here(workdir, *SETTINGS)
  return workdir


def assert_as_straight(workdir, straight):
  assert_same_bits(workdir, straight)
  rows = losses(metrics.read(workdir))
  assert [step for step, _ in rows] == list(range(1, ENDS[-1] + 1))
  assert rows == losses(metrics.read(straight))


# What a phase is.


def test_each_phase_is_the_config_with_what_it_sets_differently():
  first, long, dropped = phases.unroll(config(*SETTINGS))
  assert first == config('train.steps=8', *SETTINGS[2:])
  assert (long.train.length, long.train.steps, long.train.learning_rate) == (256, 6, 3e-3)
  assert dict(long.extension) == {**YARN, 'trained_length': 32}
  assert dict(long.position) == dict(first.position) and long.seed == first.seed
  # From the config, not from the phase before; and no hyperparameter of RoPE is left.
  assert (dropped.train.length, dropped.train.batch, dropped.extension.name) == (64, 4, 'none')
  assert dict(dropped.position) == {'name': 'none'}
  assert phases.last(config(*SETTINGS)) == dropped


def test_a_run_without_phases_is_one_phase_and_the_config_itself():
  assert phases.unroll(config()) == (config(),)
  assert phases.last(config()) == config()


@pytest.mark.parametrize(
  ('settings', 'length'),
  [
    ((), 32),
    (('extension.trained_length=16',), 16),  # it went on from a run of rows of 16
    (('sampling.name=randomized', 'sampling.range=99'), 99),
  ],
)
def test_an_extension_counts_from_the_length_of_the_first_weights(settings, length):
  other = {'extension': {**YARN, 'trained_length': 20}}
  first, long, told = phases.unroll(ready(*settings, f'phases={(LONG, other)}'))
  assert build(first).length == build(long).length == length == long.extension.trained_length
  assert told.extension.trained_length == 20


@pytest.mark.parametrize(
  ('phase', 'message'),
  [
    ({'trian': {}}, r"Phase 2 cannot set 'trian'. Did you mean 'train'"),
    ({'seed': 1}, r"Phase 2 cannot set 'seed'. There are: extension, layers, position, samp"),
    ({'train': {'lenght': 1}}, r"Phase 2 sets train.lenght. Did you mean 'length'"),
    ({'train': {'steps': 'many'}}, r"train.steps = 'many'. Give it the type .* which is 6"),
    ({'train': {'clip': None}}, r'Phase 2 has train.clip = None, the first 1.0'),
    ({'train': {'steps': 0}}, r'Phase 2: train.steps = 0'),
    ({'train': {'steps': 2, 'warmup': 2}}, r'Phase 2: A warm-up of 2 steps .* 2 steps'),
    ({'train': {'length': 10**6}}, r'documents of \d+ tokens make \d rows of 1000000'),
    ({'extension': {'name': 'ntk', 'factor': 0.5}}, r'Phase 2: .* factor = 0.5'),
    ({'position': {'name': 'alibi'}, 'extension': YARN}, r"Phase 2: .*'yarn' makes no sense"),
    ({'position': {'name': 'learned', 'deviation': 0.02}},
     r'Phase 2: position would .* position.table_LD \(32, 32\), not absent.*--config.init_from'),
    ({'position': {'name': 'learned', 'deviation': 0.02}, 'layers': ({}, {'window': 8})},
     'Phase 2: position and layers would'),
    ({'layers': ({}, {'window': 8})}, r'Phase 2: layers would make other parameters'),
    ({'sampling': {'name': 'pose', 'range': 16, 'chunks': 2}}, r'Phase 2: Rows of 32 .* below 16'),
  ],
)  # fmt: skip
def test_what_no_phase_can_do_is_refused_before_anything_runs(phase, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    train_here(tmp_path / 'run', f'phases={(phase,)}')
  assert not (tmp_path / 'run').exists()


def test_a_table_keeps_its_rows_when_a_later_phase_is_longer():
  learned = 'configs/learned.py:smoke'
  linear = {'name': 'linear', 'factor': 8.0}
  jobs = train.plan(ready(f'phases={({**LONG, "extension": linear},)}', base=learned))
  assert [job.model.length for job in jobs] == [32, 32]
  with pytest.raises(ValueError, match=r'Phase 2: .* 32 positions, but .* 256 tokens'):
    train.plan(ready(f'phases={({"train": LONG["train"]},)}', base=learned))


def test_a_dry_run_describes_each_phase(tmp_path, monkeypatch, capsys):
  programs = types.SimpleNamespace(memory_analysis=lambda: None)  # test_train compiles one
  monkeypatch.setattr(train, 'compile_step', lambda job: programs)
  monkeypatch.setattr(train.cost, 'describe_memory', lambda _: 'some')
  train.main([*words(tmp_path / 'run', *SETTINGS), '--dry_run'])
  out = capsys.readouterr().out
  for line in (
    'Phase 1 of 3: steps 1 to 8\nTraining     8 steps of 128 tokens',
    'Phase 2 of 3: steps 9 to 14, extension.factor=8.0, extension.name=yarn, extension.trained_le',
    'Training     6 steps of 256 tokens',
    'Phase 3 of 3: steps 15 to 18, ',
  ):
    assert line in out
  assert out.count('total ') == 1 and not (tmp_path / 'run').exists()


# What happens when it runs.


def test_lines_count_steps_through_and_name_the_phase_and_its_learning_rate(straight):
  rows = metrics.read(straight)
  assert [row['step'] for row in rows] == list(range(1, 19))
  assert [row['phase'] for row in rows] == [1] * 8 + [2] * 6 + [3] * 4
  # Each phase's schedule is over its own steps.
  expected = [
    float(make_schedule(one.train)(step))
    for one in phases.unroll(config(*SETTINGS))
    for step in range(one.train.steps)
  ]
  assert [row['learning_rate'] for row in rows] == expected
  assert expected[14] == np.float32(1.5e-3)  # it warms up again
  speeds = [row['step'] for row in rows if 'tokens_per_second' not in row]
  assert speeds == [1, 9, 15]  # which compile


def test_the_checkpoint_at_the_end_of_each_phase_is_kept(straight):
  saved = sorted(int(path.name) for path in (straight / 'checkpoints').iterdir())
  assert saved == ENDS  # of 3, 6, 8, 9, 12, 14, 15 and 18, with keep=1


def test_phases_hand_over_parameters_and_the_state_of_the_optimizer(straight):
  """One step after the other by hand, from the state kept at the end of the first phase."""
  jobs = train.plan(ready(*SETTINGS))
  documents = data.load(jobs[0].config.data, 'train', data.make_tokenizer('bytes'))
  streams, like = train.read(jobs, documents), jobs[0].like
  with Checkpoints(straight / 'checkpoints') as checkpoints:
    _, params, rest, _ = checkpoints.restore(
      8, params_like=like.params, state_like={'optimizer': like.optimizer, 'step': like.step}
    )
  state = train.State(params=params, **rest)
  for job, stream in zip(jobs[1:], streams[1:], strict=True):
    spectrum = jax.tree.map(np.float32, as_trained(build(job.config), job.config))
    for _ in range(job.config.train.steps):
      state, _ = job.step(state, spectrum, next(stream))
  _, final, _ = stored(straight)
  jax.tree.map(np.testing.assert_array_equal, final['params'], state.params)
  counts = [int(leaf) for leaf in jax.tree.leaves(final['optimizer']) if leaf.shape == ()]
  assert set(counts) == {18} == {int(final['step'])}


@pytest.mark.parametrize(
  'steps', [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 9, 12, 14, 16))]
)  # 8 and 14 end a phase
def test_a_run_stopped_in_a_phase_or_between_two_ends_with_the_same_bits(
  steps, straight, tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patch:
    patch.setattr(train, 'stopping', lambda stop, done, every: done == steps)
    train_here(tmp_path / 'run', *SETTINGS)
  assert metrics.read(tmp_path / 'run')[-1]['step'] == steps
  train_here(tmp_path / 'run', *SETTINGS)
  assert f'Resumed {tmp_path}/run after step {steps}.' in capsys.readouterr().out
  assert_as_straight(tmp_path / 'run', straight)


@pytest.mark.slow
def test_a_run_killed_in_each_phase_ends_with_the_same_bits(straight, tmp_path):
  for step in (7, 10, 16):
    process = launch('train.py', *words(tmp_path / 'run', *SETTINGS))
    wait_for_step(process, step)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
  train_here(tmp_path / 'run', *SETTINGS)
  assert_as_straight(tmp_path / 'run', straight)


@pytest.mark.slow
def test_a_run_goes_on_from_the_end_of_any_phase_when_newer_checkpoints_are_lost(
  straight, tmp_path
):
  copy = shutil.copytree(straight, tmp_path / 'copy')
  for step in (18, 14):
    shutil.rmtree(copy / 'checkpoints' / str(step))
  train_here(copy, *SETTINGS)
  assert_as_straight(copy, straight)


@pytest.mark.parametrize(
  ('setting', 'difference'),
  [
    ('train.steps=9', r'train.steps: 8 -> 9 \(the phases after it begin where it ends\)'),
    (f'phases={(LONG,)}', r'(?s)phases: .* \(the run would have gone another way\)'),
  ],
)
def test_phases_of_a_run_cannot_be_moved(setting, difference, straight):
  with pytest.raises(ValueError, match=difference):
    train_here(straight, *SETTINGS, setting)


@pytest.mark.slow
def test_another_phase_changes_nothing_before_it(straight, tmp_path):
  """The text of a phase, and all it learns, depends on those before, not on those after."""
  rows = train_here(tmp_path / 'run', f'phases={(LONG, DROPPED | {"train": {}})}', *SETTINGS[1:])
  ours, theirs = losses(rows), losses(metrics.read(straight))
  assert ours[:14] == theirs[:14] and ours[14] != theirs[14]


# What comes after.


def test_a_run_is_read_as_its_last_phase_was_trained(straight):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda *_: None)
    settings = load('configs/eval/base.py:smoke', flag='eval', base='configs/eval/base.py')
    results = evaluation.evaluate_run(straight, settings)
  assert results['trained_length'] == 64 and results['facts']['scheme'] == 'none'


def test_the_checkpoint_of_an_earlier_step_is_read_as_its_phase_was_trained(straight):
  """A phase's last step is its own; what is found of it has a name of its own."""
  one = config(*SETTINGS)
  at = [phases.at_step(one, step) for step in (1, 8, 9, 14, 15, 18)]
  assert [p.train.length for p in at] == [32, 32, 256, 256, 64, 64]
  settings = load('configs/eval/base.py:smoke', flag='eval', base='configs/eval/base.py')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(report, 'write', lambda *_: None)
    results = evaluation.evaluate_run(straight, settings, step=8)
  assert results['name'] == 'base-step8' and settings.name == 'base'
  assert results['trained_length'] == 32 and results['facts']['scheme'] == 'rope'
  early, newest = loading.load(straight, step=8).params, loading.load(straight).params
  with Checkpoints(straight / 'checkpoints') as checkpoints:
    assert_equal = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(assert_equal, early, checkpoints.restore_params(early, step=8))
  assert any(jax.tree.leaves(jax.tree.map(lambda a, b: (a != b).any(), early, newest)))


def test_a_step_that_is_not_there_is_refused_with_those_that_are(straight):
  with pytest.raises(ValueError, match=r'No checkpoint of step 5 in .*\[18, 14, 8\]'):
    loading.load(straight, step=5)
  with pytest.raises(ValueError, match=r'hf:there has no steps. Leave out step 5'):
    loading.load('hf:there', step=5)


def test_a_run_that_goes_on_from_phases_knows_their_first_length(straight):
  one = ready(f'init_from={straight}')
  assert one.extension.trained_length == 32


def test_positions_are_skipped_in_training_only(straight):
  """Weights of PoSE are read at plain positions, as if they had been trained on them."""
  long = phases.unroll(config(*SETTINGS, 'model.vocabulary=256'))[1]
  pose = long.copy_and_resolve_references()
  with pose.ignore_type():
    pose.sampling = {'name': 'pose', 'range': 1024, 'chunks': 2}
  text = data.load(long.data, 'train', data.make_tokenizer('bytes'))
  batch = next(data.Stream(text, length=64, batch=2, seed=0))
  run = loading.load(straight)
  ran = [dataclasses.replace(run, config=one, model=build(one)) for one in (long, pose)]
  read = [
    evaluation.make_scorer(one, token_losses)(as_trained(one.model, one.config), batch)[0]
    for one in ran
  ]
  np.testing.assert_array_equal(*read)


@pytest.mark.slow
@pytest.mark.parametrize('setting', ['model.attention=dense', 'train.accumulate=2'])
def test_skipped_positions_mean_the_same_in_another_form_and_in_parts(setting, tmp_path):
  pose = 'configs/pose.py:smoke'
  rows = train_here(tmp_path / 'a', 'log.every=1', config=pose)
  assert_close(train_here(tmp_path / 'b', 'log.every=1', setting, config=pose), rows)


@pytest.mark.slow
def test_phases_and_skipped_positions_are_the_same_on_four_devices(tmp_path):
  settings = ('log.every=1', 'mesh.fsdp=2')
  pose = 'configs/pose.py:smoke'
  here = train_here(tmp_path / 'one', 'log.every=1', config=pose)
  train_there(words(tmp_path / 'four', *settings, config=pose), devices=4)
  assert_close(metrics.read(tmp_path / 'four'), here)
  assert json.loads((tmp_path / 'four' / 'config.json').read_text())['phases'][0]['sampling']
