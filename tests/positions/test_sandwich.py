import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.extension import extend

EPS = np.finfo(np.float32).eps


def dims(heads):
  return positions.Dims(width=16, heads=heads, kv_heads=1, head_width=8, length=64)


def sinusoids(pos_L, width, theta):
  """wave_LC of one position each, as columns: sines, then cosines (app. E), float64."""
  angle_LF = np.float64(pos_L)[:, None] / theta ** (2 * np.arange(width // 2) / width)
  return np.concatenate([np.sin(angle_LF), np.cos(angle_LF)], axis=1)


def paper(pos_I, pos_J, heads, width=128, theta=10_000.0, compression=8.0, first=1):
  """App. E: products of sinusoids, divided by one ratio per head."""
  common_IJ = sinusoids(pos_I, width, theta) @ sinusoids(pos_J, width, theta).T
  ratio_H = np.arange(first, heads + first) * compression / heads
  return common_IJ[None] / ratio_H[:, None, None]


def without_cosine(pos_I, pos_J, heads):
  """Known-wrong, from public code: angles summed, no cosine of them."""
  distance_IJ = np.float64(pos_I)[:, None] - pos_J
  frequency = (10_000.0 ** (-2 * np.arange(64) / 128)).sum()
  return distance_IJ * frequency / (np.arange(1, heads + 1) * 8 / heads)[:, None, None]


def from_head_1(pos_I, pos_J, heads):
  """Known-wrong: ratios that start one head late."""
  return paper(pos_I, pos_J, heads, first=2)


def slope_for_ratio(pos_I, pos_J, heads):
  """Known-wrong: ALiBi's 2^-ratio in place of 1 / ratio."""
  ratio_H11 = np.arange(1, heads + 1)[:, None, None] * 8 / heads
  return paper(pos_I, pos_J, heads) * ratio_H11 * 2.0**-ratio_H11


def bias(pos_I, pos_J, heads, contiguous=False, factor=1.0, **settings):
  scheme = positions.make('sandwich', **settings)
  spectrum = extend(
    scheme.spectrum(dims(heads)), name='linear', factor=factor, trained_length=64
  )
  rows = lambda pos_L: Rows(
    index_L=jnp.asarray(pos_L), pos_L=jnp.asarray(pos_L), contiguous=contiguous
  )

  @jax.jit
  def score(tile):
    if contiguous:
      tile = dataclasses.replace(tile, table_M=scheme.table({}, spectrum, tile.distance_M))
    return scheme.score({}, spectrum, jnp.zeros((heads, len(pos_I), len(pos_J))), tile)

  return np.asarray(score(Tile(rows(pos_I), rows(pos_J))))


def bound(farthest, heads, width=128, theta=10_000.0, compression=8.0):
  """Angles round in proportion to the distance; their cosines add up, over the least ratio."""
  frequency_F = theta ** (-2 * np.arange(width // 2) / width)
  return 2 * EPS * (farthest * frequency_F.sum() + width) * heads / compression


POS_I, POS_J = np.array([7, 300, 4095]), np.array([0, 1, 5, 7, 299, 300, 4094, 4095])


@pytest.mark.parametrize(
  'settings', [{}, {'width': 2}, {'width': 10}, {'theta': 100.0}, {'compression': 2.0}]
)
@pytest.mark.parametrize('heads', [1, 3, 8])
def test_the_bias_is_the_product_of_sinusoids_over_the_ratio_of_the_head(heads, settings):
  exact_HIJ = paper(POS_I, POS_J, heads, **settings)
  np.testing.assert_allclose(
    bias(POS_I, POS_J, heads, **settings), exact_HIJ, atol=bound(4095, heads, **settings)
  )


@pytest.mark.parametrize('first', [90, 96])  # a single query has its own way
def test_promised_contiguous_positions_change_nothing(first):
  pos_I, pos_J = np.arange(first, 97), np.arange(40, 93)
  np.testing.assert_allclose(
    bias(pos_I, pos_J, 8, contiguous=True), paper(pos_I, pos_J, 8), atol=bound(60, 8)
  )


@pytest.mark.parametrize('wrong', [without_cosine, from_head_1, slope_for_ratio])
def test_variants_known_to_be_wrong_are_not_ours(wrong):
  assert np.abs(bias(POS_I, POS_J, 8) - wrong(POS_I, POS_J, 8)).max() > 1


def test_the_own_key_gets_half_the_width_over_the_ratio():
  np.testing.assert_allclose(bias([9], [9], 4)[:, 0, 0], [32, 16, 32 / 3, 8], rtol=4 * EPS)


def test_it_is_added_to_the_logits(rng):
  scheme, s_HIJ = positions.make('sandwich'), np.float32(rng.normal(size=(4, 3, 8)))
  rows = lambda pos_L: Rows(index_L=jnp.asarray(pos_L), pos_L=jnp.asarray(pos_L))
  score = jax.jit(lambda s_HIJ, tile: scheme.score({}, scheme.spectrum(dims(4)), s_HIJ, tile))
  got_HIJ = score(s_HIJ, Tile(rows(POS_I), rows(POS_J)))
  np.testing.assert_allclose(
    got_HIJ, s_HIJ + paper(POS_I, POS_J, 4), atol=bound(4095, 4)
  )


def test_stretched_by_four_a_distance_counts_a_quarter_and_no_ratio_changes():
  exact_HIJ = paper(POS_I / 4, POS_J / 4, 8)
  np.testing.assert_allclose(
    bias(POS_I, POS_J, 8, factor=4.0), exact_HIJ, atol=bound(1024, 8)
  )


@pytest.mark.parametrize(('dtype', 'width', 'count'), [
  (jnp.float32, 128, 128), (jnp.bfloat16, 128, 768), (jnp.bfloat16, 10, 60),
])  # fmt: skip
def test_columns_are_exact_and_add_up_to_the_paper_as_far_as_a_book(dtype, width, count):
  """Compiled, against float64; columns of one bfloat16 part are off by 0.009 logits."""
  scheme, scale, heads = positions.make('sandwich', width=width), 8**-0.5, 3
  spectrum = scheme.spectrum(dims(heads))
  pos_I, pos_J = np.array([257, 65_535]), np.array([0, 1, 255, 257, 4096, 65_534, 65_535])
  rows = lambda pos_L: Rows(index_L=jnp.arange(len(pos_L)), pos_L=jnp.asarray(pos_L))

  @jax.jit
  def columns(query, key):
    return scheme.columns(
      {}, spectrum, query, key, heads=heads, kv_heads=1, scale=scale, dtype=dtype
    )

  q_IHC, k_J1C = columns(rows(pos_I), rows(pos_J))
  assert (q_IHC.shape, k_J1C.shape) == ((2, 3, count), (7, 1, count))
  for x in (q_IHC, k_J1C):
    np.testing.assert_array_equal(np.float64(x), np.float64(x.astype(dtype)))
  got_HIJ = scale * np.einsum('ihc,jc->hij', np.float64(q_IHC), np.float64(k_J1C[:, 0]))
  frequency_F = np.float64(np.float32(spectrum.frequency_F))  # as the compiled program has them
  angle_IJF = (pos_I[:, None] - pos_J)[..., None] * frequency_F
  exact_HIJ = np.cos(angle_IJF).sum(-1) / (np.arange(1, heads + 1) * 8 / heads)[:, None, None]
  atol = 4 * EPS * exact_HIJ.max() + 6e-10 * 65_535 * frequency_F.sum() * heads / 8
  np.testing.assert_allclose(got_HIJ, exact_HIJ, atol=atol)
  if dtype == jnp.bfloat16 and width == 128:
    first = lambda x: np.float64(x[..., :width])
    single_HIJ = scale * np.einsum('ihc,jc->hij', first(q_IHC), first(k_J1C[:, 0]))
    assert np.abs(single_HIJ - exact_HIJ).max() > 50 * atol


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'compression': 0.0}, 'compression 0.0 would favour distant keys.*above 0'),
    ({'width': 7}, 'the width is 7. Use an even one'),
    ({'theta': 1.0}, 'theta = 1.0 gives no falling frequencies'),
  ],
)
def test_waves_that_cannot_be_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    positions.make('sandwich', **settings).spectrum(dims(4))
