"""Shaw's relative vectors against tensor2tensor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Logits, Mask, Rows, Tile, dense, tiled

EPS = np.finfo(np.float32).eps


def made(case):
  """The scheme and its parameters: row e of ours is that of -e, `farthest` - e from their first."""
  tables = {'key_EK': case.key_XK, 'value_EV': case.value_XK}
  rows = lambda table_XK: jnp.asarray(table_XK[case.farthest :: -1], jnp.float32)
  return positions.make('shaw', farthest=case.farthest), jax.tree.map(rows, tables)


def rows_of(scheme, params, case):
  """Rows of queries, the last of the keys, and of keys."""
  key = Rows(index_L=jnp.arange(len(case.k_LHK)), pos_L=jnp.arange(len(case.k_LHK)))
  query = jax.tree.map(lambda x: x[-len(case.q_LHK) :], key)
  q_LHK = jnp.asarray(case.q_LHK, jnp.float32)
  features, _ = scheme.features(params, None, None, q_LHK, None, query)
  return dataclasses.replace(query, features_L=features), key


@pytest.mark.parametrize('form', [dense, pytest.param(tiled, marks=pytest.mark.slow)])
def test_attention_is_that_of_tensor2tensor(published, form):
  """Queries may be fewer than keys; distances may be shorter than the clipping distance."""
  for case in published('shaw-tensor2tensor').cases:
    scheme, params = made(case)
    logits = Logits(
      scale=case.q_LHK.shape[-1] ** -0.5, mask=Mask(), score=scheme.score, read=scheme.read
    )
    qkv = (jnp.asarray(x, jnp.float32) for x in (case.q_LHK, case.k_LHK, case.v_LHK))
    out_LHK = form(*qkv, *rows_of(scheme, params, case), logits, operands=(params, None))
    np.testing.assert_allclose(out_LHK, case.out_LHK, atol=100 * EPS)


def test_logits_are_those_of_tensor2tensor_and_rows_of_keys_ahead_give_others(published):
  for case in published('shaw-tensor2tensor').cases:
    scheme, params = made(case)
    s_HIJ = np.einsum('ihk,jhk->hij', case.q_LHK, case.k_LHK) / case.q_LHK.shape[-1] ** 0.5

    def logits(key_EK, scheme=scheme, case=case, s_HIJ=s_HIJ):
      tile = Tile(*rows_of(scheme, {'key_EK': key_EK}, case), Mask())
      got_HIJ = jax.jit(scheme.score)({}, None, jnp.asarray(s_HIJ, jnp.float32), tile)
      return np.where(tile.visible_IJ, got_HIJ, 0)

    np.testing.assert_allclose(logits(params['key_EK']), case.logit_HIJ, atol=200 * EPS)
    ahead_EK = jnp.asarray(case.key_XK[case.farthest :], jnp.float32)
    assert np.abs(logits(ahead_EK) - case.logit_HIJ).max() > 0.1
