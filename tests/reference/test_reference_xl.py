"""Transformer-XL's positions against transformers 4.35.2."""

import numpy as np

from posjax import positions


def test_xl_gives_the_weights_of_transformers_with_and_without_a_memory(published, weights, dims):
  """The reference's queries are the last of its keys; the memory's rows are not compared."""
  memories = set()
  for case in published('transformer-xl-attention').cases:
    (I, H, K), (J, D) = np.shape(case.q_IHK), np.shape(case.wave_JD)
    scheme = positions.make('xl')
    project_DHK = np.float32(case.project_XD).reshape(H, K, D).transpose(2, 0, 1)
    params = {
      'u_HK': np.float32(case.u_HK), 'v_HK': np.float32(case.v_HK), 'distance_DHK': project_DHK,
    }  # fmt: skip
    spectrum = scheme.spectrum(dims(width=D, heads=H, kv_heads=H, head_width=K))
    q_LHK = np.concatenate([np.zeros((J - I, H, K)), case.q_IHK])
    for form in ('dense', 'tiled'):
      p_HIJ = weights(scheme, params, spectrum, q_LHK, np.array(case.k_JHK), form=form)
      np.testing.assert_allclose(p_HIJ[:, J - I :], case.p_HIJ, atol=3e-6)
    memories.add(J - I)
  assert min(memories) == 0 < max(memories)
