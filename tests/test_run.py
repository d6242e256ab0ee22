"""A run directory belongs to one process and to one experiment."""

import json
import os
import signal
import subprocess
import sys

import pytest

from posjax.config import load
from posjax.run import Run, Stop, _git, load_config

BASE = 'configs/base.py'


def config(*words):
  return load(BASE, [f'--config.{word}' for word in words])


def test_a_new_run_stores_its_config_and_what_runs(tmp_path):
  with Run(tmp_path / 'a' / 'run', config('train.steps=7')) as run:
    assert not run.resumed
  assert load_config(tmp_path / 'a' / 'run') == config('train.steps=7')
  [record] = json.loads((run.workdir / 'revision.json').read_text())
  assert record['packages']['jax'] and record['python'] and record['command'] and record['date']
  assert record['git']['revision'] or record['git']['note']


def test_every_start_leaves_a_record(tmp_path):
  for resumed in (False, True):
    with Run(tmp_path, config()) as run:
      assert run.resumed == resumed and run.changed == []
  assert len(json.loads((tmp_path / 'revision.json').read_text())) == 2


def test_a_folder_outside_git_is_said_to_be(tmp_path):
  assert _git(tmp_path) == {'revision': None, 'note': 'posjax does not run from a git checkout'}


def test_the_git_revision_says_whether_files_differ_from_it(tmp_path):
  def git(*words):
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    subprocess.run(['git', '-C', tmp_path, *identity, *words], check=True, capture_output=True)

  (tmp_path / 'posjax').mkdir()
  (tmp_path / 'posjax' / 'run.py').touch()
  git('init')
  assert _git(tmp_path)['revision'] is None  # another repository around ours is not ours
  git('add', '.')
  git('commit', '-m', 'first')
  assert len(_git(tmp_path)['revision']) == 40 and not _git(tmp_path)['dirty']
  (tmp_path / 'posjax' / 'run.py').write_text('changed')
  assert _git(tmp_path)['dirty']


HOLDER = """
import sys, time
from posjax.config import load
from posjax.run import Run
with Run(sys.argv[1], load('configs/base.py')):
  print('held', flush=True)
  time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone_even_by_a_kill(tmp_path):
  holder = subprocess.Popen([sys.executable, '-c', HOLDER, tmp_path], stdout=-1, text=True)
  try:
    assert holder.stdout.readline() == 'held\n'
    with pytest.raises(ValueError, match=rf'by process {holder.pid} on \S+ since 2.*stop it'):
      Run(tmp_path, config()).__enter__()
  finally:
    holder.kill()
    holder.communicate()
  with Run(tmp_path, config()) as run:
    assert run.resumed


def test_the_lock_is_free_after_a_refusal(tmp_path):
  with Run(tmp_path, config()):
    pass
  with pytest.raises(ValueError, match='another config'):
    Run(tmp_path, config('seed=1')).__enter__()
  with Run(tmp_path, config()):
    pass


@pytest.mark.parametrize(
  'word',
  [
    'model.width=128',
    'model.window=64',
    'position.name=rope',
    'position.theta=1e4',
    'extension.name=linear',
    'data.name=text',
    'data.validation_fraction=0.2',  # it decides which documents are trained on
    'train.length=512',
    'train.batch=8',
    'seed=1',
    'init_from=runs/other',
    'phases=({},)',
  ],
)
def test_a_change_of_shapes_or_data_is_refused_and_changes_nothing(tmp_path, word):
  with Run(tmp_path, config()):
    pass
  key = word.split('=')[0]
  with pytest.raises(ValueError, match=rf'(?s)made with another config:\n  {key}: .* -> .*put'):
    Run(tmp_path, config(word, 'train.steps=2000')).__enter__()
  assert load_config(tmp_path) == config()
  assert len(json.loads((tmp_path / 'revision.json').read_text())) == 1


@pytest.mark.parametrize(
  ('word', 'line'),
  [
    ('train.steps=2000', 'train.steps: 1000 -> 2000 (the schedule stretches with it'),
    ('train.learning_rate=0.1', 'train.learning_rate: 0.003 -> 0.1 (from here on'),
    ('train.accumulate=2', 'train.accumulate: 1 -> 2 (memory against time)'),
    ('checkpoint.every=5', 'checkpoint.every: 250 -> 5'),
    ('mesh.fsdp=2', 'mesh.fsdp: 1 -> 2'),
    ('model.attention=dense', "model.attention: 'auto' -> 'dense'"),
    ('model.remat=block', "model.remat: 'none' -> 'block'"),
    ('data.threads=4', 'data.threads: 2 -> 4'),
    ('data.cache_dir=/c', "data.cache_dir: None -> '/c' (where files are"),
    ('eval=None', "eval: 'configs/eval/lengths.py' -> None"),
  ],
)
def test_any_other_change_is_printed_and_kept(tmp_path, capsys, word, line):
  with Run(tmp_path, config()):
    pass
  with Run(tmp_path, config(word)) as run:
    assert len(run.changed) == 1
  assert line in capsys.readouterr().out
  assert load_config(tmp_path) == config(word)
  assert json.loads((tmp_path / 'revision.json').read_text())[1]['changed']


def test_a_directory_of_other_things_is_not_made_a_run(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(ValueError, match=r'holds other things than a run \(thesis.tex\)'):
    Run(tmp_path, config()).__enter__()
  assert [path.name for path in tmp_path.iterdir()] == ['thesis.tex']


def test_a_file_is_not_made_a_run(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(ValueError, match='is a file'):
    Run(tmp_path / 'file', config()).__enter__()


def test_a_missing_run_names_the_nearest(tmp_path):
  with pytest.raises(ValueError, match=r"No run at '.*'. Train one"):
    load_config(tmp_path / 'rope')
  with Run(tmp_path / 'rope', config()):
    pass
  with pytest.raises(ValueError, match=r"No run at '.*rpoe'. Did you mean '.*rope'"):
    load_config(tmp_path / 'rpoe')


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path):
  with pytest.raises(ValueError, match=r'is not a run: it has no config.json'):
    load_config(tmp_path)


def test_a_damaged_config_is_named(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed"')
  with pytest.raises(ValueError, match=r'config.json.* cannot be read'):
    load_config(tmp_path)


def test_a_run_from_before_a_key_existed_is_read_as_the_base_has_it(tmp_path, caplog):
  old = config('train.steps=7')
  with Run(tmp_path, old):
    pass
  stored = json.loads((tmp_path / 'config.json').read_text())
  del stored['model']['latent'], stored['data']['size']
  (tmp_path / 'config.json').write_text(json.dumps(stored))
  assert load_config(tmp_path) == old
  assert 'made before posjax had data.size, model.latent.decode, ' in caplog.text



@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop_and_handlers_return_afterwards(number):
  before = signal.getsignal(number)
  with Stop() as stop:
    assert not stop.asked
    os.kill(os.getpid(), number)
    assert stop.asked
    os.kill(os.getpid(), signal.SIGTERM)  # again, as a batch system does: still only asked
  assert signal.getsignal(number) is before


def test_a_second_interrupt_stops_at_once():
  with Stop() as stop, pytest.raises(KeyboardInterrupt):
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked
    os.kill(os.getpid(), signal.SIGINT)
