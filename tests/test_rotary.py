import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax.rotary import geometric_frequencies, once, rotate, wave_sums, waves


def rotated(x_LHK, frequency_F, pos_L):
  """Su et al. 2021, eq. 34, pairs (f, f + F): float64, loops."""
  F, y_LHK = len(frequency_F), np.array(x_LHK, np.float64)
  for row, pos in enumerate(pos_L):
    for head in range(x_LHK.shape[1]):
      for f in range(F):
        angle = float(pos) * float(frequency_F[f])
        a, b = float(x_LHK[row, head, f]), float(x_LHK[row, head, f + F])
        y_LHK[row, head, f] = a * np.cos(angle) - b * np.sin(angle)
        y_LHK[row, head, f + F] = a * np.sin(angle) + b * np.cos(angle)
  return y_LHK


def interleaved(x_LHK, frequency_F, pos_L):
  """The other layout, pairs (2f, 2f + 1), of GPT-J."""
  F = len(frequency_F)
  order = [*range(0, 2 * F, 2), *range(1, 2 * F, 2)]
  y_LHK = np.array(x_LHK, np.float64)
  y_LHK[..., order] = rotated(x_LHK[..., order], frequency_F, pos_L)
  return y_LHK


POS_L = np.array([0, 1, 2, 257, 1000, 30_000])


def angle_error(pos_L):
  """Position times a float32 frequency in float32: two roundings of an angle as large as pos."""
  return 2 * np.finfo(np.float32).eps * (1 + np.max(pos_L))


@pytest.mark.parametrize('theta', [10.0, 10_000.0, 500_000.0])
@pytest.mark.parametrize('width', [2, 6, 128])
def test_frequencies_fall_geometrically_from_one(width, theta):
  frequency_F = geometric_frequencies(width, theta)
  assert frequency_F.dtype == np.float64
  expected = [theta ** (-2.0 * f / width) for f in range(width // 2)]
  np.testing.assert_allclose(frequency_F, expected, rtol=1e-15)


@pytest.mark.parametrize(
  ('width', 'theta', 'text'),
  [
    (7, 1e4, 'the width is 7'),
    (0, 1e4, 'the width is 0'),
    (8, 1.0, 'theta > 1'),
    (8, -1e4, 'theta > 1'),
  ],
)
def test_frequencies_that_cannot_be_are_refused(width, theta, text):
  with pytest.raises(ValueError, match=text):
    geometric_frequencies(width, theta)


@pytest.mark.parametrize('F', [4, 3, 1])
def test_pairs_half_a_rotation_apart_turn_and_the_rest_passes_through(rng, F):
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, 8)))
  frequency_F = geometric_frequencies(2 * F, 10_000.0)
  y_LHK = np.asarray(rotate(jnp.asarray(x_LHK), frequency_F, jnp.asarray(POS_L)))
  atol = np.abs(x_LHK).max() * angle_error(POS_L)
  np.testing.assert_allclose(y_LHK, rotated(x_LHK, frequency_F, POS_L), atol=atol)
  np.testing.assert_array_equal(y_LHK[..., 2 * F :], x_LHK[..., 2 * F :])
  if F > 1:
    assert np.abs(y_LHK - interleaved(x_LHK, frequency_F, POS_L)).max() > 0.1


def test_the_rotation_turns_from_the_first_towards_the_second_of_a_pair(rng):
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 1, 4)))
  frequency_F = geometric_frequencies(4, 100.0)
  backwards_LHK = rotated(x_LHK, frequency_F, -POS_L)
  y_LHK = rotate(jnp.asarray(x_LHK), frequency_F, jnp.asarray(POS_L))
  assert np.abs(y_LHK - backwards_LHK).max() > 0.1


def test_angles_stay_float32_when_the_vectors_are_bfloat16(rng):
  x_LHK = jnp.asarray(rng.normal(size=(len(POS_L), 2, 8)), jnp.bfloat16)
  frequency_F = geometric_frequencies(8, 10_000.0)
  y_LHK = rotate(x_LHK, frequency_F, jnp.asarray(POS_L))
  exact_LHK = rotated(np.float64(x_LHK), frequency_F, POS_L)
  assert y_LHK.dtype == jnp.bfloat16
  once = np.abs(exact_LHK) * float(jnp.finfo(jnp.bfloat16).eps) / 2  # the result is rounded once
  angle = np.abs(np.float64(x_LHK)).max() * angle_error(POS_L)
  assert (np.abs(np.float64(y_LHK) - exact_LHK) <= once + angle).all()

  rounded_L = np.float64(jnp.asarray(POS_L, jnp.bfloat16))  # 257 becomes 256
  assert rounded_L[3] == 256
  wrong_LHK = rotated(np.float64(x_LHK), frequency_F, rounded_L)
  assert (np.abs(wrong_LHK - exact_LHK)[3] > once[3] + angle).any()


def test_norms_of_pairs_are_kept(rng):
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, 8)))
  y_LHK = np.asarray(rotate(jnp.asarray(x_LHK), geometric_frequencies(8, 1e4), jnp.asarray(POS_L)))
  def norms(z_LHK):
    return np.hypot(z_LHK[..., :4], z_LHK[..., 4:])
  np.testing.assert_allclose(norms(y_LHK), norms(x_LHK), rtol=4 * np.finfo(np.float32).eps)


def test_more_pairs_than_a_head_has_are_refused():
  with pytest.raises(ValueError, match='rotate 10 dimensions, but a head has 8'):
    rotate(jnp.zeros((1, 1, 8)), np.ones(5), jnp.zeros(1))


def test_waves_are_as_exact_far_away_as_near():
  """Of float32 frequencies; a rounded angle would be off by 0.002 at 65,535."""
  pos_L = np.array([0, 1, 257, 4095, 30_001, 65_535])
  frequency_F = np.float32(geometric_frequencies(128, 10_000.0))
  cos_LF, sin_LF = jax.jit(waves)(jnp.asarray(pos_L), frequency_F)
  angle_LF = np.float64(pos_L)[:, None] * np.float64(frequency_F)
  bound = 3e-10 * angle_LF + 4 * np.finfo(np.float32).eps
  assert (np.abs(cos_LF - np.cos(angle_LF)) < bound).all()
  assert (np.abs(sin_LF - np.sin(angle_LF)) < bound).all()
  rounded_LF = np.cos(np.float64(np.float32(pos_L)[:, None] * frequency_F))
  assert np.abs(rounded_LF - np.cos(angle_LF)).max() > 1e-3


@pytest.mark.parametrize(('first', 'count'), [(5, 1), (3, 10), (0, 7), (65_535, 3000)])
def test_sums_of_waves_by_angle_addition_are_those_of_every_distance(rng, first, count):
  """Negative distances, too, those of keys that lie ahead; in float64, compiled."""
  cos_XF, sin_XF = np.float32(rng.normal(size=(2, 3, 8)))
  frequency_F = np.float32(geometric_frequencies(16, 10_000.0))
  got_XR = jax.jit(wave_sums, static_argnums=4)(cos_XF, sin_XF, frequency_F, first, count)
  angle_RF = (first - np.arange(count))[:, None] * np.float64(frequency_F)
  exact_XR = np.float64(cos_XF) @ np.cos(angle_RF).T + np.float64(sin_XF) @ np.sin(angle_RF).T
  size = np.abs(cos_XF).sum(-1).max() + np.abs(sin_XF).sum(-1).max()
  atol = size * (8 * np.finfo(np.float32).eps + 6e-10 * np.abs(first - np.arange(count)).max())
  np.testing.assert_allclose(got_XR, exact_XR, atol=atol)
  assert np.abs(got_XR[:, ::-1] - exact_XR).max() > 100 * atol or count == 1


def test_what_is_computed_once_is_the_same_to_the_bit(rng):
  x_LF = np.float32(np.cos(1e4 * rng.normal(size=(50, 7))))
  x_LF[0] = 0, 1, -1, 1e-30, 7, -0.1, 3
  np.testing.assert_array_equal(jax.jit(once)(x_LF), x_LF)
