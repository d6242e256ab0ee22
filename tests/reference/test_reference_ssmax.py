"""Scalable-Softmax against the package scalable-softmax."""

import numpy as np

from posjax import positions


def test_ssmax_gives_the_weights_of_scalable_softmax(published, weights, dims):
  """Logits as products of queries, which hold them, and keys, which are rows of the identity."""
  for case in published('ssmax-scalable-softmax').cases:
    L = len(case.logit_IJ)
    q_LHK = np.array(case.logit_IJ)[:, None] * np.sqrt(L)
    k_LGK = np.eye(L)[:, None]
    scheme = positions.make('ssmax')
    params = {'strength_H': np.float32([case.strength])}
    spectrum = scheme.spectrum(dims(heads=1, kv_heads=1, head_width=L))
    p_HIJ = weights(scheme, params, spectrum, q_LHK, k_LGK)
    np.testing.assert_allclose(p_HIJ[0], case.p_IJ, atol=2e-6)
    added_IJ = np.exp(np.tril(case.logit_IJ) + case.strength * np.log(np.arange(L) + 1)[:, None])
    added_IJ = np.tril(added_IJ) / np.tril(added_IJ).sum(-1, keepdims=True)
    assert np.abs(added_IJ - case.p_IJ).max() > 0.01  # a sum in place of the product: a no-op
