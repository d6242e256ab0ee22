"""FoX against flash-linear-attention and x-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile

EPS = np.finfo(np.float32).eps


def parameters(case):
  return {name: jnp.asarray(vars(case)[name], jnp.float32) for name in ('gate_DH', 'bias_H')}


def log_gates(case):
  return -np.log1p(np.exp(-(np.float64(case.x_LD) @ case.gate_DH + case.bias_H)))


def bias_of(log_LH, wrong=None):
  kept_HL = np.cumsum(log_LH, axis=0).T
  if wrong == "the key's gate counts":
    return kept_HL[:, :, None] - (kept_HL - log_LH.T)[:, None, :]
  if wrong == "the query's gate does not":
    return (kept_HL - log_LH.T)[:, :, None] - kept_HL[:, None, :]
  if wrong == 'one gate a pair':
    return np.repeat(log_LH.T[:, :, None], len(log_LH), axis=2)
  return kept_HL[:, :, None] - kept_HL[:, None, :]


def output(case, softmax, bias_HIJ):
  group = case.q_LHK.shape[1] // case.k_LGK.shape[1]
  k_LHK, v_LHK = (np.repeat(x, group, axis=1) for x in (case.k_LGK, case.v_LGK))
  s_HIJ = np.einsum('ihk,jhk->hij', case.q_LHK, k_LHK) / k_LHK.shape[-1] ** 0.5 + bias_HIJ
  return np.einsum('hij,jhk->ihk', softmax(s_HIJ), v_LHK)


def whole(published):
  return [case for case in published('fox-fla').cases if case.window is None]


def same(out_LHK, case):
  """Logits of up to 40, off by some roundings on both sides; values up to 2."""
  return np.abs(out_LHK - case.out_LHK).max() < 200 * EPS


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_attention_is_that_of_flash_linear_attention(published, dims, attention, form):
  scheme = positions.make('fox')
  for case in whole(published):
    out_LHK = attention(
      scheme, parameters(case), scheme.spectrum(dims()), case.q_LHK, case.k_LGK, case.v_LGK,
      x_LD=case.x_LD, form=form,
    )  # fmt: skip
    assert same(out_LHK, case)


@pytest.mark.parametrize('wrong', ["the key's gate counts", 'one gate a pair', 'divided'])
def test_known_mistakes_do_not_give_this_attention(published, softmax, wrong):
  """`divided` by sqrt(K), as the forget gate that PaTH can have is."""
  for case in whole(published):
    right_HIJ = bias_of(log_gates(case))
    wrong_HIJ = right_HIJ / 2 if wrong == 'divided' else bias_of(log_gates(case), wrong)
    assert same(output(case, softmax, right_HIJ), case)
    assert not same(output(case, softmax, wrong_HIJ), case)


def test_biases_are_those_of_x_transformers(published, dims):
  (case,) = published('fox-x-transformers').cases
  scheme, L = positions.make('fox'), len(case.x_LD)
  params, x_LD = parameters(case), jnp.asarray(case.x_LD, jnp.float32)
  features_LH, _ = scheme.features(params, scheme.spectrum(dims()), x_LD, None, None, None)
  rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L), features_L=features_LH)
  zeros_HIJ = jnp.zeros((case.gate_DH.shape[1], L, L))
  bias_HIJ = jax.jit(scheme.score)(params, scheme.spectrum(dims()), zeros_HIJ, Tile(rows, rows))
  atol = 8 * EPS * np.abs(case.bias_HIJ).max()
  np.testing.assert_allclose(np.tril(bias_HIJ), case.bias_HIJ, atol=atol)
  for wrong in ("the key's gate counts", "the query's gate does not", 'one gate a pair'):
    assert np.abs(np.tril(bias_of(log_gates(case), wrong)) - case.bias_HIJ).max() > 0.1
