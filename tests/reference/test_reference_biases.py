"""KERPLE and Sandwich against NeMo and attn-gym."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.extension import Spectrum

EPS = np.finfo(np.float32).eps


def biases(scheme, params, spectrum, heads, distance_X):
  """bias_HX of one query, far enough on, and the keys at these distances."""
  last = int(max(distance_X))
  query = Rows(index_L=jnp.array([last]), pos_L=jnp.array([last]))
  pos_X = last - jnp.asarray(distance_X)
  tile = Tile(query, Rows(index_L=pos_X, pos_L=pos_X))
  score = jax.jit(scheme.score)
  return np.float64(score(params, spectrum, jnp.zeros((heads, 1, len(pos_X))), tile)[:, 0])


def waves(width, distance_X, heads, *, first=0, ratios_from=1):
  """Sandwich, in float64."""
  f_F = np.arange(first, first + width // 2)
  wave_X = np.cos(np.multiply.outer(distance_X, 1e4 ** (-2 * f_F / width))).sum(-1)
  return wave_X / (8 * (np.arange(heads) + ratios_from) / heads)[:, None]


def sandwich_tolerance(width, distance_X):
  """Angles of up to the distance, rounded on both sides, in every one of width / 2 waves."""
  return 4 * EPS * (1 + np.asarray(distance_X)) * width / 2


def test_sandwich_is_that_of_attn_gym(published, dims):
  for case in published('sandwich-attn-gym').cases:
    H = len(case.bias_HX)
    scheme = positions.make('sandwich', width=case.width)
    got_HX = biases(scheme, {}, scheme.spectrum(dims(heads=H)), H, case.distance_X)
    error_HX = np.abs(got_HX - case.bias_HX)
    bound_X = sandwich_tolerance(case.width, case.distance_X)
    assert (error_HX < bound_X).all()
    assert (np.abs(waves(case.width, case.distance_X, H) - case.bias_HX) < bound_X).all()
    for wrong in ({'first': 1}, {'ratios_from': 2}):
      wrong_HX = waves(case.width, case.distance_X, H, **wrong)
      assert (np.abs(wrong_HX - case.bias_HX) > bound_X).any()


def test_sandwich_of_nemo_numbers_its_waves_from_1(published):
  """Other frequencies, as a spectrum can have them, and another bias of the own key, which softmax
  ignores."""
  for case in published('sandwich-nemo').cases:
    H, X = case.bias_HX.shape
    scheme = positions.make('sandwich', width=case.width)
    frequency_F = 1e4 ** (-2 * np.arange(1, case.width // 2 + 1) / case.width)
    got_HX = biases(scheme, {}, Spectrum(frequency_F=frequency_F), H, np.arange(X))
    got_HX -= got_HX[:, :1]
    assert (np.abs(got_HX - case.bias_HX) < sandwich_tolerance(case.width, np.arange(X))).all()
    standard_HX = waves(case.width, np.arange(X), H)
    assert np.abs(standard_HX - standard_HX[:, :1] - case.bias_HX).max() > 0.1


def test_kerple_is_that_of_nemo(published, dims):
  for case in published('kerple-nemo').cases:
    H, X = case.bias_HX.shape
    scheme = positions.make('kerple', kernel='log')
    inverse_softplus = lambda x: jnp.asarray(np.log(np.expm1(x)), jnp.float32)
    params = {'raw_p_H': inverse_softplus(case.p_H), 'raw_a_H': inverse_softplus(case.a_H)}
    got_HX = biases(scheme, params, scheme.spectrum(dims(heads=H)), H, np.arange(X))
    np.testing.assert_allclose(got_HX, case.bias_HX, rtol=16 * EPS)


@pytest.mark.parametrize('wrong', ['a reward', 'a and p swapped', 'log of r alone', 'power'])
def test_known_mistakes_do_not_give_kerple_of_nemo(published, wrong):
  for case in published('kerple-nemo').cases:
    p_H1, a_H1 = case.p_H[:, None], case.a_H[:, None]
    r_X = np.arange(case.bias_HX.shape[1])
    np.testing.assert_allclose(-p_H1 * np.log(1 + a_H1 * r_X), case.bias_HX, rtol=1e-12)
    wrong_HX = {
      'a reward': p_H1 * np.log(1 + a_H1 * r_X),
      'a and p swapped': -a_H1 * np.log(1 + p_H1 * r_X),
      'log of r alone': -p_H1 * a_H1 * np.log(1 + r_X),
      'power': -a_H1 * r_X**p_H1,
    }[wrong]
    assert np.abs(wrong_HX - case.bias_HX).max() > 0.1
