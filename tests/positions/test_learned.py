import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attention import Layer
from posjax.decoder import Decoder, check_length
from posjax.extension import extend

DIMS = positions.Dims(width=6, heads=2, kv_heads=1, head_width=4, length=8)


def rows(table_LD, pos_L, rate=1.0):
  """table[rate * pos], linear between rows, the last row up to one row further: loops, float64."""
  out_LD = []
  for pos in pos_L:
    row = pos * rate
    low = int(np.floor(row))
    if low >= len(table_LD):
      out_LD.append(np.full(table_LD.shape[1], np.nan))
      continue
    high = min(low + 1, len(table_LD) - 1)
    out_LD.append(table_LD[low] + (row - low) * (table_LD[high] - table_LD[low]))
  return np.array(out_LD)


def added(scheme, params, spectrum, pos_L):
  x_LD = np.zeros((len(pos_L), DIMS.width), np.float32)
  embed = jax.jit(lambda params, x_LD, pos_L: scheme.embed(params, spectrum, x_LD, None, pos_L))
  return np.asarray(embed(params, x_LD, np.asarray(pos_L)))


@pytest.mark.parametrize('factor', [1.0, 2.0, 3.0, 2.5])
def test_a_row_per_position_and_lines_between_rows_once_stretched(factor):
  scheme = positions.make('learned')
  params = scheme.init(jax.random.key(0), DIMS)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=8)
  pos_L = np.arange(int(8 * factor))
  exact_LD = rows(np.float64(params['table_LD']), pos_L, 1 / factor)
  assert np.isfinite(exact_LD).all()
  atol = 8 * len(pos_L) * np.finfo(np.float32).eps * np.abs(params['table_LD']).max()
  np.testing.assert_allclose(added(scheme, params, spectrum, pos_L), exact_LD, atol=atol)


@pytest.mark.parametrize('factor', [1.0, 2.0])
def test_a_position_past_the_table_is_not_a_number_instead_of_the_last_row(factor):
  scheme = positions.make('learned', length=4)
  params = scheme.init(jax.random.key(0), DIMS)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=4)
  end = int(4 * factor)
  got_LD = added(scheme, params, spectrum, [end - 1, end, end + 100])
  assert np.isfinite(got_LD[0]).all()
  assert np.isnan(got_LD[1:]).all()


def test_the_table_has_the_training_length_or_the_one_given():
  def table(**settings):
    return positions.make('learned', **settings).init(jax.random.key(0), DIMS)
  assert table()['table_LD'].shape == (8, 6)
  assert table(length=100)['table_LD'].shape == (100, 6)
  assert table()['table_LD'].dtype == jnp.float32
  wide = table(length=4000, deviation=0.5)['table_LD']
  assert abs(float(wide.std()) - 0.5) < 5 * 0.5 / (2 * wide.size) ** 0.5


def test_gradients_go_to_the_rows_that_were_read():
  scheme = positions.make('learned')
  params = scheme.init(jax.random.key(0), DIMS)
  grad = jax.grad(
    lambda p: scheme.embed(
      p, scheme.spectrum(DIMS), jnp.zeros((3, 6)), None, jnp.array([1, 1, 7])
    ).sum()
  )(params)
  np.testing.assert_array_equal(grad['table_LD'][:, 0], [0, 2, 0, 0, 0, 0, 0, 1])


@pytest.mark.parametrize('factor', [1, 2, 3, 93, 1.5, 1.1, 23.2])
def test_lengths_past_the_table_are_refused_before_anything_runs(factor):
  model = Decoder(
    pattern=(Layer(scheme=positions.make('learned', length=10)),), length=8, vocabulary=5, width=6,
    layers=1, heads=1, kv_heads=1, head_width=4, mlp_width=4,
  )
  spectrum = extend(model.spectrum(), name='linear', factor=factor, trained_length=10)
  end = round(10 * factor)
  check_length(model, spectrum, end)
  with pytest.raises(ValueError, match=rf'{end} positions, but the sequence has {end + 1} tokens'):
    check_length(model, spectrum, end + 1)
  with pytest.raises(ValueError, match=r'extension linear.* factor 100'):
    check_length(model, spectrum, 1000)


def test_a_position_before_the_table_is_not_a_number():
  scheme = positions.make('learned', length=4)
  params = {'table_LD': jnp.ones((4, 2))}
  x_LD = scheme.embed(params, scheme.spectrum(None), jnp.zeros((2, 2)), None, jnp.array([-1, 0]))
  assert np.isnan(x_LD[0]).all() and np.isfinite(x_LD[1]).all()
