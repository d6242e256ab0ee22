"""One checkpoint extended by every method: the settings of each, and what is measured again."""

import json
import types

import pytest
from e2e import train_here

import train
from benchmarks import extend
from posjax.config import load

FLAGS = types.SimpleNamespace(factor=2, tokens=1024, run='there')


@pytest.fixture
def measured(monkeypatch):
  """The settings of evaluations that were made, which write a file as eval.py does."""
  made = []

  def evaluate_run(folder, settings):
    results = {'recipes': [extend.label(dict(r)) for r in settings.recipes], 'n': len(made)}
    made.append(settings)
    path = folder / 'evaluation' / f'{settings.name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results))
    return results

  monkeypatch.setattr(extend.evaluation, 'evaluate_run', evaluate_run)
  return made


def test_what_was_measured_with_other_settings_is_measured_again(measured, tmp_path):
  source = load('configs/rope.py:smoke', [])

  def ask(names=('none', 'linear'), **flags):
    flags = types.SimpleNamespace(**vars(FLAGS) | flags)
    return extend.zero_shot(tmp_path, source, names, [32, 64], flags)['n']

  assert [ask(), ask(), ask(factor=4), ask(), ask(tokens=2048)] == [0, 0, 1, 0, 2]
  assert [ask(names=('none', 'ntk')), ask(names=('none', 'ntk'))] == [3, 3]
  assert [s.recipes[1]['factor'] for s in measured[:2]] == [2.0, 4.0]
  assert measured[0].multiples == (1, 2) and not measured[0].trained


def test_every_method_trains_on_the_same_number_of_tokens(measured, monkeypatch, tmp_path):
  """On rows that the factor makes longer, DroPE on rows as they were; and is read at the same
  lengths."""
  configs = {}

  def main(words):
    config = load(words[0].removeprefix('--config='), words[2:])
    configs[words[1].rpartition('/')[2]] = config

  monkeypatch.setattr(train, 'main', main)
  source = load('configs/rope.py:smoke', ['--config.train.steps=400'])
  for name in extend.METHODS:
    extend.trained_on(name, source, tmp_path, [32, 64], FLAGS)
  for name, config in configs.items():
    length, batch = source.train.length, source.train.batch
    of = (length, batch) if name == 'drop' else (2 * length, batch // 2)
    assert (config.train.length, config.train.batch, config.train.steps) == (*of, 20)
    assert (config.extension.name, config.init_from, config.eval) == (name, 'there', None)
    assert config.position == source.position and config.model == source.model
  assert configs['yarn'].extension.factor == 2.0
  assert configs['rebase'].extension.trained_theta == source.position.theta
  for settings, config in zip(measured, configs.values(), strict=True):
    assert [m * config.train.length for m in settings.multiples] == [32, 64]


def test_a_task_is_asked_in_the_same_sizes_before_and_after(measured, monkeypatch, tmp_path):
  configs = []
  monkeypatch.setattr(train, 'main', lambda words: configs.append(words))
  source = load('configs/passkey.py:smoke', [])
  trained = extend.trained_size(source)
  extend.zero_shot(tmp_path, source, ('none',), [32, 64, 128], FLAGS)
  for name in ('yarn', 'drop'):
    extend.trained_on(name, source, tmp_path, [32, 64, 128], FLAGS)
  after = [load(words[0].removeprefix('--config='), words[2:]) for words in configs]
  assert [one.data.size for one in after] == [2 * trained, trained]
  assert all(one.data.name == 'task:passkey' for one in after)
  sizes = [trained, 2 * trained, 4 * trained]
  for settings, size in zip(measured, (trained, 2 * trained, trained), strict=True):
    assert [m * size for m in settings.multiples] == sizes and settings.depths


@pytest.mark.slow
def test_the_comparison_of_a_task_draws_where_its_needle_is_found(tmp_path):
  train_here(tmp_path / 'run', config='configs/passkey.py:smoke')
  extend.main([
    f'--run={tmp_path / "run"}', f'--workdir={tmp_path / "extend"}', '--factor=2',
    '--methods=none,yarn',
  ])  # fmt: skip
  table = (tmp_path / 'extend' / 'table.md').read_text()
  for part in ('Without training', 'After 5 % more steps'):
    assert f'| {part} | 32 | 64 | 128 | 256 |' in table
  assert table.count('\n| `yarn`') == 2 and 'refused' not in table
  assert (tmp_path / 'extend' / 'before.png').exists()


@pytest.mark.slow
def test_the_whole_comparison_draws_two_pictures_and_a_table(tmp_path, capsys):
  train_here(tmp_path / 'run', 'train.steps=20')
  extend.main([
    f'--run={tmp_path / "run"}', f'--workdir={tmp_path / "extend"}', '--factor=2', '--tokens=1024',
  ])  # fmt: skip
  table = (tmp_path / 'extend' / 'table.md').read_text()
  for part in ('Without training', 'After 5 % more steps'):
    assert f'| {part} | 32 | 64 | 128 | 256 |' in table
  assert table.count('\n| `') == 2 * len(extend.METHODS) and 'refused' not in table
  assert (tmp_path / 'extend' / 'before.png').exists()
  assert (tmp_path / 'extend' / 'after.png').exists()
  assert table in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused_with_the_way_out():
  with pytest.raises(ValueError, match=r"No method 'yran' is compared. There are: none, linear"):
    extend.main(['--run=x', '--workdir=y', '--methods=yran'])
  with pytest.raises(ValueError, match=r'--factor=1 makes no text longer. Use 2 or more'):
    extend.main(['--run=x', '--workdir=y', '--factor=1'])
