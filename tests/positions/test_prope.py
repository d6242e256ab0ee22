import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import extend

POS_L = np.array([0, 1, 5, 300])
EPS = np.finfo(np.float32).eps


def dims(head_width):
  return positions.Dims(width=16, heads=2, kv_heads=1, head_width=head_width, length=64)


def turned(x_LHK, share, theta, factor=1.0):
  """All K/2 frequencies, zero from int(share K // 2) on, pairs (f, f + K/2): float64, loops."""
  K = x_LHK.shape[-1]
  live, y_LHK = int(share * K // 2), np.array(x_LHK, np.float64)
  for (row, pos), head, f in (
    (p, h, f) for p in enumerate(POS_L) for h in range(x_LHK.shape[1]) for f in range(K // 2)
  ):
    frequency = theta ** (-2 * f / K) / factor if f < live else 0.0
    a, b = float(x_LHK[row, head, f]), float(x_LHK[row, head, f + K // 2])
    y_LHK[row, head, f] = a * np.cos(pos * frequency) - b * np.sin(pos * frequency)
    y_LHK[row, head, f + K // 2] = b * np.cos(pos * frequency) + a * np.sin(pos * frequency)
  return y_LHK


def of_the_first_dimensions(x_LHK, share, theta, exponent_of):
  """Known-wrong: pairs (f, f + F), a prefix of the head; with exponents of K or of the prefix."""
  K = x_LHK.shape[-1]
  F, y_LHK = int(share * K // 2), np.array(x_LHK, np.float64)
  angle_L1F = np.multiply.outer(POS_L, theta ** (-2 * np.arange(F) / exponent_of(F, K)))[:, None]
  a_LHF, b_LHF = y_LHK[..., :F].copy(), y_LHK[..., F : 2 * F].copy()
  y_LHK[..., :F] = a_LHF * np.cos(angle_L1F) - b_LHF * np.sin(angle_L1F)
  y_LHK[..., F : 2 * F] = b_LHF * np.cos(angle_L1F) + a_LHF * np.sin(angle_L1F)
  return y_LHK


def run(scheme, x_LHK, spectrum=None):
  spectrum = spectrum or scheme.spectrum(dims(x_LHK.shape[-1]))
  out = [hook({}, spectrum, jnp.asarray(x_LHK), jnp.asarray(POS_L))
         for hook in (scheme.query, scheme.key)]  # fmt: skip
  np.testing.assert_array_equal(*out)
  return np.asarray(out[0])


def tolerance_of(x_LHK):
  return 4 * EPS * (1 + POS_L.max()) * np.abs(x_LHK).max()


@pytest.mark.parametrize(
  ('K', 'share', 'live'), [(16, 0.75, 6), (16, 0.25, 2), (12, 0.25, 1), (10, 0.5, 2), (8, 1.0, 4)]
)
@pytest.mark.parametrize('theta', [100.0, 10_000.0])
def test_the_fastest_pairs_turn_as_in_rope_and_the_others_do_not(rng, K, share, live, theta):
  scheme = positions.make('prope', share=share, theta=theta)
  assert len(scheme.spectrum(dims(K)).frequency_F) == live
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, K)))
  got_LHK = run(scheme, x_LHK)
  np.testing.assert_allclose(got_LHK, turned(x_LHK, share, theta), atol=tolerance_of(x_LHK))
  for half in (0, K // 2):
    still = slice(half + live, half + K // 2)
    np.testing.assert_array_equal(got_LHK[..., still], x_LHK[..., still])
  if share < 1:
    for exponent_of in (lambda F, K: K, lambda F, K: 2 * F):
      wrong_LHK = of_the_first_dimensions(x_LHK, share, theta, exponent_of)
      assert np.abs(got_LHK - wrong_LHK).max() > 0.1


def test_64_of_the_256_pairs_of_a_gemma_4_head_turn():
  """Global layers: heads of 512, a quarter of the pairs, theta 10^6."""
  frequency_F = positions.make('prope', share=0.25, theta=1e6).spectrum(dims(512)).frequency_F
  assert frequency_F.dtype == np.float64
  np.testing.assert_allclose(frequency_F, [1e6 ** (-f / 256) for f in range(64)], rtol=1e-13)


def test_all_pairs_are_rope(rng):
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, 8)))
  np.testing.assert_array_equal(
    run(positions.make('prope', share=1.0), x_LHK), run(positions.make('rope'), x_LHK)
  )


def test_extensions_change_the_pairs_that_turn_and_wake_none(rng):
  scheme = positions.make('prope')
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, 16)))
  trained = scheme.spectrum(dims(16))
  spectrum = extend(trained, name='linear', factor=4.0, trained_length=64)
  np.testing.assert_allclose(
    run(scheme, x_LHK, spectrum), turned(x_LHK, 0.75, 1e4, 4.0), atol=tolerance_of(x_LHK)
  )
  spectrum = extend(trained, name='ntk', factor=4.0, trained_length=64)
  ratio_F = spectrum.frequency_F / trained.frequency_F
  np.testing.assert_allclose(ratio_F, [4 ** (-f / 5) for f in range(6)], rtol=1e-12)
  still = [6, 7, 14, 15]
  np.testing.assert_array_equal(run(scheme, x_LHK, spectrum)[..., still], x_LHK[..., still])


@pytest.mark.parametrize('share', [0, -0.5, 1.5])
def test_shares_that_cannot_be_are_refused(share):
  with pytest.raises(ValueError, match=f'share of {share} of the pairs. Use 0 < share <= 1'):
    positions.make('prope', share=share)


def test_a_share_without_a_pair_is_refused_and_the_smallest_with_one_is_named():
  with pytest.raises(ValueError, match=r'share of 0.1 turns none of the 4 pairs.*at least 0.25'):
    positions.make('prope', share=0.1).spectrum(dims(8))
  for K in (8, 98):  # 2 / 98 * 98 is 1.9999999999999998
    assert len(positions.make('prope', share=2 / K).spectrum(dims(K)).frequency_F) == 1
