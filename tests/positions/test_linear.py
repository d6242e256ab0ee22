import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import extend

DIMS = positions.Dims(width=6, heads=2, kv_heads=1, head_width=4, length=8)
EPS = np.finfo(np.float32).eps


def line(pos_L, direction_D, unit):
  out_LD = np.zeros((len(pos_L), len(direction_D)))
  for l, d in np.ndindex(out_LD.shape):
    out_LD[l, d] = pos_L[l] / unit * direction_D[d]
  return out_LD


def added(pos_L, factor=1.0, dtype=jnp.float32, **settings):
  scheme = positions.make('linear', **settings)
  params = scheme.init(jax.random.key(0), DIMS)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=8)
  x_LD = jnp.zeros((len(pos_L), DIMS.width), dtype)
  x_LD = scheme.embed(params, spectrum, x_LD, None, jnp.asarray(pos_L))
  return np.asarray(x_LD), np.float64(params['direction_D'])


@pytest.mark.parametrize('factor', [1.0, 4.0])
@pytest.mark.parametrize(('settings', 'unit'), [({}, 8), ({'unit': 1}, 1), ({'unit': 3}, 3)])
def test_a_position_in_units_moves_the_token_along_the_vector(settings, unit, factor):
  pos_L = [0, 1, 7, 8, 300, 70_000]
  got_LD, direction_D = added(pos_L, factor, **settings)
  np.testing.assert_allclose(got_LD, line(pos_L, direction_D, unit * factor), rtol=4 * EPS)


def test_it_is_added_to_the_tokens(rng):
  scheme, x_LD = positions.make('linear'), np.float32(rng.normal(size=(3, 6)))
  params = {'direction_D': jnp.arange(6.0)}
  y_LD = scheme.embed(params, scheme.spectrum(DIMS), jnp.asarray(x_LD), None, jnp.array([2, 0, 4]))
  np.testing.assert_allclose(y_LD, x_LD + line([2, 0, 4], np.arange(6.0), 8), atol=8 * EPS)


def test_a_prefix_stays_where_it_is_when_the_text_goes_on():
  """Known-wrong: positions divided by the length of the sequence at hand."""
  short_LD, direction_D = added(range(8))
  long_LD, _ = added(range(16))
  np.testing.assert_array_equal(long_LD[:8], short_LD)
  assert np.abs(long_LD[:8] - line(range(8), direction_D, 16)).max() > 0.1 * direction_D.max()


def test_positions_are_not_rounded_with_the_activations():
  """bfloat16 holds no 257: the product is rounded once, and alone."""
  got_LD, direction_D = added([257], dtype=jnp.bfloat16, unit=1)
  once_LD = jnp.asarray(line([257], direction_D, 1), jnp.bfloat16)
  np.testing.assert_array_equal(got_LD, np.asarray(once_LD))
  assert got_LD.dtype == jnp.bfloat16


def test_the_vector_is_drawn_with_the_given_deviation():
  wide = positions.Dims(width=4000, heads=2, kv_heads=1, head_width=4, length=8)
  direction_D = positions.make('linear', deviation=0.5).init(jax.random.key(0), wide)['direction_D']
  assert abs(float(direction_D.std()) - 0.5) < 5 * 0.5 / 8000**0.5


@pytest.mark.parametrize('unit', [0, -4])
def test_a_unit_that_cannot_be_is_refused(unit):
  with pytest.raises(ValueError, match=f'units of {unit} tokens. Use unit > 0, or None'):
    positions.make('linear', unit=unit)
