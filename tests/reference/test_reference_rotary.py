"""Rotary schemes against Llama, GPT-J and GPT-NeoX of transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import extend

EPS = np.finfo(np.float32).eps


def rotated(scheme, spectrum, case):
  hook = jax.jit(scheme.query)
  got_LHK = hook({}, spectrum, jnp.asarray(case.x_LHK, jnp.float32), jnp.asarray(case.pos_L))
  return np.float64(got_LHK)


def same(got_LHK, case):
  """Both sides round a frequency (up to 3 eps), an angle, its cosine: the error grows with pos."""
  error_L = np.abs(got_LHK - case.y_LHK).max((1, 2))
  return (error_L < 6 * EPS * (1 + case.pos_L) * np.abs(case.x_LHK).max()).all()


def formula(case, exponent_F, pairs, theta=None, pos_L=None):
  """float64: pair f, of dimensions pairs[f], turns by pos * theta^-exponent."""
  pos_L = case.pos_L if pos_L is None else pos_L
  y_LHK = np.float64(case.x_LHK)
  for (a, b), exponent in zip(pairs, exponent_F, strict=True):
    angle_L1 = (pos_L * float(theta or case.theta) ** -exponent)[:, None]
    x_LH, y_LH = np.float64(case.x_LHK[..., a]), np.float64(case.x_LHK[..., b])
    y_LHK[..., a] = x_LH * np.cos(angle_L1) - y_LH * np.sin(angle_L1)
    y_LHK[..., b] = y_LH * np.cos(angle_L1) + x_LH * np.sin(angle_L1)
  return y_LHK


def half_split(R):
  return [(f, f + R // 2) for f in range(R // 2)]


def interleaved(R):
  return [(2 * f, 2 * f + 1) for f in range(R // 2)]


def exponents(R, width=None):
  return 2 * np.arange(R // 2) / (width or R)


def test_rope_rotates_as_llama_at_every_theta(published, dims):
  """One after the other, as a table that is cached without its theta would not."""
  for case in published('rope-llama').cases:
    scheme = positions.make('rope', theta=case.theta)
    assert same(rotated(scheme, scheme.spectrum(dims(head_width=8)), case), case)
    assert same(formula(case, exponents(8), half_split(8)), case)


@pytest.mark.parametrize(
  'wrong', ['interleaved', 'backwards', 'theta not read', 'positions not read', 'bfloat16']
)
def test_known_mistakes_do_not_rotate_as_llama(published, wrong):
  for case in published('rope-llama').cases:
    pairs = interleaved(8) if wrong == 'interleaved' else half_split(8)
    pos_L = -case.pos_L if wrong == 'backwards' else case.pos_L
    if wrong == 'positions not read':
      pos_L = np.arange(len(case.pos_L))
    if wrong == 'bfloat16':  # 257 becomes 256
      pos_L = np.float64(jnp.asarray(case.pos_L, jnp.bfloat16))
    theta = 10_000.0 if wrong == 'theta not read' else None
    if theta != case.theta:
      assert not same(formula(case, exponents(8), pairs, theta, pos_L), case)


def test_rope_rotates_as_gptj_once_weights_are_permuted(published, dims):
  for case in published('rope-gptj').cases:
    R, K = case.rotary, case.x_LHK.shape[-1]
    scheme = positions.make('partial', share=R / K, theta=case.theta)
    order = [*range(0, R, 2), *range(1, R, 2), *range(R, K)]
    permuted = type(case)(**vars(case) | {'x_LHK': case.x_LHK[..., order]})
    y_LHK = rotated(scheme, scheme.spectrum(dims(head_width=K)), permuted)
    assert same(y_LHK[..., np.argsort(order)], case)
    assert not same(rotated(scheme, scheme.spectrum(dims(head_width=K)), case), case)
    assert same(formula(case, exponents(R), interleaved(R)), case)


def test_partial_rope_rotates_as_gpt_neox(published, dims):
  for case in published('partial-gpt-neox').cases:
    K = case.x_LHK.shape[-1]
    R = int(case.share * K)
    scheme = positions.make('partial', share=case.share, theta=case.theta)
    assert same(rotated(scheme, scheme.spectrum(dims(head_width=K)), case), case)
    assert same(formula(case, exponents(R), half_split(R)), case)
    assert not same(formula(case, exponents(R, K), half_split(R)), case)  # exponents of p-RoPE
    apart = [(f, f + K // 2) for f in range(R // 2)]  # its pairs
    assert not same(formula(case, exponents(R), apart), case)


def test_p_rope_rotates_as_proportional_rope_of_transformers(published, dims):
  for case in published('prope-transformers').cases:
    K = case.x_LHK.shape[-1]
    F = int(case.share * K // 2)
    scheme = positions.make('prope', share=case.share, theta=case.theta)
    spectrum = extend(
      scheme.spectrum(dims(head_width=K)), name='linear', factor=case.factor, trained_length=64
    )
    np.testing.assert_allclose(spectrum.frequency_F, case.frequency_K[:F], rtol=4 * EPS)
    assert (case.frequency_K[F:] == 0).all()
    assert same(rotated(scheme, spectrum, case), case)
    prefix = half_split(2 * F)  # a rotated prefix, as partial RoPE has
    apart = half_split(K)[:F]
    stretched = type(case)(**vars(case) | {'pos_L': case.pos_L / case.factor})
    assert same(formula(stretched, exponents(2 * F, K), apart), case)
    assert not same(formula(stretched, exponents(2 * F, K), prefix), case)
    assert not same(formula(stretched, exponents(2 * F), apart), case)  # exponents of partial RoPE
