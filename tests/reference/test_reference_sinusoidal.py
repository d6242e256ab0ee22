"""Sinusoids against DistilBERT, Marian and XGLM of transformers, and tensor2tensor."""

import jax.numpy as jnp
import numpy as np

from posjax import positions

EPS = np.finfo(np.float32).eps


def ours(dims, D, pos_L):
  scheme = positions.make('sinusoidal')
  spectrum = scheme.spectrum(dims(width=D))
  x_LD = jnp.zeros((len(pos_L), D))
  return np.float64(scheme.embed({}, spectrum, x_LD, None, jnp.asarray(pos_L)))


def error(got_LD, expected_LD, pos_L):
  """The largest, in units of what rounding of float32 angles explains."""
  return (np.abs(got_LD - expected_LD).max(1) / (4 * EPS * (1 + pos_L))).max()


def test_sines_and_cosines_alternate_as_in_distilbert(published, dims):
  for case in published('sinusoidal-transformers').cases:
    D = case.distilbert_LD.shape[1]
    assert error(ours(dims, D, case.pos_L), case.distilbert_LD, case.pos_L) < 1


def test_marian_has_the_same_waves_in_another_order(published, dims):
  for case in published('sinusoidal-transformers').cases:
    D = case.marian_LD.shape[1]
    waves_LD = ours(dims, D, case.pos_L)
    ordered_LD = np.concatenate([waves_LD[:, 0::2], waves_LD[:, 1::2]], axis=1)
    assert error(ordered_LD, case.marian_LD, case.pos_L) < 1
    assert error(waves_LD, case.marian_LD, case.pos_L) > 1000


def test_tensor2tensor_and_xglm_have_other_waves(published, dims):
  """Exponents f / (D/2 - 1), so the slowest is theta^-1; XGLM counts positions from 2."""
  first, second = published('sinusoidal-tensor2tensor'), published('sinusoidal-transformers')
  for case, other in zip(first.cases, second.cases, strict=True):
    D, pos_L = case.wave_LD.shape[1], case.pos_L
    exponent_F = np.arange(D // 2) / (D // 2 - 1)
    for expected_LD, offset in ((case.wave_LD, 0), (other.xglm_LD, 2)):
      angle_LF = (pos_L + offset)[:, None] * 10_000.0**-exponent_F
      waves_LD = np.concatenate([np.sin(angle_LF), np.cos(angle_LF)], axis=1)
      assert error(waves_LD, expected_LD, pos_L + offset) < 1
      waves_LD = ours(dims, D, pos_L + offset)
      ordered_LD = np.concatenate([waves_LD[:, 0::2], waves_LD[:, 1::2]], axis=1)
      assert error(ordered_LD, expected_LD, pos_L + offset) > 1000
