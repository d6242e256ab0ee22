import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions

DIMS = positions.Dims(width=16, heads=4, kv_heads=2, head_width=8, length=64)
POS_L = np.array([0, 1, 5, 300])
EPS = np.finfo(np.float32).eps


def score(q_K, k_K, m, n, phase_K, theta=1e4, frequencies=None, sign=1):
  """Gopalakrishnan et al. 2025, sec. 3, by complex numbers: Re[conj(q) k], float64, loops."""
  K, total = len(q_K), 0.0
  for f in range(K):
    q = math.log1p(math.exp(q_K[f])) * np.exp(1j * m * theta ** (-f / (frequencies or K)))
    k = math.log1p(math.exp(k_K[f])) * np.exp(
      1j * (n * theta ** (-f / (frequencies or K)) + sign * min(0, max(-2 * np.pi, phase_K[f])))
    )
    total += (q.conjugate() * k).real
  return total


def scores(scheme, params, q_LHK, k_LGK, pos_L):
  spectrum = scheme.spectrum(DIMS)
  q_LHK = scheme.query(params, spectrum, jnp.asarray(q_LHK), jnp.asarray(pos_L))
  k_LGK = scheme.key(params, spectrum, jnp.asarray(k_LGK), jnp.asarray(pos_L))
  assert q_LHK.shape[-1] == k_LGK.shape[-1] == 16  # cosines and sines
  return np.einsum('ihk,jhk->hij', np.float64(q_LHK), np.float64(jnp.repeat(k_LGK, 2, axis=1)))


def vectors(rng):
  return np.float32(rng.normal(size=(4, 4, 8))), np.float32(rng.normal(size=(4, 2, 8)))


@pytest.mark.parametrize('theta', [100.0, 10_000.0])
def test_scores_are_lengths_times_the_cosine_of_the_distance_and_the_keys_phase(rng, theta):
  q_LHK, k_LGK = vectors(rng)
  phase_GK = np.float32(rng.uniform(-8, 2, size=(2, 8)))  # some on either side of [-2 pi, 0]
  assert (phase_GK > 0).any() and (phase_GK < -2 * np.pi).any()
  scheme = positions.make('pope', theta=theta)
  s_HIJ = scores(scheme, {'phase_GK': jnp.asarray(phase_GK)}, q_LHK, k_LGK, POS_L)
  others = {'sign': -1}, {'frequencies': 4}, {'theta': 3 * theta}  # on queries; RoPE's exponents
  farthest = np.zeros(3)
  for h, i, j in np.ndindex(4, 4, 4):
    arguments = q_LHK[i, h], k_LGK[j, h // 2], POS_L[i], POS_L[j], phase_GK[h // 2]
    bound = 4 * EPS * (2 + POS_L.max()) * score(*arguments[:2], 0, 0, np.zeros(8))
    assert abs(s_HIJ[h, i, j] - score(*arguments, theta)) < bound
    wrong = [score(*arguments, **{'theta': theta, **other}) for other in others]
    farthest = np.maximum(farthest, np.abs(s_HIJ[h, i, j] - wrong) / bound)
  assert farthest.min() > 100


def test_scores_depend_on_the_distance_alone(rng):
  q_LHK, k_LGK = (np.repeat(x[:1], 12, axis=0) for x in vectors(rng))
  scheme = positions.make('pope', phase=2 * math.pi)
  params = scheme.init_layer(jax.random.key(0), DIMS)
  for offset in (0, 1000):
    s_HIJ = scores(scheme, params, q_LHK, k_LGK, offset + np.arange(12))
    for r in range(-11, 12):
      spread = np.ptp(np.diagonal(s_HIJ, -r, 1, 2), axis=1).max()
      assert spread <= 4 * EPS * (12 + offset) * np.abs(s_HIJ).max()


def test_content_alone_cannot_turn_a_wave(rng):
  """What sets it apart from RoPE: at distance 0 and without phase, every wave adds to a score."""
  q_LHK, k_LGK = vectors(rng)
  scheme = positions.make('pope')
  params = scheme.init_layer(jax.random.key(0), DIMS)
  spectrum, pos_L = scheme.spectrum(DIMS), jnp.full(4, 300)
  q_LHK = scheme.query(params, spectrum, jnp.asarray(q_LHK), pos_L)
  k_LGK = scheme.key(params, spectrum, jnp.asarray(k_LGK), pos_L)
  waves_LHK = q_LHK * jnp.repeat(k_LGK, 2, axis=1)
  assert (waves_LHK[..., :8] + waves_LHK[..., 8:] > 0).all()


def test_the_frequencies_are_as_many_as_dimensions_and_float64():
  frequency_F = positions.make('pope', theta=256.0).spectrum(DIMS).frequency_F
  assert frequency_F.dtype == np.float64
  np.testing.assert_allclose(frequency_F, [2.0**-f for f in range(8)], rtol=1e-14)


def test_phases_start_where_they_are_told_to():
  start = positions.make('pope').init_layer(jax.random.key(0), DIMS)['phase_GK']
  np.testing.assert_array_equal(start, np.zeros((2, 8)))
  wide = positions.Dims(width=16, heads=4, kv_heads=20, head_width=128, length=64)
  phase_GK = positions.make('pope', phase=2.0).init_layer(jax.random.key(0), wide)['phase_GK']
  assert phase_GK.shape == (20, 128) and phase_GK.min() >= -2 and phase_GK.max() <= 0
  assert abs(float(phase_GK.mean()) + 1) < 5 * 2 / (12 * phase_GK.size) ** 0.5


def test_a_phase_that_starts_at_an_end_learns_and_one_outside_does_not(rng):
  """JAX's own clip halves the derivative at an end, and lax.clamp has none there."""
  scheme = positions.make('pope')
  k_LGK = jnp.asarray(rng.normal(size=(1, 1, 4)), jnp.float32)
  w_K = rng.normal(size=8)

  def total(phase_GK):
    key_LGK = scheme.key({'phase_GK': phase_GK}, spectrum, k_LGK, jnp.arange(1) + 3)
    return jnp.sum(key_LGK * w_K)

  dims = positions.Dims(width=4, heads=1, kv_heads=1, head_width=4, length=8)
  spectrum = scheme.spectrum(dims)
  ends_GK = jnp.array([[0.0, -2 * np.pi, -1e-6, -6.28]])
  got_K = jax.grad(total)(ends_GK)[0]
  for f in range(4):
    angle = 3 * 1e4 ** (-f / 4) + float(ends_GK[0, f])
    slope = math.log1p(math.exp(k_LGK[0, 0, f])) * (
      w_K[f + 4] * math.cos(angle) - w_K[f] * math.sin(angle)
    )
    np.testing.assert_allclose(got_K[f], slope, atol=1e-5)
  outside_GK = jnp.array([[0.1, -6.3, 1.0, -9.0]])
  np.testing.assert_array_equal(jax.grad(total)(outside_GK), np.zeros((1, 4)))


@pytest.mark.parametrize('phase', [-1.0, 7.0])
def test_phases_that_would_start_outside_are_refused(phase):
  with pytest.raises(ValueError, match=r'where they are clamped\. Use 0 <= phase <= 2 pi'):
    positions.make('pope', phase=phase)
