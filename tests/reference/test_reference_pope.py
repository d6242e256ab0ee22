"""PoPE against x-transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions

EPS = np.finfo(np.float32).eps


def ours(case, dims):
  H, K = case.phase_HK.shape
  scheme = positions.make('pope', theta=case.theta)
  params = {'phase_GK': jnp.asarray(case.phase_HK, jnp.float32)}
  spectrum = scheme.spectrum(dims(heads=H, kv_heads=H, head_width=K))
  hook = lambda f, x: f(params, spectrum, jnp.asarray(x, jnp.float32), jnp.asarray(case.pos_L))
  q_LHX, k_LHX = hook(scheme.query, case.q_LHK), hook(scheme.key, case.k_LHK)
  return np.einsum('ihx,jhx->hij', np.float64(q_LHX), np.float64(k_LHX))


def formula(case, wrong=None):
  K = case.phase_HK.shape[1]
  phase_H11K = np.clip(np.float64(case.phase_HK), -2 * np.pi, 0)[:, None, None]
  if wrong == 'phases not clamped':
    phase_H11K = np.float64(case.phase_HK)[:, None, None]
  if wrong == 'phases on queries':
    phase_H11K = -phase_H11K
  frequency_K = float(case.theta) ** (-np.arange(K) / K)
  if wrong == 'exponents of RoPE':
    frequency_K = float(case.theta) ** (-2 * np.arange(K) / K)
  length = np.tanh if wrong == 'another length' else lambda x: np.log1p(np.exp(x))
  q_H1K = length(np.float64(case.q_LHK)).swapaxes(0, 1)[:, :, None]
  k_H1K = length(np.float64(case.k_LHK)).swapaxes(0, 1)[:, None]
  r_IJ1 = (case.pos_L - case.pos_L[:, None])[..., None]
  return (q_H1K * k_H1K * np.cos(r_IJ1 * frequency_K + phase_H11K)).sum(-1)


def same(s_HIJ, case):
  largest = np.abs(case.s_HIJ).max()
  return np.abs(s_HIJ - case.s_HIJ).max() < 8 * EPS * case.pos_L.max() * largest


def test_scores_are_those_of_x_transformers(published, dims):
  for case in published('pope-x-transformers').cases:
    assert (case.phase_HK > 0).any() and (case.phase_HK < -2 * np.pi).any()
    assert same(ours(case, dims), case)
    assert same(formula(case), case)


@pytest.mark.parametrize(
  'wrong', ['phases not clamped', 'phases on queries', 'exponents of RoPE', 'another length']
)
def test_known_mistakes_do_not_give_these_scores(published, wrong):
  for case in published('pope-x-transformers').cases:
    assert not same(formula(case, wrong), case)


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_attention_is_that_of_pope_pytorch(published, dims, weights, softmax, form):
  """Logits are divided by the root of the head's own width, not of the widened one."""
  for case in published('pope-pytorch').cases:
    H, K = case.phase_HK.shape
    case.pos_L = np.arange(len(case.q_LHK))
    scheme = positions.make('pope', theta=case.theta)
    spectrum = scheme.spectrum(dims(heads=H, kv_heads=H, head_width=K))
    params = {'phase_GK': np.float32(case.phase_HK)}
    p_HIJ = weights(scheme, params, spectrum, case.q_LHK, case.k_LHK, form=form)
    atol = 64 * EPS  # logits up to 10, of six products that are each off by some roundings
    np.testing.assert_allclose(p_HIJ, case.p_HIJ, atol=atol)
    np.testing.assert_allclose(softmax(formula(case) / K**0.5), case.p_HIJ, atol=atol)
    assert np.abs(softmax(formula(case) / (2 * K) ** 0.5) - case.p_HIJ).max() > 1000 * atol


def test_x_transformers_divides_by_the_root_of_the_widened_width(published):
  """As PoPE-pytorch, by the same author, does not."""
  for case in published('pope-x-transformers').cases:
    K = case.q_LHK.shape[-1]
    np.testing.assert_allclose(case.logit_HIJ, case.s_HIJ / (2 * K) ** 0.5, atol=1e-5)
