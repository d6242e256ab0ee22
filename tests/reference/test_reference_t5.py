"""T5 against transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile


def bias(case, first, I, J):
  scheme = positions.make('t5', buckets=case.buckets, farthest=case.farthest)
  query = Rows(index_L=first + jnp.arange(I), pos_L=first + jnp.arange(I), contiguous=True)
  key = Rows(index_L=jnp.arange(J), pos_L=jnp.arange(J), contiguous=True)
  params = {'table_EH': jnp.asarray(case.table_EH, jnp.float32)}
  H = case.table_EH.shape[1]
  score = jax.jit(scheme.score)
  return score(params, scheme.spectrum(None), jnp.zeros((H, I, J)), Tile(query, key))


def test_buckets_are_those_of_transformers(published):
  for case in published('t5-buckets').cases:
    scheme = positions.make('t5', buckets=case.buckets, farthest=case.farthest)
    np.testing.assert_array_equal(scheme.bucket(jnp.asarray(case.distance_X)), case.bucket_X)


def test_buckets_of_an_encoder_would_not_be(published):
  """Half of the buckets kept for keys ahead, which a decoder has none of."""
  case = published('t5-buckets').cases[0]
  halved = positions.make('t5', buckets=case.buckets // 2, farthest=case.farthest)
  assert (halved.bucket(jnp.asarray(case.distance_X)) != case.bucket_X).sum() > 30


def test_biases_are_those_of_transformers_from_the_start_and_later(published):
  for case in published('t5-bias').cases:
    np.testing.assert_array_equal(bias(case, 0, 7, 7), case.bias_HIJ)
    np.testing.assert_array_equal(bias(case, case.past, 2, 32), case.late_HIJ)


@pytest.mark.parametrize('wrong', ['key minus query', 'counted from the first query'])
def test_known_mistakes_do_not_give_these_biases(published, wrong):
  case = published('t5-bias').cases[0]
  if wrong == 'key minus query':
    got_HIJ, expected_HIJ = np.swapaxes(bias(case, 0, 7, 7), 1, 2), case.bias_HIJ
  else:
    got_HIJ, expected_HIJ = bias(case, 0, 2, 32), case.late_HIJ
  assert np.abs(got_HIJ - expected_HIJ).max() > 1
