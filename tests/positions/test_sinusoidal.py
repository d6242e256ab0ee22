import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions

DIMS = positions.Dims(width=10, heads=2, kv_heads=1, head_width=5, length=64)
POS_L = np.array([0, 1, 2, 63, 257, 5000])


def sinusoids(pos_L, D, theta=10_000.0):
  """Vaswani et al. 2017, sec. 3.5: float64, loops."""
  wave_LD = np.zeros((len(pos_L), D))
  for row, pos in enumerate(pos_L):
    for i in range(D // 2):
      wave_LD[row, 2 * i] = np.sin(pos / theta ** (2 * i / D))
      wave_LD[row, 2 * i + 1] = np.cos(pos / theta ** (2 * i / D))
  return wave_LD


def halves_of_transformer_xl(pos_L, D):
  wave_LD = sinusoids(pos_L, D)
  return np.concatenate([wave_LD[:, 0::2], wave_LD[:, 1::2]], axis=1)


def halves_of_tensor2tensor(pos_L, D):
  angle_LF = pos_L[:, None] * 10_000.0 ** (-np.arange(D // 2) / (D // 2 - 1))
  return np.concatenate([np.sin(angle_LF), np.cos(angle_LF)], axis=1)


def waves(dtype=jnp.float32, **settings):
  scheme = positions.make('sinusoidal', **settings)
  x_LD = jnp.zeros((len(POS_L), DIMS.width), dtype)
  return scheme.embed({}, scheme.spectrum(DIMS), x_LD, None, jnp.asarray(POS_L))


ATOL = 2 * np.finfo(np.float32).eps * (1 + POS_L.max())


@pytest.mark.parametrize('theta', [100.0, 10_000.0])
@pytest.mark.parametrize('amplitude', [1.0, 0.3])
def test_waves_are_the_papers(theta, amplitude):
  exact_LD = amplitude * sinusoids(POS_L, DIMS.width, theta)
  np.testing.assert_allclose(waves(theta=theta, amplitude=amplitude), exact_LD, atol=ATOL)


@pytest.mark.parametrize('wrong', [halves_of_transformer_xl, halves_of_tensor2tensor])
def test_the_other_layouts_in_the_wild_are_not_ours(wrong):
  assert np.abs(waves() - wrong(POS_L, DIMS.width)).max() > 0.1


@pytest.mark.parametrize('begin', [0, 2])
def test_halves_are_those_of_tensor2tensor(begin):
  exact_LD = halves_of_tensor2tensor(POS_L + begin, DIMS.width)
  np.testing.assert_allclose(waves(halves=True, begin=begin), exact_LD, atol=ATOL)
  assert np.abs(waves(halves=True, begin=1 - begin) - exact_LD).max() > 0.1


def test_they_are_added_to_the_tokens(rng):
  scheme, x_LD = positions.make('sinusoidal'), np.float32(rng.normal(size=(6, 10)))
  y_LD = scheme.embed({}, scheme.spectrum(DIMS), jnp.asarray(x_LD), None, jnp.asarray(POS_L))
  np.testing.assert_allclose(y_LD, x_LD + sinusoids(POS_L, 10), atol=2 * ATOL)


def test_positions_are_not_rounded_with_the_activations():
  wave_LD = waves(jnp.bfloat16)
  assert wave_LD.dtype == jnp.bfloat16
  half = float(jnp.finfo(jnp.bfloat16).eps) / 2
  np.testing.assert_allclose(np.float64(wave_LD), sinusoids(POS_L, 10), atol=ATOL + half)
  rounded_L = np.float64(jnp.asarray(POS_L, jnp.bfloat16))
  assert np.abs(sinusoids(rounded_L, 10) - sinusoids(POS_L, 10))[4].max() > 0.1


def test_an_odd_width_is_refused():
  odd = positions.Dims(width=9, heads=1, kv_heads=1, head_width=4, length=8)
  with pytest.raises(ValueError, match=r'the width is 9\. Use an even one'):
    positions.make('sinusoidal').spectrum(odd)
