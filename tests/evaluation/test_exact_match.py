"""Exact match of models whose mistakes are known: by size, by depth, by recipe."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.eval import base
from posjax.data.tasks import make
from posjax.evaluation.tasks import answer, evaluate, rate


def settings(**changes):
  config = base.get_config('smoke')
  config.update({'name': 'tasks', 'multiples': (1, 2, 4), 'batch_tokens': 100, **changes})
  return config


def stretch(recipe, length):
  return {'stretch': np.float32(recipe.get('factor', 1.0))}


def within(spectrum, batch):
  """Right as long as the stretched trained length, 20, reaches."""
  right = batch['positions'] < 20 * spectrum['stretch']
  return np.where(batch['targets'] < 0, 1, right).astype(np.float32)


def run(hits=within, spectrum_of=stretch, task='copy', task_settings=None, **changes):
  task = make(task, **(task_settings or {}))
  return evaluate(
    hits, spectrum_of, task, settings(**changes), trained_length=20, trained_size=task.fit(20)
  )


def exact(results):
  return {(row['size'], row['recipe']): row['exact'] for row in results['rows']}


def test_an_answer_is_right_if_all_of_its_tokens_are():
  examples = [make('copy').example(0, index, 3) for index in range(3)]  # 8 inputs, 4 of them asked
  target_at = {0: [4], 1: [], 2: [5, 6, 7]}  # wrong ones, by row

  def hits(_, batch):
    hit_BL = np.ones(batch['targets'].shape, np.float32)
    for b, wrong in target_at.items():
      hit_BL[b, wrong] = 0
    return hit_BL

  right = answer(hits, None, examples, 8, batch_tokens=1000)
  assert right.tolist() == [[0, 0.75], [1, 1], [0, 0.25]]


def test_sizes_are_multiples_of_the_trained_one_and_more_is_asked_than_learned():
  results = run(recipes=({'name': 'none'}, {'name': 'linear'}))
  assert (results['trained_size'], results['sizes']) == (9, [9, 18, 36])
  assert results['lengths'] == [20, 38, 74]
  assert exact(results) == {
    (9, 'none'): 1, (9, 'linear'): 1, (18, 'none'): 0, (18, 'linear'): 1, (36, 'none'): 0,
    (36, 'linear'): 1,
  }  # fmt: skip
  factor = {(row['size'], row['recipe']): row['factor'] for row in results['rows']}
  assert factor[36, 'linear'] == 74 / 20 and factor[36, 'none'] is None
  (row,) = [r for r in results['rows'] if (r['size'], r['recipe']) == (18, 'none')]
  assert row['tokens'] == pytest.approx(1 / 19)  # position 19 of 19 .. 37


def test_every_recipe_answers_the_same_examples_and_a_seed_decides_them():
  seen = {}

  def spectrum_of(recipe, length):
    seen[recipe['name'], length] = []
    return recipe['name'], length

  def hits(spectrum, batch):
    seen[spectrum].append(batch['tokens'])
    return within(stretch({}, 0), batch)

  recipes = ({'name': 'none'}, {'name': 'ntk'})
  first = run(hits, spectrum_of, recipes=recipes)
  tokens = {key: np.concatenate(batches) for key, batches in seen.items()}
  for length in first['lengths']:
    np.testing.assert_array_equal(tokens['none', length], tokens['ntk', length])
  second = run(hits, spectrum_of, recipes=recipes)
  assert first.pop('seconds') >= 0 and second.pop('seconds') >= 0
  assert json.loads(json.dumps(first, allow_nan=False)) == second
  run(hits, spectrum_of, recipes=recipes, seed=1)
  again = np.concatenate(seen['none', 20])
  assert again.shape == tokens['none', 20].shape and (again != tokens['none', 20]).any()


def test_a_grid_tells_at_which_depth_the_needle_is_lost():
  def lost_in_the_middle(_, batch):
    place_B = (batch['tokens'] == 3).argmax(1)
    middle_B = abs(place_B / batch['tokens'].shape[1] - 0.4) < 0.2
    return np.where(middle_B[:, None], 0, np.ones(batch['targets'].shape)).astype(np.float32)

  results = run(lost_in_the_middle, task='passkey', depths=(0, 0.5, 1.0), multiples=(8,))
  grid = {(cell['size'], cell['depth']): cell['exact'] for cell in results['grid']}
  assert [grid[160, depth] for depth in results['depths']] == [1, 0, 1]
  (row,) = [row for row in results['rows'] if row['size'] == 160]
  assert row['exact'] == pytest.approx(2 / 3) and row['examples'] == 24


def test_depths_are_only_for_needles():
  results = run(task='copy', depths=(0.0, 1.0))
  assert results['depths'] == results['grid'] == [] and results['rows'][0]['examples'] == 8
  assert run(task='passkey')['grid'] == []


def test_one_compilation_per_size_however_many_recipes_and_depths():
  traces = []

  @jax.jit
  def traced(spectrum, targets_BL, positions_BL):
    traces.append(targets_BL.shape)
    return jnp.where(targets_BL < 0, 1.0, jnp.sin(positions_BL / spectrum['stretch']) > 2)

  hits = lambda spectrum, batch: traced(spectrum, batch['targets'], batch['positions'])
  recipes = tuple({'name': 'yarn', 'factor': 1.0 + n} for n in range(5))
  run(hits, task='passkey', recipes=recipes, depths=(0.0, 0.5, 1.0), examples=7)
  assert sorted(traces) == [(1, 80), (2, 40), (5, 20)]


def test_what_is_refused_is_reported_and_the_others_go_on():
  def spectrum_of(recipe, length):
    if recipe['name'] == 'ntk':
      raise ValueError('No frequencies.')
    return stretch(recipe, length)

  def hits(spectrum, batch):
    if batch['tokens'].shape[1] > 40:
      raise ValueError('40 learned positions.')
    return within(spectrum, batch)

  results = run(hits, spectrum_of, recipes=({'name': 'none'}, {'name': 'ntk'}))
  assert list(exact(results)) == [(9, 'none'), (18, 'none')]
  assert results['refused'][-2:] == [
    {'length': 74, 'recipe': 'none', 'reason': '40 learned positions.'},
    {'length': 74, 'recipe': 'ntk', 'reason': 'No frequencies.'},
  ]
  with pytest.raises(ValueError, match=r"refuses all of \['ntk'\]: No frequencies. Evaluate with"):
    run(hits, spectrum_of, recipes=({'name': 'ntk'},))


def test_a_size_that_the_task_cannot_have_is_refused_and_the_others_go_on():
  recipes = ({'name': 'none'}, {'name': 'linear'})
  results = run(task='recall', task_settings={'symbols': 20}, recipes=recipes)
  assert (results['trained_size'], results['sizes']) == (5, [5, 10, 20])
  assert list(exact(results)) == [(n, r['name']) for n in (5, 10) for r in recipes]
  assert [(r['length'], r['recipe']) for r in results['refused']] == [(80, 'none'), (80, 'linear')]
  assert '20 pairs need as many keys, but half of 20 symbols' in results['refused'][0]['reason']


def test_what_is_not_a_number_is_refused_and_not_counted_as_wrong():
  def hits(spectrum, batch):
    return np.where(batch['positions'] > 30, np.nan, within(spectrum, batch))

  results = run(hits)
  assert list(exact(results)) == [(9, 'none')]
  assert 'no finite logits for examples of 38 tokens' in results['refused'][0]['reason']


def test_intervals_are_wilsons():
  """The bounds are the shares whose own deviation of 1.96 reaches what was seen."""
  for right, n in ((0, 8), (3, 8), (8, 8), (190, 200)):
    found = rate(np.array([[1, 1]] * right + [[0, 0.5]] * (n - right)))
    assert found['exact'] == right / n and found['examples'] == n
    assert found['tokens'] == pytest.approx((right + 0.5 * (n - right)) / n)
    for bound in {found['low'], found['high']} - {0.0, 1.0}:
      assert abs(right / n - bound) == pytest.approx(1.96 * math.sqrt(bound * (1 - bound) / n))
    assert 0 <= found['low'] <= right / n <= found['high'] <= 1 and found['low'] < found['high']


def test_without_examples_nothing_is_measured():
  with pytest.raises(ValueError, match=r'0 examples measure nothing. Use --eval.examples >= 1'):
    run(examples=0)
