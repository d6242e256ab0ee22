"""A whole evaluation of models whose losses are known: same targets, one shape, honest refusals."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.eval import base, extend, lengths
from posjax.evaluation import at_length, choose, evaluate, label


class Documents:
  bytes_per_token = 2.0

  def __init__(self, sizes):
    rng = np.random.default_rng(0)
    self.tokens = [rng.integers(1, 50, size).astype(np.int32) for size in sizes]

  def __len__(self):
    return len(self.tokens)

  def __getitem__(self, index):
    return self.tokens[index]


def settings(**changes) -> ConfigDict:
  config = extend.get_config('smoke')
  config.multiples = (1, 2, 4, 8)
  config.update(changes)
  return config


def by_context(spectrum, batch):
  """1 nat, less what context saves, plus 2 for each token beyond the stretched trained length 8."""
  context = batch['positions'] + 1
  beyond = np.maximum(0, context / spectrum['stretch'] - 8)
  return (1 - 0.01 * context + 2 * beyond).astype(np.float32)


def stretch(recipe, length):
  return {'stretch': np.float32(recipe.get('factor', 1.0))}


def run(losses=by_context, spectrum_of=stretch, sizes=(129, 200, 128, 500), **changes):
  return evaluate(losses, spectrum_of, Documents(sizes), settings(**changes), trained_length=8)


def row(results, length, recipe, estimator='sliding'):
  (found,) = [
    r for r in results['rows']
    if (r['length'], r['recipe'], r['estimator']) == (length, recipe, estimator)
  ]  # fmt: skip
  return found


def test_all_lengths_and_recipes_score_the_same_targets():
  results = run(lambda _, batch: batch['targets'].astype(np.float32))
  assert len({(r['loss'], r['tokens'], r['documents']) for r in results['rows']}) == 1
  assert len(results['rows']) == 4 * 4 * 2
  assert all(g['mean'] == 0 for g in results['gains'])
  assert all(r['best'] for r in results['rows'])


def test_documents_too_short_for_the_longest_length_are_left_out_of_all_and_counted():
  results = run()  # 64 tokens twice: 129 is just enough, 128 is not
  assert (results['documents'], results['short_documents']) == (3, 1)
  assert results['tokens'] == 3 * 128 and results['rows'][0]['tokens'] == 3 * 128


def test_losses_and_bits_agree_with_sums_over_the_contexts():
  results = run()
  found = row(results, 16, 'none', 'non-overlapping')
  expected = np.mean([1 - 0.01 * c + 2 * max(0, c - 8) for c in range(1, 17)])
  assert found['loss'] == pytest.approx(expected, rel=1e-6)
  assert found['bits_per_byte'] == pytest.approx(expected / math.log(2) / 2)
  seen = [*range(1, 17), *(9 + n % 8 for n in range(128 - 16))]
  found = row(results, 16, 'yarn')
  assert found['loss'] == pytest.approx(np.mean([1 - 0.01 * c for c in seen]), rel=1e-6)
  assert found['factor'] == 2.0 and row(results, 16, 'none')['factor'] is None


def test_the_gain_is_what_more_context_saves_on_targets_with_full_context():
  results = run()
  (found,) = [g for g in results['gains'] if (g['length'], g['recipe']) == (64, 'yarn')]
  assert found['tokens'] == 3 * 96  # all but the first half window of 64
  long = [*range(33, 65)] * 3
  short = [*range(5, 9)] * 24
  assert found['mean'] == pytest.approx(0.01 * (np.mean(long) - np.mean(short)), rel=1e-4)
  assert found['low'] == pytest.approx(found['high'])  # no document differs from another


def test_position_curves_show_where_a_model_breaks():
  results = run()
  curves = {curve['recipe']: curve for curve in results['positions']}
  assert curves['none']['length'] == 64
  loss_of = {b['context']: b['mean'] for b in curves['none']['bins']}
  assert loss_of[8] < 1 < loss_of[11] < loss_of[64]
  assert max(b['mean'] for b in curves['yarn']['bins']) <= 1


def test_formulaic_beginnings_of_documents_do_not_flatter_short_contexts():
  documents = Documents([200, 300])
  for tokens in documents.tokens:
    tokens[:20] = 0

  def losses(_, batch):  # the beginning is known by heart, all else costs a nat
    return (batch['targets'] > 0).astype(np.float32)

  results = evaluate(losses, stretch, documents, settings(), trained_length=8)
  assert {b['mean'] for c in results['positions'] for b in c['bins']} == {1.0}
  assert row(results, 64, 'none')['loss'] == pytest.approx(1 - 19 / 128)


def test_the_best_recipe_is_marked_and_equal_ones_share_the_mark():
  results = run()
  assert [row(results, 8, r)['best'] for r in results['recipes']] == [True] * 4
  assert [row(results, 64, r)['best'] for r in results['recipes']] == [False, True, True, True]
  assert row(results, 64, 'none')['behind_low'] > 0


def test_a_sweep_compiles_once_per_length():
  shapes, traces = set(), []

  @jax.jit
  def traced(spectrum, tokens_BL, positions_BL):
    traces.append(tokens_BL.shape)
    return jnp.sin(positions_BL / spectrum['stretch'])

  def losses(spectrum, batch):
    shapes.add(batch['tokens'].shape)
    return traced(spectrum, batch['tokens'], batch['positions'])

  run(losses, batch_tokens=128)
  assert len(traces) == len(shapes) == 4
  assert {L for _, L in shapes} == {8, 16, 32, 64}


def test_a_refused_recipe_is_reported_and_the_others_go_on():
  def spectrum_of(recipe, length):
    if recipe['name'] == 'ntk' and length > 16:
      raise ValueError('No frequencies. Use linear.')
    return stretch(recipe, length)

  results = run(spectrum_of=spectrum_of)
  assert results['refused'] == [
    {'length': n, 'recipe': 'ntk', 'reason': 'No frequencies. Use linear.'} for n in (32, 64)
  ]
  assert len([r for r in results['rows'] if r['recipe'] == 'ntk']) == 2 * 2
  assert [c['length'] for c in results['positions']] == [64, 64, 16, 64]


def test_a_model_that_refuses_a_length_is_reported_too():
  def losses(spectrum, batch):
    if batch['tokens'].shape[1] > 8:
      raise ValueError('8 learned positions.')
    return by_context(spectrum, batch)

  results = run(losses)
  assert {r['length'] for r in results['rows']} == {8} and len(results['refused']) == 12
  assert results['gains'] == []


def test_if_all_is_refused_the_evaluation_says_why():
  def spectrum_of(recipe, length):
    raise ValueError('ALiBi has no frequencies.')

  with pytest.raises(ValueError, match=r'linear.*yarn.*ALiBi has no frequencies.*lengths\.py'):
    run(spectrum_of=spectrum_of)


def test_if_no_document_is_long_enough_the_error_names_the_longest_and_a_way_out():
  with pytest.raises(ValueError, match=r'2 documents none has the 129 tokens.*longest has 100.*sp'):
    run(sizes=(100, 20))


def test_a_span_without_full_context_is_refused():
  with pytest.raises(ValueError, match=r'span of 0\.5 .* Use span >= 1'):
    run(span=0.5)


def test_what_could_not_be_told_apart_or_has_no_length_is_refused():
  twice = ({'name': 'none'}, {'name': 'yarn', 'label': 'ours'}, {'name': 'ntk', 'label': 'ours'})
  with pytest.raises(ValueError, match=r"Two recipes are called 'ours'. Give .* another 'label'"):
    run(recipes=twice)
  for multiples, made in (((0.01,), r'\[0, 8\]'), ((-1, 2), r'\[-8, 8, 16\]')):
    with pytest.raises(ValueError, match=rf'of 8 tokens make lengths of {made}. Name multiples'):
      run(multiples=multiples)
  with pytest.raises(ValueError, match=r'make lengths of \[\]'):
    run(multiples=(), trained=False)


def test_documents_are_spread_evenly_and_two_at_least():
  documents = Documents([10] * 9 + [3])
  token_DT, short = choose(documents, targets=9, tokens=30)
  assert short == 1
  np.testing.assert_array_equal(token_DT, np.stack([documents[i] for i in (0, 3, 6)]))
  assert len(choose(documents, targets=9, tokens=0)[0]) == 2


def test_a_recipe_without_a_factor_takes_the_one_that_fits():
  assert at_length({'name': 'yarn'}, 64, 16) == {'name': 'yarn', 'factor': 4.0}
  assert at_length({'name': 'yarn'}, 8, 16) == {'name': 'yarn', 'factor': 1.0}
  assert at_length({'name': 'yarn', 'factor': 3}, 64, 16) == {'name': 'yarn', 'factor': 3}
  assert at_length({'name': 'none'}, 64, 16) == {'name': 'none'}
  assert label({'name': 'yarn', 'factor': 8, 'fast': 16.0}) == 'yarn factor=8 fast=16.0'


def test_results_are_plain_data_with_the_facts_and_a_seed_decides_them():
  first, second = (
    evaluate(by_context, stretch, Documents([300, 400]), settings(), trained_length=8,
             facts={'device': 'cpu'})
    for _ in range(2)
  )  # fmt: skip
  assert json.loads(json.dumps(first, allow_nan=False))['facts'] == {'device': 'cpu'}
  assert first.pop('seconds') >= 0 and second.pop('seconds') >= 0
  assert first == second


@pytest.mark.parametrize('module', [base, lengths, extend])
def test_evaluation_configs_have_the_same_keys_and_a_smoke_variant(module):
  config = module.get_config()
  assert set(config) == set(base.get_config())
  assert module.get_config('smoke').tokens < config.tokens
  with pytest.raises(ValueError, match=r"No variant 'big'.*FILE:smoke"):
    module.get_config('big')
