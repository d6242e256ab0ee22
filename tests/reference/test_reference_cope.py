"""CoPE against x-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Mask, Rows, Tile

EPS = np.finfo(np.float32).eps


def made(case):
  """The scheme with as many rows, and its parameters."""
  params = {'table_EK': jnp.asarray(case.table_XK, jnp.float32)}
  return positions.make('cope', positions=len(case.table_XK)), params


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_attention_is_that_of_x_transformers(published, dims, attention, form):
  """One table is longer than any count, the other shorter."""
  for case in published('cope-x-transformers').cases:
    scheme, params = made(case)
    out_LHK = attention(
      scheme, params, scheme.spectrum(dims()), case.q_LHK, case.k_LHK, case.v_LHK, form=form
    )
    np.testing.assert_allclose(out_LHK, case.out_LHK, atol=100 * EPS)


def test_what_logits_gain_is_that_of_x_transformers_and_not_divided(published, dims):
  for case in published('cope-x-transformers').cases:
    scheme, params = made(case)
    L, _, K = case.q_LHK.shape
    q_LHK, spectrum = jnp.asarray(case.q_LHK, jnp.float32), scheme.spectrum(dims())
    features, _ = scheme.features(params, spectrum, None, q_LHK, None, None)
    query, key = (
      Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L), features_L=x) for x in (features, None)
    )
    s_HIJ = jnp.einsum('ihk,jhk->hij', q_LHK, jnp.float32(case.k_LHK)) / K**0.5
    start = scheme.start(params, spectrum, query)
    walk = jax.jit(scheme.walk)
    got_HIJ, _ = walk(params, spectrum, s_HIJ, Tile(query, key, Mask()), start)
    added_HIJ = np.tril(np.float64(got_HIJ) - np.float64(s_HIJ))
    np.testing.assert_allclose(added_HIJ, case.added_HIJ, atol=200 * EPS)
    assert np.abs(added_HIJ / K**0.5 - case.added_HIJ).max() > 0.1
