"""The two kinds of layers of Llama 4, of transformers."""

import numpy as np
import pytest

from posjax import positions
from posjax.attend import Mask
from posjax.attention import Layer

EPS = np.finfo(np.float32).eps


def layers(published, *, rotates):
  cases = published('irope-llama4').cases
  return [case for case in cases if bool(case.rotates_N[case.layer]) == rotates]


def half_split(x_LHK):
  """Their pairs are (2k, 2k + 1), ours (k, k + K / 2)."""
  return np.concatenate([x_LHK[..., 0::2], x_LHK[..., 1::2]], axis=-1)


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_a_layer_without_rotation_sees_everything_and_is_tempered(published, dims, weights, form):
  cases = layers(published, rotates=False)
  assert cases
  for case in cases:
    scheme = positions.make('tempered', strength=case.attn_scale, period=int(case.floor_scale))
    given = {}, scheme.spectrum(dims()), case.q_LHK, case.k_LHK
    p_HIJ = weights(scheme, *given, form=form)
    np.testing.assert_allclose(p_HIJ, case.p_HIJ, atol=64 * EPS)
    # Known wrong: chunks here and everything in the others.
    assert np.abs(weights(scheme, *given, mask=Mask(chunk=case.chunk)) - case.p_HIJ).max() > 0.01
    assert np.abs(weights(positions.Scheme(), *given) - case.p_HIJ).max() > 1e-4


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_a_layer_with_rotation_sees_its_chunk_and_is_not_tempered(published, dims, weights, form):
  cases = layers(published, rotates=True)
  assert cases
  for case in cases:
    scheme = positions.make('rope', theta=case.theta)
    q_LHK, k_LHK = (half_split(x) for x in (case.q_LHK, case.k_LHK))
    spectrum = scheme.spectrum(dims(head_width=q_LHK.shape[-1]))
    layer = Layer(scheme=scheme, qk_norm_after=float(case.norm_eps)).under(spectrum, 1.0)
    given, chunk = ({}, spectrum, q_LHK, k_LHK), Mask(chunk=case.chunk)
    p_HIJ = weights(layer.scheme, *given, form=form, mask=chunk)
    np.testing.assert_allclose(p_HIJ, case.p_HIJ, atol=256 * EPS)
    assert np.abs(weights(layer.scheme, *given) - case.p_HIJ).max() > 0.01
    assert np.abs(weights(scheme, *given, mask=chunk) - case.p_HIJ).max() > 0.01  # without the norm
