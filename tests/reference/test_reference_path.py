"""PaTH against flash-linear-attention."""

import jax.numpy as jnp
import numpy as np

from posjax import positions

EPS = np.finfo(np.float32).eps


class Given(positions.find('path')):
  """With directions and strengths that are given, not made of the input."""

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    return q_LHK, (k_LGK, params['w_LGK'], params['beta_LG'])


def ours(weights, case):
  params = {name: jnp.asarray(vars(case)[name], jnp.float32) for name in ('w_LGK', 'beta_LG')}
  return [
    weights(Given(), params, Given().spectrum(None), case.q_LHK, case.k_LGK, form=form)
    for form in ('dense', 'tiled')
  ]


def test_weights_are_those_of_flash_linear_attention(published, weights):
  """Logits of up to 10, off by some roundings on both sides."""
  plain = [case for case in published('path-fla').cases if not case.log_LH.any()]
  assert len(plain) == 2
  for case in plain:
    for p_HIJ in ours(weights, case):
      np.testing.assert_allclose(p_HIJ, case.p_HIJ, atol=64 * EPS)


def test_its_forget_gate_is_divided_by_the_root_of_the_width_and_that_of_fox_is_not(
  published, weights, softmax
):
  (case,) = (case for case in published('path-fla').cases if case.log_LH.any())
  kept_HL = np.cumsum(case.log_LH, axis=0).T
  forgotten_HIJ = kept_HL[:, :, None] - kept_HL[:, None, :]
  for p_HIJ in ours(weights, case):
    logits_HIJ = np.log(np.where(p_HIJ > 0, p_HIJ, 1))
    divided_HIJ = softmax(logits_HIJ + forgotten_HIJ / case.q_LHK.shape[-1] ** 0.5)
    np.testing.assert_allclose(divided_HIJ, case.p_HIJ, atol=64 * EPS)
    assert np.abs(softmax(logits_HIJ + forgotten_HIJ) - case.p_HIJ).max() > 0.05
