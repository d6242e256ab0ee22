"""ALiBi against BLOOM, MPT and Falcon of transformers."""

import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows

EPS = np.finfo(np.float32).eps
ATOL = 32 * EPS  # of weights: logits up to 8, each off by some roundings, on both sides


def slopes(heads, dims):
  return positions.make('alibi').spectrum(dims(heads=heads)).slope_H


def content(case):
  return np.einsum('ihk,jhk->hij', case.q_LHK, case.k_LHK) / case.q_LHK.shape[-1] ** 0.5


def distance(case):
  pos_L = np.cumsum(case.real_L) - 1
  return pos_L[:, None] - pos_L[None, :]


def same(got_HIJ, case):
  """Whether weights agree where neither query nor key is padding."""
  real_L = case.real_L.astype(bool)
  got_HIJ, expected_HIJ = (p_HIJ[:, real_L][:, :, real_L] for p_HIJ in (got_HIJ, case.p_HIJ))
  return np.abs(got_HIJ - expected_HIJ).max() < ATOL


def of(published, *models):
  return [case for case in published('alibi-attention').cases if case.model in models]


def test_slopes_are_those_of_bloom_and_mpt(published, dims):
  for case in published('alibi-slopes').cases:
    # BLOOM raises a rounded base to powers up to the number of heads.
    np.testing.assert_allclose(slopes(case.heads, dims), case.bloom_H, rtol=2 * case.heads * EPS)
    np.testing.assert_allclose(slopes(case.heads, dims), case.mpt_H, rtol=EPS)


@pytest.mark.parametrize('wrong', ['one geometric sequence', 'from 0'])
def test_slopes_of_known_mistakes_are_not(published, wrong):
  for case in published('alibi-slopes').cases:
    H = case.heads
    t_H = np.arange(H) + (wrong == 'one geometric sequence')
    power_of_two = H & (H - 1) == 0
    agrees = np.allclose(2.0 ** (-8 * t_H / H), case.mpt_H, rtol=1e-3)
    assert agrees == (power_of_two and wrong == 'one geometric sequence')


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_attention_is_that_of_bloom_and_mpt_padded_on_the_left_or_not(
  published, dims, weights, form
):
  scheme = positions.make('alibi')
  for case in of(published, 'bloom', 'mpt'):
    spectrum = scheme.spectrum(dims(heads=case.q_LHK.shape[1]))
    p_HIJ = weights(
      scheme, {}, spectrum, case.q_LHK, case.k_LHK,
      pos_L=np.maximum(np.cumsum(case.real_L) - 1, 0), segment_L=case.real_L, form=form,
    )  # fmt: skip
    assert same(p_HIJ, case)


@pytest.mark.slow
def test_columns_give_the_attention_of_bloom(published, dims, softmax):
  scheme = positions.make('alibi')
  for case in of(published, 'bloom', 'mpt'):
    L, H, K = case.q_LHK.shape
    if not case.real_L.all():
      continue
    rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L))
    q_LHC, k_L1C = scheme.columns(
      {}, scheme.spectrum(dims(heads=H)), rows, rows,
      heads=H, kv_heads=H, scale=K**-0.5, dtype=jnp.bfloat16,
    )  # fmt: skip
    added_HIJ = np.einsum('ihc,jc->hij', np.float64(q_LHC), np.float64(k_L1C[:, 0])) / K**0.5
    assert same(softmax(content(case) + added_HIJ), case)


@pytest.mark.parametrize('wrong', ['divided by sqrt(K)', 'a reward', 'from 0'])
def test_known_mistakes_do_not_give_this_attention(published, dims, softmax, wrong):
  for case in of(published, 'bloom', 'mpt'):
    H = case.q_LHK.shape[1]
    slope_H = 2.0 ** (-8 * np.arange(H) / H) if wrong == 'from 0' else slopes(H, dims)
    factor = {'divided by sqrt(K)': 0.5, 'a reward': -1}.get(wrong, 1)
    right_HIJ = content(case) - slopes(H, dims)[:, None, None] * distance(case)
    wrong_HIJ = content(case) - factor * slope_H[:, None, None] * distance(case)
    if case.real_L.all():
      assert same(softmax(right_HIJ), case)
      assert not same(softmax(wrong_HIJ), case)


def test_falcon_divides_the_bias_as_well_and_rounds_it(published, dims, softmax):
  """Not ALiBi as published; an importer of Falcon has to know."""
  (case,) = of(published, 'falcon')
  slope_H1 = jnp.asarray(slopes(12, dims), jnp.bfloat16)[:, None]
  bias_H1J = np.float64(slope_H1 * jnp.arange(4, dtype=jnp.bfloat16))[:, None]
  np.testing.assert_array_equal(bias_H1J[:, 0], case.bias_HJ)
  assert same(softmax(content(case) + bias_H1J / 2), case)
  assert not same(softmax(content(case) + bias_H1J), case)
  exact_HIJ = content(case) - slopes(12, dims)[:, None, None] * distance(case) / 2
  assert not same(softmax(exact_HIJ), case)
