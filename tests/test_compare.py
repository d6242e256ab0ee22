"""Schemes are compared with the same budget, and what is finished is not done again."""

import json
import shutil
import statistics

import pytest

import train
from benchmarks import compare
from posjax import positions
from posjax.config import load
from posjax.report import comparison

CONFIGS = '--configs=configs/none.py,configs/learned.py'
SEEDS = '--seeds=0,1'


pytestmark = pytest.mark.slow  # trains every scheme that it compares


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A comparison of two schemes and two seeds, of seconds: the seeds share compiled programs."""
  workdir = tmp_path_factory.mktemp('compare') / 'all'
  run(workdir)
  return workdir


@pytest.fixture
def copy(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / 'copy')


@pytest.fixture
def asked(monkeypatch):
  """The run directories that train.main is asked for; it does nothing."""
  calls = []
  monkeypatch.setattr(train, 'main', lambda words: calls.append(words[1].rpartition('/')[2]))
  return calls


def run(workdir, *words):
  compare.main(['--smoke', CONFIGS, SEEDS, f'--workdir={workdir}', *words])


def read(workdir):
  return json.loads((workdir / 'comparison.json').read_text())


def scheme(results, name):
  return next(one for one in results['schemes'] if one['name'] == name)


def without_evaluation(workdir, name):
  (workdir / 'runs' / name / 'evaluation' / 'compare.json').unlink()


# --- what is compared -----------------------------------------------------------------------------


def test_every_scheme_gets_the_same_budget_and_keeps_its_own_hyperparameters(tmp_path):
  budget = compare.load_budget('configs/compare.py', ['--config.train.steps=50'])
  names = [*positions.names(), 'quickstart', 'extend_yarn']  # two that set more than a scheme
  paths = [f'configs/{name}.py' for name in names]
  entries = compare.plan(paths, [3, 4], budget, tmp_path)
  assert [(e.name, e.seed) for e in entries] == [(n, seed) for seed in (3, 4) for n in names]
  for entry, path in zip(entries, paths * 2, strict=True):
    own, shared = compare.parts(entry.config)
    assert shared == compare.parts(budget)[1] | {'seed': entry.seed}
    assert shared['train.steps'] == 50 and shared['model.vocabulary'] == 256
    assert own == compare.parts(load(path))[0]
    flags = [word for word in entry.words if not word.startswith('--config.')]
    assert flags == [f'--config={path}', f'--workdir={tmp_path}/runs/{entry.name}-{entry.seed}']


def test_what_cannot_be_compared_is_refused_with_the_way_out(finished, tmp_path):
  with pytest.raises(ValueError, match=r"theta=5' would change every scheme. Write it into"):
    run(tmp_path, '--config.position.theta=5')
  with pytest.raises(ValueError, match=r'is a single seed. Use --seeds=0,1,2'):
    run(tmp_path, '--config.seed=5')
  with pytest.raises(ValueError, match=r'without an evaluation. Leave out --config.eval'):
    run(tmp_path, '--config.eval=None')
  with pytest.raises(ValueError, match=r"'task:copy' has none. Use .* --tasks=copy"):
    run(tmp_path, '--config.data.name=task:copy')
  with pytest.raises(ValueError, match=r'--seeds=0,x: not whole numbers'):
    run(tmp_path, '--seeds=0,x')
  with pytest.raises(ValueError, match=r'--seeds=1,1: a seed is named twice'):
    run(tmp_path, '--seeds=1,1')
  with pytest.raises(ValueError, match=r"Two of the configs are called 'rope'. Rename"):
    run(tmp_path, '--configs=configs/rope.py,configs/rope.py:smoke')
  with pytest.raises(ValueError, match=r"No key 'train.step' .*Did you mean 'train.steps'"):
    run(tmp_path, '--config.train.step=5')
  with pytest.raises(ValueError, match=r'No run in .* is finished. Leave out --report_only'):
    run(tmp_path, '--report_only')
  with pytest.raises(ValueError, match=r'has train.steps = 6, not 7: they do not compare. Use a'):
    run(finished, '--config.train.steps=7')
  assert not list(tmp_path.iterdir())


# --- the report -----------------------------------------------------------------------------------


def test_losses_are_means_and_deviations_over_seeds_of_the_runs_own_evaluations(finished):
  results = read(finished)
  assert results['seeds'] == [0, 1] and results['lengths'] == [32, 128]
  for name in ('none', 'learned'):
    runs = [
      json.loads((finished / f'runs/{name}-{seed}/evaluation/compare.json').read_text())
      for seed in (0, 1)
    ]
    rows = scheme(results, name)['losses']
    assert [row['length'] for row in rows] == ([32, 128] if name == 'none' else [32])
    for row in rows:
      losses = [
        r['loss'] for one in runs for r in one['rows']
        if r['length'] == row['length'] and r['estimator'] == 'sliding'
      ]  # fmt: skip
      assert losses[0] != losses[1]
      assert row['mean'] == pytest.approx(sum(losses) / 2, rel=1e-12)
      assert row['deviation'] == pytest.approx(abs(losses[0] - losses[1]) / 2**0.5, rel=1e-9)
      assert (row['low'], row['high']) == (min(losses), max(losses))
    curve = scheme(results, name)['positions']
    assert curve['length'] == rows[-1]['length']
    for n, one in enumerate(curve['bins']):
      means = [curves['positions'][0]['bins'][n]['mean'] for curves in runs]
      assert one['mean'] == pytest.approx(statistics.fmean(means), rel=1e-12)


def test_a_scheme_without_positions_beyond_training_is_reported_as_refused(finished):
  refused = scheme(read(finished), 'learned')['refused']
  assert [row['length'] for row in refused] == [128]
  table = (finished / 'table.md').read_text()
  line = next(line for line in table.splitlines() if line.startswith('| learned'))
  assert line.count('refused') == 1
  assert '- learned is refused at 128: The position scheme has 32 positions' in table


def test_costs_are_of_the_model_and_relative_to_the_budgets_own_scheme(finished):
  costs = {name: scheme(read(finished), name)['costs'] for name in ('none', 'learned')}
  assert costs['learned']['parameters'] - costs['none']['parameters'] == 32 * 32
  assert costs['none']['time_over_baseline'] == 1 and costs['learned']['time_over_baseline'] > 0
  # Two layers, keys and values of four heads of eight, float32.
  assert costs['learned']['cache_bytes_per_token'] == 2 * 2 * 4 * 8 * 4
  state = 3 * 4 * costs['none']['parameters']  # parameters and two moments
  assert state < costs['none']['memory_bytes'] < 100 * state


def test_there_is_one_page_with_table_and_pictures(finished):
  page = (finished / 'report.html').read_text()
  assert page.count('<svg') == 2 and 'src="http' not in page and '**' not in page
  assert page.count('class="best"') >= 2 and 'learned is refused at 128' in page
  for name in ('lengths', 'positions'):
    assert (finished / f'{name}.png').read_bytes().startswith(b'\x89PNG')
  rows = (finished / 'table.md').read_text().split('\n\n')[0].splitlines()
  assert len({len(row) for row in rows}) == 1 and len(rows) == 4  # aligned; header, rule, schemes
  assert rows[2].startswith('| none ') and '±.' in rows[2] and '1.00' in rows[2]


# --- going on -------------------------------------------------------------------------------------


def test_the_same_command_does_nothing_twice(finished, asked, monkeypatch, capsys):
  monkeypatch.delattr(compare, 'measure_costs')
  before = (finished / 'comparison.json').read_bytes()
  run(finished)
  assert not asked and capsys.readouterr().out.count('Finished before.') == 4
  assert (finished / 'comparison.json').read_bytes() == before


def test_a_comparison_that_was_stopped_goes_on_and_ends_the_same(copy, asked, monkeypatch, capsys):
  before = read(copy)
  without_evaluation(copy, 'learned-0')
  (copy / 'comparison.json').unlink()
  run(copy)  # train.main returns without having finished: it was asked to stop
  assert asked == ['learned-0'] and 'Stopped. The same command' in capsys.readouterr().out
  assert not (copy / 'comparison.json').exists()
  monkeypatch.undo()
  run(copy)
  after = read(copy)
  assert after['schemes'] == before['schemes'] and after['seconds'] > before['seconds']


def test_a_longer_list_trains_what_is_new_and_measures_all_costs_again(copy, asked, monkeypatch):
  measured = []
  monkeypatch.setattr(compare, 'measure_costs', lambda jobs, baseline: measured.append(list(jobs)))
  compare.main(['--smoke', f'{CONFIGS},configs/rope.py', '--seeds=0', f'--workdir={copy}'])
  assert asked == ['rope-0'] and not measured  # stopped there
  shutil.copytree(copy / 'runs' / 'none-0', copy / 'runs' / 'rope-0')
  (copy / 'runs' / 'rope-0' / 'config.json').unlink()
  with pytest.raises(TypeError):  # there are no costs to report
    compare.main(['--smoke', f'{CONFIGS},configs/rope.py', '--seeds=0', f'--workdir={copy}'])
  assert measured == [['none', 'learned', 'rope']]


def test_a_run_that_fails_is_reported_and_the_others_go_on(copy, monkeypatch):
  def fail(words):
    raise ValueError('At step 5 the loss is inf.')

  monkeypatch.setattr(train, 'main', fail)
  without_evaluation(copy, 'none-0')
  without_evaluation(copy, 'learned-1')
  run(copy)
  results = read(copy)
  assert scheme(results, 'none')['missing'] == [{'seed': 0, 'reason': 'At step 5 the loss is inf.'}]
  assert scheme(results, 'none')['losses'][0]['deviation'] is None
  missing = '- Missing: none with seed 0, learned with seed 1: At step 5 the loss is inf.'
  assert missing in (copy / 'table.md').read_text()


def test_a_report_can_be_made_of_what_is_there(copy, asked):
  without_evaluation(copy, 'none-1')
  (copy / 'costs.json').unlink()
  run(copy, '--report_only')
  none = scheme(read(copy), 'none')
  assert none['missing'] == [{'seed': 1, 'reason': 'not finished.'}] and none['costs'] is None
  assert not asked and not (copy / 'costs.json').exists()


def test_runs_that_were_evaluated_on_other_targets_do_not_compare(copy):
  path = copy / 'runs' / 'none-1' / 'evaluation' / 'compare.json'
  evaluation = json.loads(path.read_text())
  path.write_text(json.dumps(evaluation | {'targets': evaluation['targets'] - 1}))
  with pytest.raises(ValueError, match=r"none-1.* scores other targets than '.*none-0"):
    run(copy, '--report_only')


# --- what the table says --------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('ranges', 'best'),
  [
    ([(1.0, 1.2), (1.3, 1.5)], [True, False]),
    ([(1.0, 1.2), (1.2, 1.5)], [True, True]),  # the ranges meet
    ([(1.3, 1.5), (1.0, 1.35), (1.4, 1.6)], [True, True, False]),
    ([(1.0, 1.0), (1.0001, 1.0001)], [True, False]),  # one seed: the lowest
  ],
)
def test_the_best_are_those_that_seeds_do_not_tell_from_the_lowest(ranges, best):
  rows = [{'mean': sum(pair) / 2, 'low': pair[0], 'high': pair[1]} for pair in ranges]
  compare.mark_best(rows)
  assert [row['best'] for row in rows] == best


def test_schemes_are_ranked_by_the_longest_length_and_those_that_end_before_come_last():
  reach = lambda name, *means: {
    'name': name,
    'losses': [{'length': 128 * 2**n, 'mean': mean} for n, mean in enumerate(means)],
  }
  schemes = [reach('a', 1.0), reach('b', 1.1, 3.0), reach('c'), reach('d', 1.2, 1.3)]
  assert [one['name'] for one in comparison.ranked({'schemes': schemes})] == ['d', 'b', 'a', 'c']


@pytest.mark.parametrize(
  ('seconds', 'words'), [(7.4, '7 s'), (119, '119 s'), (150, '2 min'), (3599, '1 h 0 min'),
                         (5400, '1 h 30 min')],
)  # fmt: skip
def test_time_is_said_as_people_say_it(seconds, words):
  assert comparison.duration(seconds) == words
