"""Schemes on tasks: the same budget for all, nothing done twice, and ranks that add up."""

import json
import shutil
import statistics

import pytest

import train
from benchmarks import generalize
from posjax.report import generalization

CONFIGS = '--configs=configs/none.py,configs/learned.py'
TASKS = '--tasks=copy,summation'
FILES = 'evaluation/generalize.json'


pytestmark = pytest.mark.slow  # trains every task with every scheme that it compares


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Two schemes on two tasks, of seconds; the second task was there before the first."""
  workdir = tmp_path_factory.mktemp('generalize') / 'all'
  run(workdir, '--tasks=summation', '--seeds=0')
  run(workdir)
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / 'copy')


def run(workdir, *words, seeds='0'):
  words = ['--smoke', CONFIGS, TASKS, f'--seeds={seeds}', f'--workdir={workdir}', *words]
  generalize.main(words)


def read(workdir):
  return json.loads((workdir / 'generalization.json').read_text())


def test_every_task_and_scheme_is_trained_once_and_reported_by_size(finished):
  results = read(finished)
  assert [task['name'] for task in results['tasks']] == ['copy', 'summation']
  for task in results['tasks']:
    n = task['trained_size']
    assert task['sizes'] == [n, 4 * n] and n == {'copy': 15, 'summation': 30}[task['name']]
    for scheme in task['schemes']:
      stored = finished / task['name'] / 'runs' / f'{scheme["name"]}-0' / FILES
      evaluation = json.loads(stored.read_text())
      exact = {row['size']: row['exact'] for row in evaluation['rows']}
      assert {row['size']: row['mean'] for row in scheme['rows']} == exact
      assert scheme['missing'] == [] and scheme['beyond'] == exact.get(4 * n, 0)
  logs = [(finished / task / 'log.jsonl').read_text() for task in ('copy', 'summation')]
  trained = [json.loads(line)['what'] for log in logs for line in log.splitlines()]
  assert trained == ['none-0', 'learned-0'] * 2  # though summation was asked for twice


def test_what_a_scheme_refuses_counts_as_nothing_and_is_told(finished):
  task = read(finished)['tasks'][0]
  learned = task['schemes'][1]
  assert [row['length'] for row in learned['refused']] == [122]
  assert [row['size'] for row in learned['rows']] == [15] and learned['beyond'] == 0
  table = (finished / 'table.md').read_text()
  assert '- learned is refused at 122: The position scheme has 32 positions' in table
  assert '## copy' in table and '15 (trained)' in table
  page = (finished / 'report.html').read_text()
  assert page.count('<svg') == 2 and (finished / 'copy.png').exists()


def test_ranks_are_reciprocal_means_over_the_tasks_that_all_have_finished(copy):
  path = copy / 'copy' / 'runs' / 'none-0' / FILES
  evaluation = json.loads(path.read_text())
  evaluation['rows'][1]['exact'] = 0.75  # beyond the trained size, where the other refuses
  path.write_text(json.dumps(evaluation))
  run(copy, '--report_only')
  results = read(copy)
  second = generalize.reciprocal_ranks([s['beyond'] for s in results['tasks'][1]['schemes']])
  assert results['ranks'] == pytest.approx(
    {'none': (1 + second[0]) / 2, 'learned': (1 / 2 + second[1]) / 2}
  )
  (copy / 'summation' / 'runs' / 'learned-0' / FILES).unlink()
  run(copy, '--report_only')
  results = read(copy)
  assert results['ranked'] == ['copy'] and results['ranks'] == {'none': 1, 'learned': 0.5}
  table = (copy / 'table.md').read_text()
  assert 'Left out of MRR, not finished: summation.' in table
  assert 'Missing: learned with seed 0: not finished.' in table


def test_means_are_over_seeds(copy):
  folder = copy / 'copy' / 'runs'
  shutil.copytree(folder / 'none-0', folder / 'none-1')
  config = json.loads((folder / 'none-1' / 'config.json').read_text())
  (folder / 'none-1' / 'config.json').write_text(json.dumps(config | {'seed': 1}))
  evaluation = json.loads((folder / 'none-1' / FILES).read_text())
  before = [row['exact'] for row in evaluation['rows']]
  for row in evaluation['rows']:
    row['exact'] += 0.5
  (folder / 'none-1' / FILES).write_text(json.dumps(evaluation))
  run(copy, '--report_only', seeds='0,1')
  none = read(copy)['tasks'][0]['schemes'][0]
  assert [row['mean'] for row in none['rows']] == [exact + 0.25 for exact in before]
  deviation = statistics.stdev([0, 0.5])
  assert [row['deviation'] for row in none['rows']] == pytest.approx([deviation] * 2)
  assert '±.35' in (copy / 'table.md').read_text()


@pytest.mark.parametrize(
  ('scores', 'ranks'),
  [
    ([0.9, 0.1, 0.5], [1, 1 / 3, 1 / 2]),
    ([0.5, 0.5, 0.1], [1 / 1.5, 1 / 1.5, 1 / 3]),
    ([0, 0, 0], [1 / 2] * 3),
    ([1.0], [1]),
  ],
)
def test_equal_scores_share_the_mean_of_their_ranks(scores, ranks):
  assert generalize.reciprocal_ranks(scores) == ranks


def test_what_is_finished_is_not_done_again_and_a_stop_is_told(copy, monkeypatch, capsys):
  calls = []
  monkeypatch.setattr(train, 'main', lambda words: calls.append(words[1].rpartition('/')[2]))
  run(copy)
  assert not calls
  (copy / 'copy' / 'runs' / 'learned-0' / FILES).unlink()
  run(copy)
  assert calls == ['learned-0']
  assert capsys.readouterr().out.endswith('Stopped. The same command goes on from here.\n')


def test_what_cannot_be_compared_is_refused_with_the_way_out(finished, tmp_path):
  with pytest.raises(ValueError, match=r"'--config.data.name=task:copy' is a single task. Use -"):
    run(tmp_path, '--config.data.name=task:copy')
  with pytest.raises(ValueError, match=r"no task 'copi'. Did you mean 'copy'"):
    run(tmp_path, '--tasks=copi')
  with pytest.raises(ValueError, match=r'Rows of 2 tokens are too short for Copy'):
    run(tmp_path, '--config.train.length=2')
  with pytest.raises(ValueError, match=r'would change every scheme'):
    run(tmp_path, '--config.position.theta=5')
  with pytest.raises(ValueError, match=r'No run in .* is finished'):
    run(tmp_path, '--report_only')
  with pytest.raises(ValueError, match=r'has train.steps = 6, not 7: they do not compare'):
    run(finished, '--config.train.steps=7')
  assert not list(tmp_path.iterdir())


def test_the_best_scheme_stands_first():
  shares = {'a': 0.1, 'b': 0.9, 'c': 0.5}
  schemes = [{'name': name, 'beyond': share} for name, share in shares.items()]
  ranks = {'a': 1 / 3, 'b': 1, 'c': 0.5}
  results = {'tasks': [{'name': 'copy', 'schemes': schemes}], 'ranks': ranks}
  header, lines = generalization.summary(results)
  assert header == ['scheme', 'MRR', 'copy']
  assert lines == [['b', '1.00', '0.90'], ['c', '0.50', '0.50'], ['a', '0.33', '0.10']]
