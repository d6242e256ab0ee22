import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition, positions, sampling
from posjax.positions import Dims

DIMS = Dims(width=6, heads=2, kv_heads=1, head_width=4, length=16)


def places(text, starts=()):
  """McLeish et al. 2024, sec. 3, one character after the other."""
  out, count = [], 0
  for n, c in enumerate(text):
    count = 0 if n in starts else count
    count = count + 1 if c.isdigit() else 0
    out.append(count)
  return out


def tokens(text):
  return jnp.asarray(list(text.encode()))


def counting(L):
  return jnp.arange(L)


@pytest.mark.parametrize('text', ['a12 345+6=', '1234567890', 'no digit', '9', '0a0a', '/0:9'])
def test_digits_count_from_one_within_their_number(text):
  got_L = positions.make('abacus').place(tokens(text), counting(len(text)))
  np.testing.assert_array_equal(got_L, places(text))


def test_the_digits_of_a_sum_line_up_when_the_least_significant_is_first():
  """89 + 7 = 96 is written 98+7=69."""
  got_L = positions.make('abacus').place(tokens('98+7=69'), counting(7))
  np.testing.assert_array_equal(got_L, [1, 2, 0, 1, 0, 1, 2])


def test_places_are_those_of_the_authors_code():
  """mcleish7/arithmetic, `abacus.py`, run on this mask of digits with k = 0."""
  mask = [1, 1, 0, 1, 1, 1, 0, 0, 1]
  got_L = positions.make('abacus').place(jnp.where(jnp.array(mask), 49, 65), counting(9))
  np.testing.assert_array_equal(got_L, [1, 2, 0, 1, 2, 3, 0, 0, 1])


def test_a_document_does_not_go_on_with_the_number_of_the_one_before():
  pos_L = jnp.array([0, 1, 2, 0, 1, 2, 0])
  got_L = positions.make('abacus').place(tokens('a123456'), pos_L)
  np.testing.assert_array_equal(got_L, places('a123456', starts=(3, 6)))
  assert places('a123456') != list(got_L)


def test_positions_that_leap_within_a_document_do_not_cut_a_number():
  got_L = positions.make('abacus').place(tokens('a123'), jnp.array([0, 5, 9, 40]))
  np.testing.assert_array_equal(got_L, [0, 1, 2, 3])


@pytest.mark.parametrize('offset', [0, 3])
def test_digits_gain_the_row_of_their_place_and_the_offset_and_others_row_zero(rng, offset):
  scheme = positions.make('abacus', longest=5, shift=3)
  table_PD, x_LD = np.float32(rng.normal(size=(9, 6))), np.float32(rng.normal(size=(7, 6)))
  spectrum = dataclasses.replace(scheme.spectrum(DIMS), offset=jnp.float32(offset))
  text = 'a12=345'
  got_LD = scheme.embed(
    {'table_PD': jnp.asarray(table_PD)}, spectrum, jnp.asarray(x_LD), tokens(text), counting(7)
  )
  rows = [place + offset if place else 0 for place in places(text)]
  np.testing.assert_allclose(got_LD, x_LD + table_PD[rows], rtol=1e-6)
  if offset:  # an offset for every token, digit or not, is a known-wrong variant
    assert np.abs(got_LD - (x_LD + table_PD[np.add(places(text), offset)])).max() > 0.1


def test_a_training_step_draws_one_offset_from_all_and_evaluation_adds_none():
  scheme = positions.make('abacus', shift=3)
  spectrum = scheme.spectrum(DIMS)
  assert spectrum.offset == 0
  keys = jax.random.split(jax.random.key(0), 64)
  drawn = {float(scheme.sample(spectrum, key).offset) for key in keys}
  assert drawn == {0.0, 1.0, 2.0, 3.0}


def test_a_number_longer_than_the_table_is_not_a_number():
  scheme = positions.make('abacus', longest=2, shift=1)
  params = scheme.init(jax.random.key(0), DIMS)
  assert params['table_PD'].shape == (4, 6)
  out_LD = scheme.embed(
    params, scheme.spectrum(DIMS), jnp.zeros((5, 6)), tokens('12345'), counting(5)
  )
  np.testing.assert_array_equal(np.isnan(out_LD).any(1), [False, False, False, True, True])


def test_the_digit_tokens_can_lie_anywhere():
  got_L = positions.make('abacus', first_digit=3).place(jnp.array([2, 3, 12, 13, 4]), counting(5))
  np.testing.assert_array_equal(got_L, [0, 1, 2, 0, 1])


def test_it_goes_with_a_scheme_for_all_tokens_and_not_with_another_at_the_input():
  composition.make({'name': 'together', 'parts': ({'name': 'abacus'}, {'name': 'rope'})})
  with pytest.raises(ValueError, match='two add a vector to the input'):
    composition.make({'name': 'together', 'parts': ({'name': 'abacus'}, {'name': 'learned'})})


def test_settings_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match=r'longest 0 .*longest >= 1'):
    positions.make('abacus', longest=0)


def test_sampled_positions_leave_its_places_alone():
  pos_L = sampling.make('randomized', range=100)(jax.random.key(0), jnp.arange(4)[None])[0]
  np.testing.assert_array_equal(positions.make('abacus').place(tokens('a123'), pos_L), [0, 1, 2, 3])
