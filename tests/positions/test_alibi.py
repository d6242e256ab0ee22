import math

import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile


def dims(heads):
  return positions.Dims(width=16, heads=heads, kv_heads=1, head_width=8, length=64)


def published(n):
  """get_slopes of the authors' code (fairseq/models/transformer.py), as it stands there."""

  def get_slopes_power_of_2(n):
    start = 2 ** (-(2 ** -(math.log2(n) - 3)))
    ratio = start
    return [start * ratio**i for i in range(n)]

  if math.log2(n).is_integer():
    return get_slopes_power_of_2(n)
  closest = 2 ** math.floor(math.log2(n))
  return get_slopes_power_of_2(closest) + published(2 * closest)[0::2][: n - closest]


LITERALS = {
  8: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625],
  12: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625,
       0.70710678, 0.35355339, 0.1767767, 0.08838835],
}  # fmt: skip


@pytest.mark.parametrize('heads', LITERALS)
def test_slopes_of_8_and_12_heads_are_the_published_numbers(heads):
  slope_H = positions.make('alibi').spectrum(dims(heads)).slope_H
  np.testing.assert_allclose(slope_H, LITERALS[heads], rtol=1e-7)


@pytest.mark.parametrize('heads', [1, 2, 3, 5, 6, 7, 12, 16, 20, 31, 40, 64, 112])
def test_slopes_of_any_number_of_heads_are_the_authors(heads):
  slope_H = positions.make('alibi').spectrum(dims(heads)).slope_H
  assert slope_H.dtype == np.float64
  np.testing.assert_allclose(slope_H, published(heads), rtol=1e-13)


def test_one_geometric_sequence_for_12_heads_is_wrong():
  sentence = [2 ** (-8 * t / 12) for t in range(1, 13)]
  slope_H = positions.make('alibi').spectrum(dims(12)).slope_H
  assert np.abs(np.sort(slope_H)[::-1] - sentence).max() > 0.05


def test_slopes_that_start_at_one_are_wrong():
  from_zero = [2.0 ** (-8 * t / 8) for t in range(8)]
  slope_H = positions.make('alibi').spectrum(dims(8)).slope_H
  np.testing.assert_allclose(slope_H, np.array(from_zero) / 2)


def test_steepness_sets_the_last_slope():
  slope_H = positions.make('alibi', steepness=4.0).spectrum(dims(8)).slope_H
  np.testing.assert_allclose(slope_H, [2 ** (-t / 2) for t in range(1, 9)])
  with pytest.raises(ValueError, match='steepness 0 would reward distance'):
    positions.make('alibi', steepness=0)


def test_the_bias_is_minus_slope_times_distance_after_scaling(rng):
  scheme = positions.make('alibi')
  pos_I, pos_J = np.array([7, 300, 301]), np.array([0, 5, 7, 299])
  s_HIJ = np.float32(rng.normal(size=(12, 3, 4)))
  def rows(pos_L):
    return Rows(index_L=jnp.arange(len(pos_L)), pos_L=jnp.asarray(pos_L))
  got_HIJ = np.asarray(
    scheme.score({}, scheme.spectrum(dims(12)), jnp.asarray(s_HIJ), Tile(rows(pos_I), rows(pos_J)))
  )
  slope_H = published(12)
  for h, i, j in np.ndindex(12, 3, 4):
    distance = float(pos_I[i] - pos_J[j])
    exact = s_HIJ[h, i, j] - slope_H[h] * distance
    bound = 2 * np.finfo(np.float32).eps * (1 + abs(exact))
    assert abs(got_HIJ[h, i, j] - exact) < bound
    falcon = s_HIJ[h, i, j] - slope_H[h] * distance / math.sqrt(8)  # divides the bias as well
    assert distance == 0 or abs(falcon - exact) > bound


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_columns_hold_the_key_side_exactly_as_long_as_a_book(dtype):
  """One bfloat16 column of positions would round 257 to 256, and 65,535 to 65,536."""
  scheme, scale = positions.make('alibi'), 8**-0.5
  pos_L = jnp.array([0, 255, 256, 257, 4095, 65_535])
  rows = Rows(index_L=jnp.arange(6), pos_L=pos_L)
  q_LHC, k_L1C = scheme.columns(
    {}, scheme.spectrum(dims(12)), rows, rows, heads=12, kv_heads=12, scale=scale, dtype=dtype
  )
  k_LC = k_L1C[:, 0]
  for columns in (q_LHC, k_LC):
    np.testing.assert_array_equal(np.float64(columns), np.float64(columns.astype(dtype)))
  bias_HJ = scale * np.einsum('hc,jc->hj', np.float64(q_LHC[0]), np.float64(k_LC))
  exact_HJ = np.outer(published(12), pos_L)
  np.testing.assert_allclose(bias_HJ, exact_HJ, rtol=4 * np.finfo(np.float32).eps)


def test_rounded_biases_are_those_of_bfloat16_arithmetic():
  """Products of bfloat16 numbers, up to positions and slopes that it cannot hold."""
  bfloat16 = lambda x: np.asarray(x, jnp.bfloat16).astype(np.float32)
  scheme = positions.make('alibi', scale=0.25, rounded=True)
  spectrum, pos_L = scheme.spectrum(dims(6)), np.array([0, 1, 100, 255, 257, 1001, 70_003])
  rows = Rows(index_L=jnp.arange(7), pos_L=jnp.array(pos_L))
  s_HIJ = np.random.default_rng(0).normal(size=(6, 7, 7))
  tile = Tile(query=rows, key=rows)
  got_HIJ = scheme.score({}, spectrum, jnp.float32(s_HIJ), tile)
  for h, slope in enumerate(published(6)):
    bias_J = [float(bfloat16(bfloat16(slope) * bfloat16(pos))) for pos in pos_L]
    exact_IJ = s_HIJ[h] + 0.25 * np.array(bias_J)
    np.testing.assert_allclose(got_HIJ[h], exact_IJ, rtol=1e-6, atol=1e-6)
  plain = positions.make('alibi', scale=0.25)
  other = plain.score({}, plain.spectrum(dims(6)), jnp.float32(s_HIJ), tile)
  assert np.abs((got_HIJ - got_HIJ[..., :1]) - (other - other[..., :1])).max() > 1
  assert (plain.relative, plain.factorises) == (True, True)
  assert (scheme.relative, scheme.factorises) == (False, False)


def test_a_scale_multiplies_slopes_and_must_be_above_0():
  plain, scaled = (positions.make('alibi', scale=s).spectrum(dims(4)).slope_H for s in (1.0, 0.5))
  np.testing.assert_array_equal(scaled, plain / 2)
  with pytest.raises(ValueError, match='ALiBi scaled by 0'):
    positions.make('alibi', scale=0)
