"""Tasks from end to end: what is learned, resumed, evaluated and drawn."""

import json
import logging
import shutil

import jax
import pytest
from e2e import assert_same_bits, stored, train_here

import eval as evaluation
from posjax import report
from posjax.atlas import __main__ as atlas
from posjax.config import load

SMOKE = 'configs/passkey.py:smoke'
DEPTHS = '--eval.depths=(0.0, 1.0)'


@pytest.fixture(scope='module')
def passkey(tmp_path_factory):
  """A run of six steps, evaluated as its config says."""
  workdir = tmp_path_factory.mktemp('passkey') / 'run'
  train_here(workdir, config=SMOKE, evaluate='configs/eval/passkey.py:smoke')
  return workdir


@pytest.fixture
def copy(passkey, tmp_path):
  return shutil.copytree(passkey, tmp_path / 'copy')


def evaluate(workdir, *words, file='base'):
  evaluation.main([f'--workdir={workdir}', f'--eval=configs/eval/{file}.py:smoke', *words])
  name = next((w.partition('=')[2] for w in words if w.startswith('--eval.name')), file)
  return json.loads((workdir / 'evaluation' / f'{name}.json').read_text())


@pytest.mark.slow
def test_training_on_a_task_lowers_the_loss_of_its_answers(tmp_path):
  settings = ('data.task.symbols=2', 'train.length=12', 'train.batch=32', 'train.steps=150')
  settings += ('train.learning_rate=0.01', 'log.every=25', 'data.size=3')
  rows = train_here(tmp_path / 'run', *settings, config='configs/copy.py:smoke')
  assert 'bits_per_byte' not in rows[0]
  assert rows[0]['loss'] > 5  # of 256 ids
  assert rows[-1]['loss'] < 0.35  # half of ln 2, what a guess among the symbols seen would cost
  results = evaluate(tmp_path / 'run', '--eval.examples=64')
  assert results['sizes'] == [3] and results['rows'][0]['tokens'] > 0.8


@pytest.mark.slow
def test_a_run_on_a_task_goes_on_where_it_stopped_bit_by_bit(passkey, tmp_path):
  half = tmp_path / 'half'
  train_here(half, 'train.steps=6', config=SMOKE)
  shutil.rmtree(half / 'checkpoints' / '6')
  train_here(half, 'train.steps=6', config=SMOKE)
  assert stored(half)[0] == 6
  assert_same_bits(half, passkey)


def test_a_run_becomes_a_table_json_a_heat_map_and_one_page(passkey):
  results = json.loads((passkey / 'evaluation' / 'passkey.json').read_text())
  assert results['sizes'] == results['lengths'] == [32, 64]
  assert len(results['rows']) == 2 * 4 and len(results['grid']) == 2 * 4 * 2
  assert results['facts']['scheme'] == 'rope' and not results['refused']
  pictures = sorted(path.name for path in (passkey / 'evaluation').glob('*.png'))
  assert pictures == ['passkey-grid.png', 'passkey-sizes.png']
  page = (passkey / 'report.html').read_text()
  assert page.count('<svg') == 3 and '<image' not in page
  assert 'Passkey(symbols=64' in page and 'trained 32' in page


def test_a_sweep_of_recipes_and_depths_compiles_once_per_size(copy, caplog):
  recipes = tuple({'name': 'yarn', 'factor': factor} for factor in (2.0, 3.0, 4.0))
  sweep = ('--eval.name=sweep', '--eval.multiples=(1, 2)', f'--eval.recipes={recipes}')
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    results = evaluate(copy, *sweep, DEPTHS)
  assert sum(line.startswith('Compiling jit(score)') for line in caplog.messages) == 2
  assert len(results['rows']) == 6


@pytest.mark.slow
def test_an_evaluation_may_ask_another_task_or_the_same_with_other_settings(copy, capsys):
  own = evaluate(copy, '--eval.data.task.digits=2', '--eval.data.size=20')
  assert own['task'] == 'Passkey(symbols=64, keys=1, values=1, queries=1, digits=2, depth=None)'
  assert own['trained_size'] == 20
  other = evaluate(copy, '--eval.data.name=task:sort', '--eval.data.task.symbols=5')
  assert other['task'] == 'Sort(symbols=5)' and other['lengths'] == [32]
  text = evaluate(copy, '--eval.data.name=sotu', '--eval.name=text')
  assert 'bits_per_byte' in text['rows'][0]
  out = capsys.readouterr().out
  assert 'Sort(symbols=5): 8 examples of each size, the same for every recipe' in out
  page = (copy / 'report.html').read_text()
  assert 'Evaluation: text' in page and 'Evaluation: passkey' in page


@pytest.mark.slow
def test_a_model_of_text_can_be_asked_too(six_steps, tmp_path):
  run = shutil.copytree(six_steps, tmp_path / 'run')
  results = evaluate(run, '--eval.data.name=task:passkey', DEPTHS)
  assert results['rows'][0]['exact'] == 0 and len(results['grid']) == 2


def test_what_cannot_be_asked_is_refused_with_the_way_out(copy, tmp_path):
  with pytest.raises(ValueError, match=r"no task 'passkeys'. Did you mean 'passkey'\?"):
    evaluate(copy, '--eval.data.name=task:passkeys')
  with pytest.raises(ValueError, match=r"'passkey' has no hops"):
    evaluate(copy, '--eval.data.task.hops=3')
  with pytest.raises(ValueError, match=r'Rows of 32 tokens are too short for Needles'):
    evaluate(copy, '--eval.data.name=task:needles', '--eval.data.task.keys=9')
  with pytest.raises(ValueError, match=r"No key 'task.digits' in the config"):
    load(SMOKE, ['--config.task.digits=3'])
  with pytest.raises(ValueError, match=r'data.task.digits: None -> 3 .the stream would not go on'):
    train_here(copy, 'data.task.digits=3', config=SMOKE)


def test_the_atlas_draws_runs_on_text_only(passkey, tmp_path):
  with pytest.raises(ValueError, match=r"trained on 'task:passkey'.* Name the --workdir of a run"):
    atlas.main([f'--workdir={passkey}', f'--out={tmp_path}'])


# --- what is drawn --------------------------------------------------------------------------------


def results(depths=(0.0, 0.5, 1.0), refused=()):
  recipes, lengths = ['none', 'linear', 'yarn', 'ntk'], [64, 128]
  rates = {'low': 0.1, 'high': 0.9, 'tokens': 0.75, 'examples': 30}
  cells = [(n, r) for n in lengths for r in recipes if (n, r) not in refused]
  where = lambda n, r: {'size': n, 'length': n, 'recipe': r, 'factor': None, 'exact': 0.5, **rates}
  return {
    'name': 'grid', 'task': 'Passkey()', 'recipes': recipes, 'trained_size': 64, 'sizes': lengths,
    'lengths': lengths, 'depths': list(depths), 'examples': 10,
    'rows': [where(n, r) for n, r in cells],
    'grid': [where(n, r) | {'depth': d, 'exact': d} for n, r in cells for d in depths],
    'refused': [{'length': n, 'recipe': r, 'reason': 'No <frequencies>.'} for n, r in refused],
    'seconds': 1.0, 'facts': {},
  }  # fmt: skip


def test_the_table_has_a_column_for_each_depth_and_says_what_is_refused():
  text = report.table(results(refused=[(128, 'ntk')]))
  assert max(map(len, text.splitlines())) <= 100
  line = 'trained 64      64  yarn      0.500  0.100 to 0.900   0.750  0.00    0.50  1.00'
  assert line in text
  assert '       128     128  ntk     refused\n' in text
  assert 'ntk is refused at 128: No <frequencies>.' in text
  assert '10 examples of each size, at each of 3 depths' in text


def test_the_heat_map_has_a_panel_per_recipe_and_a_number_in_each_cell():
  figure = report.tasks.plot_grid(results(refused=[(128, 'ntk')]))
  shown = [axes for axes in figure.axes if axes.get_title()]
  assert [axes.get_title() for axes in shown] == ['none', 'linear', 'yarn', 'ntk']
  for axes in shown:
    texts = [text.get_text() for text in axes.texts]
    last = '–' if axes.get_title() == 'ntk' else None
    assert texts == ['0', last or '0', '50', last or '50', '100', last or '100']
    top, bottom = (axes.transData.transform((0, depth))[1] for depth in (0, 2))
    assert top > bottom  # the beginning of the text is above
  assert report.tasks.plot_grid(results(depths=())) is None
