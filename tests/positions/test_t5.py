import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.extension import extend

DIMS = positions.Dims(width=16, heads=3, kv_heads=1, head_width=8, length=64)


def bucket(r, buckets=32, farthest=128):
  """_relative_position_bucket of the authors' code with bidirectional=False, in Python floats."""
  r = max(r, 0)
  exact = buckets // 2
  if r < exact:
    return r
  log = math.log(r / exact) / math.log(farthest / exact)
  # The reference floors; the last bit of a float64 logarithm must not decide (ln 4 / ln 16 < 1/2).
  return min(exact + math.floor(log * (buckets - exact) + 1e-9), buckets - 1)


def bucket_of_an_encoder(r, buckets=32, farthest=128):
  """Known-wrong here: half of the buckets kept for keys ahead."""
  return bucket(r, buckets // 2, farthest)


# Distances 0..130 of 32 buckets up to 128, from the definition by hand: exact to 15, then borders
# 16 * 8^(n/16) = 18.2, 20.7, 23.6, 26.9, 30.6, 34.9, 39.7, 45.3, 51.5, 58.7, 66.8, 76.1, 86.7, ...
FIRST_OF_BUCKET = [
  *range(17), 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113,
]  # fmt: skip


def test_buckets_of_the_paper_begin_at_these_distances():
  table = [sum(first <= r for first in FIRST_OF_BUCKET) - 1 for r in range(300)]
  ours = positions.make('t5').bucket(jnp.arange(300))
  np.testing.assert_array_equal(ours, table)
  np.testing.assert_array_equal(ours, [bucket(r) for r in range(300)])
  assert ours.dtype == jnp.int32


@pytest.mark.parametrize(
  ('buckets', 'farthest'), [(2, 2), (2, 128), (8, 64), (8, 17), (32, 4096), (64, 128)]
)
def test_buckets_of_other_sizes_are_the_authors(buckets, farthest):
  r_X = np.arange(-3, 2 * farthest)
  ours = positions.make('t5', buckets=buckets, farthest=farthest).bucket(jnp.asarray(r_X))
  np.testing.assert_array_equal(ours, [bucket(r, buckets, farthest) for r in r_X])


def test_borders_that_are_whole_numbers_open_their_bucket_stretched_or_not():
  """With 8 buckets up to 64, borders are 8, 16, 32; times a float32 rate they must still be met."""
  scheme = positions.make('t5', buckets=8, farthest=64)
  for factor in (1.0, 2.0, 3.0, 7.0, 49.0):
    spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=64)
    for number, border in ((5, 8), (6, 16), (7, 32)):
      r_X = jnp.array([border, border + 1]) * int(factor) - jnp.array([0, int(factor) + 1])
      got = scheme.bucket(r_X * jnp.float32(spectrum.rate))
      np.testing.assert_array_equal(got, [number, number - 1])


def test_half_of_the_buckets_would_be_wrong_without_keys_ahead():
  ours = np.asarray(positions.make('t5').bucket(jnp.arange(200)))
  assert (ours != [bucket_of_an_encoder(r) for r in range(200)]).sum() > 150
  assert ours.max() == 31


@pytest.mark.parametrize('contiguous', [True, False])
def test_the_table_entry_of_query_minus_key_is_added_per_head(rng, contiguous):
  scheme = positions.make('t5', buckets=4, farthest=5)
  table_EH = np.float32(rng.normal(size=(4, 3)))
  s_HIJ = np.float32(rng.normal(size=(3, 4, 6)))
  query = Rows(index_L=3 + jnp.arange(4), pos_L=3 + jnp.arange(4), contiguous=contiguous)
  key = Rows(index_L=jnp.arange(6), pos_L=jnp.arange(6), contiguous=contiguous)
  score = jax.jit(lambda *arrays: scheme.score(arrays[0], scheme.spectrum(DIMS), *arrays[1:]))
  got_HIJ = np.asarray(score({'table_EH': table_EH}, s_HIJ, Tile(query, key)))
  mirrored = 0.0
  for h, i, j in np.ndindex(3, 4, 6):
    exact = s_HIJ[h, i, j] + table_EH[bucket(3 + i - j, 4, 5), h]
    np.testing.assert_allclose(got_HIJ[h, i, j], exact, atol=1e-6)
    wrong = s_HIJ[h, i, j] + table_EH[bucket(j - i - 3, 4, 5), h]  # key minus query
    mirrored = max(mirrored, abs(wrong - exact))
  assert mirrored > 0.1


def test_the_gradient_of_a_table_entry_is_the_sum_over_its_tile(rng):
  scheme = positions.make('t5', buckets=4, farthest=5)
  g_HIJ = np.float32(rng.normal(size=(3, 5, 5)))
  rows = Rows(index_L=jnp.arange(5), pos_L=jnp.arange(5), contiguous=True)

  @jax.jit
  @jax.grad
  def gradient(params):
    return jnp.sum(g_HIJ * scheme.score(params, scheme.spectrum(DIMS), 0.0, Tile(rows, rows)))

  got_EH = gradient({'table_EH': jnp.zeros((4, 3))})['table_EH']
  exact_EH = np.zeros((4, 3))
  for h, i, j in np.ndindex(3, 5, 5):
    exact_EH[bucket(i - j, 4, 5), h] += g_HIJ[h, i, j]
  np.testing.assert_allclose(got_EH, exact_EH, atol=1e-5)


def test_the_table_is_drawn_with_the_given_deviation():
  table_EH = positions.make('t5', buckets=2000, farthest=4000, deviation=0.5).init(
    jax.random.key(0), DIMS
  )['table_EH']
  assert table_EH.shape == (2000, 3)
  assert abs(float(table_EH.std()) - 0.5) < 5 * 0.5 / (2 * table_EH.size) ** 0.5


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'buckets': 7}, '7 buckets: half are exact. Use an even number'),
    ({'buckets': 0}, '0 buckets'),
    ({'buckets': 32, 'farthest': 16}, 'no logarithmic bucket.*Use farthest > 16'),
  ],
)
def test_buckets_that_cannot_be_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    positions.make('t5', **settings)
