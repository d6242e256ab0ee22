import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import extend
from posjax.positions import Dims

DIMS = Dims(width=8, heads=2, kv_heads=1, head_width=4, length=64)


def factor(pos, strength, period):
  """Llama 4: log(floor((pos + 1) / floor_scale) + 1) * attn_scale + 1, in float64."""
  return 1 + strength * math.log(math.floor((pos + 1) / period) + 1)


def apply(scheme, q_LHK, pos_L, spectrum=None):
  spectrum = spectrum or scheme.spectrum(DIMS)
  return np.asarray(scheme.query({}, spectrum, jnp.asarray(q_LHK), jnp.asarray(pos_L)))


@pytest.mark.parametrize(('strength', 'period'), [(0.1, 8), (0.5, 1), (0.1, 7), (1.0, 8192)])
def test_a_query_grows_with_the_logarithm_of_the_periods_before_it(rng, strength, period):
  scheme = positions.make('tempered', strength=strength, period=period)
  pos_L = np.r_[0:40, period - 2, period - 1, period, 3 * period - 2, 3 * period - 1, 100_000]
  q_LHK = np.float32(rng.normal(size=(len(pos_L), 2, 4)))
  expected = np.array([factor(p, strength, period) for p in pos_L])[:, None, None] * q_LHK
  np.testing.assert_allclose(apply(scheme, q_LHK, pos_L), expected, rtol=1e-6)


def test_the_step_comes_at_pos_plus_one_and_not_at_pos():
  scheme = positions.make('tempered', period=8)
  got_L = apply(scheme, np.ones((9, 1, 1), np.float32), np.arange(9))[:, 0, 0]
  np.testing.assert_allclose(got_L[:7], 1)
  np.testing.assert_allclose(got_L[7:], 1 + 0.1 * math.log(2), rtol=1e-6)


@pytest.mark.parametrize('period', [3, 7, 49, 1000, 8191, 8192])
def test_no_multiple_of_the_period_is_missed_by_rounding(period):
  scheme = positions.make('tempered', strength=1.0, period=period)
  pos_L = np.arange(period, 300 * period, period)[:120]
  pos_L = np.sort(np.r_[pos_L - 1, pos_L - 2])
  got_L = apply(scheme, np.ones((len(pos_L), 1, 1), np.float32), pos_L)[:, 0, 0]
  np.testing.assert_allclose(got_L, [factor(p, 1.0, period) for p in pos_L], rtol=1e-6)


def test_the_period_is_an_eighth_of_the_training_length_unless_it_is_set():
  assert positions.make('tempered').spectrum(DIMS).rate == 1 / 8
  assert positions.make('tempered', period=5).spectrum(DIMS).rate == 1 / 5
  short = dataclasses.replace(DIMS, length=4)
  assert positions.make('tempered').spectrum(short).rate == 1


def test_interpolation_lengthens_the_period(rng):
  scheme, q_LHK = positions.make('tempered', period=4), np.ones((64, 1, 1), np.float32)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=4.0, trained_length=64)
  longer = positions.make('tempered', period=16)
  np.testing.assert_allclose(
    apply(scheme, q_LHK, np.arange(64), spectrum), apply(longer, q_LHK, np.arange(64)), rtol=1e-6
  )


def test_bfloat16_positions_would_be_too_coarse(rng):
  scheme = positions.make('tempered', strength=0.5, period=1)
  q_LHK = jnp.ones((2, 1, 1), jnp.bfloat16)
  got_L = apply(scheme, q_LHK, [256, 400])[:, 0, 0]
  assert got_L.dtype == jnp.bfloat16
  expected = [float(jnp.bfloat16(factor(p, 0.5, 1))) for p in (256, 400)]
  np.testing.assert_array_equal(np.float32(got_L), expected)


@pytest.mark.parametrize('settings', [{'strength': 0.0}, {'strength': -0.1}, {'period': 0}])
def test_settings_that_change_nothing_are_refused(settings):
  with pytest.raises(ValueError, match='changes nothing, or the wrong way'):
    positions.make('tempered', **settings)
