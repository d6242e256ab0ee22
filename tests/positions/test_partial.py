import jax
import numpy as np
import pytest

from posjax import positions

POS_L = np.array([0, 1, 5, 300])
EPS = np.finfo(np.float32).eps


def dims(head_width):
  return positions.Dims(width=16, heads=2, kv_heads=1, head_width=head_width, length=64)


def turned(x_LHK, share, theta, exponent_of=lambda R, K: R, first_of=lambda R, K: 0):
  """GPT-NeoX: the first R = share K dimensions turn in pairs (f, f + R/2); float64, loops."""
  K = x_LHK.shape[-1]
  R, y_LHK = int(share * K), np.array(x_LHK, np.float64)
  width, first = exponent_of(R, K), first_of(R, K)
  for (row, pos), head, f in (
    (p, h, f) for p in enumerate(POS_L) for h in range(x_LHK.shape[1]) for f in range(R // 2)
  ):
    angle = pos * theta ** (-2 * f / width)
    i, j = first + f, first + f + R // 2
    a, b = float(x_LHK[row, head, i]), float(x_LHK[row, head, j])
    y_LHK[row, head, i] = a * np.cos(angle) - b * np.sin(angle)
    y_LHK[row, head, j] = b * np.cos(angle) + a * np.sin(angle)
  return y_LHK


def run(scheme, x_LHK):
  spectrum = scheme.spectrum(dims(x_LHK.shape[-1]))
  hooks = scheme.query, scheme.key
  out = jax.jit(lambda *arrays: [hook({}, spectrum, *arrays) for hook in hooks])(x_LHK, POS_L)
  np.testing.assert_array_equal(*out)
  return np.asarray(out[0])


@pytest.mark.parametrize(('K', 'share'), [(16, 0.25), (16, 0.5), (12, 0.5), (20, 0.3), (8, 1.0)])
@pytest.mark.parametrize('theta', [100.0, 10_000.0])
def test_the_first_dimensions_turn_with_the_exponents_of_their_own_number(rng, K, share, theta):
  x_LHK = np.float32(rng.normal(size=(len(POS_L), 2, K)))
  got_LHK = run(positions.make('partial', share=share, theta=theta), x_LHK)
  atol = 4 * EPS * (1 + POS_L.max()) * np.abs(x_LHK).max()
  np.testing.assert_allclose(got_LHK, turned(x_LHK, share, theta), atol=atol)
  np.testing.assert_array_equal(got_LHK[..., int(share * K) :], x_LHK[..., int(share * K) :])
  if share < 1:
    wrong_LHK = turned(x_LHK, share, theta, exponent_of=lambda R, K: K)  # p-RoPE's exponents
    assert np.abs(got_LHK - wrong_LHK).max() > 0.01
    wrong_LHK = turned(x_LHK, share, theta, first_of=lambda R, K: K - R)  # the last ones, as MLA
    assert np.abs(got_LHK - wrong_LHK).max() > 0.1


def test_24_of_the_96_dimensions_of_gpt_neox_20b_turn():
  frequency_F = positions.make('partial', share=0.25).spectrum(dims(96)).frequency_F
  assert frequency_F.dtype == np.float64
  np.testing.assert_allclose(frequency_F, [10_000 ** (-f / 12) for f in range(12)], rtol=1e-14)


def test_a_share_that_is_a_fraction_of_the_head_width_is_not_one_short():
  assert int(30 / 44 * 44) == 29
  assert len(positions.make('partial', share=30 / 44).spectrum(dims(44)).frequency_F) == 15


@pytest.mark.parametrize('share', [0, -0.5, 1.5])
def test_shares_that_cannot_be_are_refused(share):
  with pytest.raises(ValueError, match=f'share of {share} of a head. Use 0 < share <= 1'):
    positions.make('partial', share=share)


@pytest.mark.parametrize(
  ('K', 'share', 'turns', 'better'), [(8, 0.4, 3, 0.25), (8, 0.1, 0, 0.25), (10, 0.5, 5, 0.4)]
)
def test_a_share_that_splits_a_pair_is_refused_and_one_that_does_not_is_named(
  K, share, turns, better
):
  text = f'turns {turns} of {K} dimensions, but they turn in pairs.* e.g. {better}'
  with pytest.raises(ValueError, match=text):
    positions.make('partial', share=share).spectrum(dims(K))
  positions.make('partial', share=better).spectrum(dims(K))
