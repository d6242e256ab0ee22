"""Extensions found by measuring: each way finds what there is to find, and spends what it may."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e2e import train_here

import eval as evaluation
from posjax import fit, positions
from posjax.extension import Spectrum, extend, spectra
from posjax.fit import METHODS, Budget
from posjax.fit.__main__ import main, make_budget
from posjax.fit.budget import waves
from posjax.loading import load

DIMS = positions.Dims(width=16, heads=2, kv_heads=2, head_width=16, length=64)
ROPE = positions.make('rope', theta=1000.0).spectrum(DIMS)
FACTOR, TRAINED = 4.0, 64


def valley(best: Spectrum, passes: int, windows: int = 2, spectrum=ROPE) -> Budget:
  """A loss that is lowest at a known spectrum, by the logarithms of its waves and its sharpness."""
  best_F, sharp = jnp.log(jnp.float32(best.frequency_F)), math.log(sharpness(best))

  def loss(spectrum, n):
    w_F = jnp.log(jnp.asarray(spectrum.frequency_F, jnp.float32))
    return jnp.square(w_F - best_F).sum() + (jnp.log(sharpness(spectrum)) - sharp) ** 2 + 0.1 * n

  def fitted(log_divisor_F, log_temperature, n):
    return loss(waves(spectrum).rescaled(jnp.exp(log_divisor_F), jnp.exp(log_temperature)), n)

  return Budget(
    spectrum=spectrum, factor=FACTOR, trained_length=TRAINED, length=256, windows=windows,
    loss=lambda spectrum, n: loss(waves(spectrum), n),
    slope=jax.value_and_grad(fitted, argnums=(0, 1)), passes=passes,
  )  # fmt: skip


def sharpness(spectrum):
  """What products of rotated queries and keys are multiplied with."""
  return spectrum.temperature * spectrum.amplitude**2


def stretched(name, **settings):
  return extend(ROPE, name=name, factor=FACTOR, trained_length=TRAINED, **settings)


@pytest.mark.slow
def test_gradients_find_the_valley():
  best = stretched('linear').rescaled(np.linspace(0.5, 2, 8), 1.2)
  budget = valley(best, passes=2000)
  found = fit.METHODS['gradient'](budget, seed=0)
  assert found.recipe['name'] == 'rescale'
  np.testing.assert_allclose(
    extend(ROPE, **found.recipe).frequency_F, best.frequency_F, rtol=0.02
  )
  np.testing.assert_allclose(found.recipe['temperature'], 1.2, rtol=0.02)
  assert found.loss < 0.06 and found.history[0][1] > 1  # 0.05 is what the windows differ by


def test_evolution_comes_closer_to_it_than_what_it_starts_from():
  best = stretched('linear').rescaled(np.linspace(0.5, 1, 8), 1.0)
  budget = valley(best, passes=1200)
  starts = [budget.look({'name': name}) for name in ('linear', 'ntk', 'yarn')]
  assert budget.spent == 0
  found = METHODS['evolution'](budget, seed=0)
  assert found.loss < 0.5 * min(starts)
  divisors = np.array(found.recipe['divisors'])
  assert (np.diff(divisors) >= 0).all() and divisors[0] > 0.99 and divisors[-1] <= 1.25 * FACTOR
  amplitude = math.sqrt(1 + math.log(FACTOR) / math.log(TRAINED))
  assert found.recipe['attention_factor'] == pytest.approx(amplitude)
  losses = [loss for _, loss in found.history]
  assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize('name', ['linear', 'ntk', 'by_parts', 'yarn'])
def test_the_grid_finds_the_closed_form_that_is_best(name):
  factor = 8.0
  best = extend(ROPE, name=name, factor=factor, trained_length=TRAINED)
  found = METHODS['grid'](valley(best, passes=2 * 4 * 7), seed=0)  # 7 factors: 2, .., 8, .., 16
  assert found.recipe['name'] == name
  assert found.recipe['factor'] == pytest.approx(factor, rel=0.2)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('passes', [5, 6, 23, 100])
def test_no_way_spends_more_than_it_may_or_leaves_much(method, passes):
  budget = valley(stretched('ntk'), passes=passes)
  found = METHODS[method](budget, seed=0)
  assert budget.spent == found.passes <= passes
  assert passes - budget.spent < 8


@pytest.mark.parametrize('method', METHODS)
def test_the_same_seed_finds_the_same(method):
  found = [METHODS[method](valley(stretched('ntk'), passes=60), seed=3) for _ in range(2)]
  assert found[0] == found[1]


def test_what_cannot_be_fitted_is_refused_with_the_way_out():
  with pytest.raises(ValueError, match=r'no scheme of the model has any.*configs/eval/extend.py'):
    waves((Spectrum(), Spectrum(slope_H=np.ones(2))))
  slower = positions.make('rope', theta=1e5).spectrum(DIMS)
  with pytest.raises(ValueError, match='different waves'):
    waves((ROPE, slower))
  assert waves((ROPE, positions.make('fox').spectrum(DIMS), ROPE)) is ROPE
  sinusoids = positions.make('sinusoidal').spectrum(DIMS)  # `rescale` would change them, too
  assert waves((sinusoids,)) is sinusoids
  with pytest.raises(ValueError, match='different waves'):
    waves((sinusoids, ROPE))
  with pytest.raises(ValueError, match='--passes=5 or more'):
    valley(ROPE, passes=4)


@pytest.fixture(scope='module')
def run(six_steps, tmp_path_factory):
  return shutil.copytree(six_steps, tmp_path_factory.mktemp('fit') / 'run')


def test_a_fit_of_a_run_is_there_for_evaluations(run, capsys):
  flags = [f'--workdir={run}', '--factor=2', '--windows=2', '--passes=20']
  for method in METHODS:
    main([*flags, f'--method={method}'])
    assert f'Fitted: {run}/fits/{method}.json' in capsys.readouterr().out
  words = ['--eval=configs/eval/fitted.py:smoke', '--eval.multiples=(2,)']
  evaluation.main([f'--workdir={run}', *words])
  results = json.loads((run / 'evaluation' / 'fitted.json').read_text())
  names = [f'fitted by {name}' for name in ('grid', 'evolution', 'gradient')]
  assert results['recipes'][-3:] == names
  losses = [r['loss'] for r in results['rows'] if (r['length'], r['estimator']) == (64, 'sliding')]
  assert not results['refused'] and len(set(losses)) >= 6  # the grid's may be one of the others


@pytest.mark.slow
def test_the_loss_of_a_fit_is_the_mean_of_the_windows_and_its_gradient_is_that_of_the_spectrum(run):
  budget = make_budget(load(run), 2.0, windows=2, passes=100)
  recipe = {'name': 'rescale', 'divisors': (1.0, 1.5, 2.0, 3.0), 'temperature': 1.1}
  point = jnp.log(jnp.array(recipe['divisors'])), jnp.log(1.1)
  by_window = [budget.slope(*point, n) for n in range(2)]
  loss = budget.measure(recipe)
  assert loss == pytest.approx(np.mean([float(one) for one, _ in by_window]), abs=1e-5)
  step = 0.03
  for f in (1, 2):  # wave 0 turns by radians when it is stretched by so much, wave 3 hardly moves
    ends = []
    for sign in (1, -1):
      divisors = list(recipe['divisors'])
      divisors[f] *= math.exp(sign * step)
      ends.append(budget.measure(recipe | {'divisors': tuple(divisors)}))
    slope = np.mean([float(slopes[0][f]) for _, slopes in by_window])
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.1, abs=2e-5)
  assert len(spectra(budget.spectrum)) == 1


def test_what_would_be_read_is_checked_before_anything_is(run):
  loaded = load(run)
  assert make_budget(loaded, 2.0, windows=1, passes=9).windows == 1
  with pytest.raises(ValueError, match='--windows=0 leaves nothing to fit to'):
    make_budget(loaded, 2.0, windows=0, passes=9)
  loaded.config.data.name = 'task:copy'
  with pytest.raises(ValueError, match=r"trained on 'task:copy'.*trained on text"):
    make_budget(loaded, 2.0, windows=1, passes=9)


def test_fits_that_make_no_sense_are_refused(run, tmp_path):
  flags = [f'--workdir={run}', '--method=grid']
  with pytest.raises(ValueError, match=r'--factor=1.0 makes no text longer'):
    main([*flags, '--factor=1'])
  with pytest.raises(ValueError, match=r'No|none has the'):
    main([*flags, '--factor=1e6'])
  with pytest.raises(ValueError, match=r"no fit 'grid' of .*python -m posjax.fit --workdir="):
    fit.resolve(tmp_path, {'name': 'fitted', 'by': 'grid'})
  with pytest.raises(ValueError, match=r"takes `by`, .* not \['by', 'window'\]"):
    fit.resolve(tmp_path, {'name': 'fitted', 'by': 'grid', 'window': 2})
  train_here(tmp_path / 'random', 'train.steps=3', config='configs/randomized.py:smoke')
  with pytest.raises(ValueError, match=r"sampling 'randomized'"):
    main([f'--workdir={tmp_path / "random"}', '--method=grid', '--factor=2'])
