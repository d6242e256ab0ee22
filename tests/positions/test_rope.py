import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions

DIMS = positions.Dims(width=16, heads=2, kv_heads=1, head_width=8, length=64)
EPS = np.finfo(np.float32).eps


def score(q_K, k_K, m, n, theta):
  """Su et al. 2021, eq. 16 with half-split pairs: float64, a matrix per position."""
  K = len(q_K)

  def rotation(pos):
    R_KK = np.zeros((K, K))
    for i in range(K // 2):
      a = pos * theta ** (-2.0 * i / K)
      j = i + K // 2
      R_KK[i, i], R_KK[i, j] = np.cos(a), -np.sin(a)
      R_KK[j, i], R_KK[j, j] = np.sin(a), np.cos(a)
    return R_KK

  return (rotation(m) @ np.float64(q_K)) @ (rotation(n) @ np.float64(k_K))


def scores(scheme, q_LHK, k_LGK, pos_L):
  spectrum = scheme.spectrum(DIMS)
  q_LHK = scheme.query({}, spectrum, jnp.asarray(q_LHK), jnp.asarray(pos_L))
  k_LGK = scheme.key({}, spectrum, jnp.asarray(k_LGK), jnp.asarray(pos_L))
  return np.einsum('ihk,jhk->hij', np.float64(q_LHK), np.float64(jnp.repeat(k_LGK, 2, axis=1)))


@pytest.mark.parametrize('theta', [100.0, 10_000.0])
def test_scores_are_those_of_the_papers_rotation_matrices(rng, theta):
  pos_L = np.array([0, 1, 5, 300])
  q_LHK = np.float32(rng.normal(size=(4, 2, 8)))
  k_LGK = np.float32(rng.normal(size=(4, 1, 8)))
  s_HIJ = scores(positions.make('rope', theta=theta), q_LHK, k_LGK, pos_L)
  for h, i, j in np.ndindex(2, 4, 4):
    exact = score(q_LHK[i, h], k_LGK[j, 0], pos_L[i], pos_L[j], theta)
    bound = 4 * EPS * (1 + pos_L.max()) * np.linalg.norm(q_LHK[i, h]) * np.linalg.norm(k_LGK[j, 0])
    assert abs(s_HIJ[h, i, j] - exact) < bound
    other = score(q_LHK[i, h], k_LGK[j, 0], pos_L[i], pos_L[j], 3 * theta)
    assert i == j or abs(other - exact) > bound  # theta is read


def test_scores_depend_on_the_distance_alone(rng):
  q_LHK, k_LGK = np.float32(rng.normal(size=(1, 2, 8))), np.float32(rng.normal(size=(1, 1, 8)))
  def repeat(x):
    return np.repeat(x, 12, axis=0)
  for offset in (0, 1000):
    s_HIJ = scores(positions.make('rope'), repeat(q_LHK), repeat(k_LGK), offset + np.arange(12))
    bound = 4 * EPS * (12 + offset) * np.linalg.norm(q_LHK, axis=-1).max() * np.linalg.norm(k_LGK)
    for r in range(-11, 12):
      diagonal_HN = np.diagonal(s_HIJ, -r, 1, 2)
      assert np.ptp(diagonal_HN, axis=1).max() <= bound
  assert np.ptp(s_HIJ) > 0.1


def test_keys_and_queries_in_two_layouts_would_not_depend_on_the_distance_alone(rng):
  """Known-wrong: each layout trains by itself, their mixture breaks what makes it relative."""
  scheme = positions.make('rope')
  order = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # (2f, 2f + 1) -> (f, f + 4)
  q_LHK = np.repeat(np.float32(rng.normal(size=(1, 2, 8))), 12, axis=0)
  k_LGK = np.repeat(np.float32(rng.normal(size=(1, 1, 8))), 12, axis=0)
  spectrum, pos_L = scheme.spectrum(DIMS), jnp.arange(12)
  q_LHK = scheme.query({}, spectrum, jnp.asarray(q_LHK), pos_L)
  k_LGK = scheme.key({}, spectrum, jnp.asarray(k_LGK[..., order]), pos_L)[..., np.argsort(order)]
  s_HIJ = np.einsum('ihk,jgk->hij', q_LHK, k_LGK)
  assert np.ptp(np.diagonal(s_HIJ, -1, 1, 2), axis=1).max() > 0.1


def test_norms_are_kept(rng):
  scheme = positions.make('rope')
  q_LHK = jnp.asarray(rng.normal(size=(5, 2, 8)), jnp.float32)
  turned_LHK = scheme.query({}, scheme.spectrum(DIMS), q_LHK, jnp.arange(5) * 100)
  np.testing.assert_allclose(
    np.linalg.norm(turned_LHK, axis=-1), np.linalg.norm(q_LHK, axis=-1), rtol=8 * EPS
  )


def test_frequencies_are_those_of_the_head_width_and_float64():
  frequency_F = positions.make('rope', theta=16.0).spectrum(DIMS).frequency_F
  assert frequency_F.dtype == np.float64
  np.testing.assert_allclose(frequency_F, [1, 0.5, 0.25, 0.125], rtol=1e-15)


def test_a_theta_without_waves_is_refused():
  with pytest.raises(ValueError, match='Use theta > 1'):
    positions.make('rope', theta=0.0).spectrum(DIMS)
