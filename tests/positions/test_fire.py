import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.extension import extend

DIMS = positions.Dims(width=16, heads=3, kv_heads=1, head_width=8, length=64)
EPS = np.finfo(np.float32).eps


def network(z, p):
  """Linear(1, M), ReLU, Linear(M, H) without the last offset, one unit after another."""
  bias_H = np.zeros(len(p['output_HM']))
  for m in range(len(p['slope_M'])):
    bias_H += p['output_HM'][:, m] * max(p['slope_M'][m] * z + p['offset_M'][m], 0)
  return bias_H


def normalised(m, n, p, threshold):
  """Sec. 3 and the public code (`FIRE.forward`), of query position m and key position n."""
  longest = max(m, abs(p['multiplier'] * threshold))
  return math.log(abs(p['c'] * (m - n)) + 1) / (math.log(abs(p['c'] * longest) + 1) + 1e-6)


def by_distance_alone(m, n, p, threshold):
  """Known-wrong: the threshold normalises every query, which makes it a table by distance."""
  return normalised(m, n, p, threshold) * (
    math.log(abs(p['c'] * max(m, abs(p['multiplier'] * threshold))) + 1)
    / math.log(abs(p['c'] * p['multiplier'] * threshold) + 1)
  )


def by_key(m, n, p, threshold):
  """Known-wrong: the normaliser takes the key's position."""
  longest = max(n, abs(p['multiplier'] * threshold))
  return math.log(abs(p['c'] * (m - n)) + 1) / math.log(abs(p['c'] * longest) + 1)


def without_logarithm(m, n, p, threshold):
  """Known-wrong: distances interpolated as they are."""
  return (m - n) / max(m, abs(p['multiplier'] * threshold))


def learned(rng, width=32):
  """Parameters away from where they start, c and multiplier negative: only their size counts."""
  return {
    'c': np.float32(-0.3),
    'multiplier': np.float32(-0.7),
    'slope_M': np.float32(rng.normal(size=width)),
    'offset_M': np.float32(rng.normal(size=width)),
    'output_HM': np.float32(rng.normal(size=(3, width))),
  }


def tile(pos_I, pos_J, contiguous=False, start=0):
  """start: place in the row of the document whose positions these are."""
  rows = lambda pos_L: Rows(
    index_L=start + jnp.asarray(pos_L), pos_L=jnp.asarray(pos_L), contiguous=contiguous
  )
  return Tile(rows(pos_I), rows(pos_J))


def biases(p, tile, factor=1.0, **settings):
  scheme = positions.make('fire', **settings)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=64)
  s_HIJ = np.zeros((3, len(tile.query.pos_L), len(tile.key.pos_L)), np.float32)
  score = jax.jit(lambda p, s_HIJ, tile: scheme.score(p, spectrum, s_HIJ, tile))
  return np.asarray(score(p, s_HIJ, tile))


POS_I, POS_J = np.array([0, 1, 44, 45, 46, 300]), np.array([0, 1, 30, 44])
ATOL = 2000 * EPS  # 32 products of three numbers around 1, and of z with an error of some EPS


@pytest.mark.parametrize('factor', [1.0, 4.0])
@pytest.mark.parametrize('settings', [{}, {'threshold': 512.0}, {'threshold': 2.0}, {'width': 5}])
def test_the_bias_is_the_papers(rng, settings, factor):
  p, threshold = learned(rng, settings.get('width', 32)), settings.get('threshold', 64.0)
  got_HIJ = biases(p, tile(POS_I, POS_J), factor, **settings)
  for i, j in np.ndindex(len(POS_I), len(POS_J)):
    m, n = POS_I[i] / factor, POS_J[j] / factor
    exact_H = network(normalised(m, n, p, threshold), p)
    np.testing.assert_allclose(got_HIJ[:, i, j], exact_H, atol=ATOL)


@pytest.mark.parametrize('wrong', [by_distance_alone, by_key, without_logarithm])
def test_variants_known_to_be_wrong_are_not_ours(rng, wrong):
  p = learned(rng)
  got_H = biases(p, tile([300], [100]), threshold=64.0)[:, 0, 0]
  assert np.abs(got_H - network(wrong(300, 100, p, 64.0), p)).max() > 0.05


def test_the_normalised_distance_is_1_at_the_first_token_past_the_threshold(rng):
  p = learned(rng)
  for m in (45, 300, 100_000):
    got_H = biases(p, tile([m], [0]))[:, 0, 0]
    np.testing.assert_allclose(got_H, network(1, p), atol=ATOL)


def test_a_packed_document_is_normalised_by_its_own_positions(rng):
  """Its place in the row does not count, promised contiguous or not."""
  p, pos_L = learned(rng), np.arange(200)
  alone = biases(p, tile(pos_L, pos_L))
  for contiguous in (True, False):
    packed = biases(p, tile(pos_L, pos_L, contiguous, start=500))
    np.testing.assert_allclose(packed, alone, atol=ATOL)


def test_it_is_added_to_the_logits(rng):
  scheme, p = positions.make('fire'), learned(rng)
  s_HIJ = np.float32(rng.normal(size=(3, 6, 4)))
  got_HIJ = scheme.score(p, scheme.spectrum(DIMS), jnp.asarray(s_HIJ), tile(POS_I, POS_J))
  np.testing.assert_allclose(got_HIJ - biases(p, tile(POS_I, POS_J)), s_HIJ, atol=ATOL)


def test_gradients_are_those_of_the_network_written_out(rng):
  """Recomputed row by row; against one product over all pairs at once."""
  scheme, p, rows = positions.make('fire', threshold=20.0), learned(rng), np.arange(30)
  g_HIJ = np.float32(rng.normal(size=(3, 30, 30)))

  def ours(p):
    score = scheme.score(p, scheme.spectrum(DIMS), jnp.zeros((3, 30, 30)), tile(rows, rows))
    return (g_HIJ * score).sum()

  def written_out(p):
    longest_I1 = jnp.maximum(rows, jnp.abs(p['multiplier'] * 20))[:, None]
    r_IJ = jnp.abs(rows[:, None] - rows)
    z_IJ = jnp.log(jnp.abs(p['c'] * r_IJ) + 1) / (jnp.log(jnp.abs(p['c'] * longest_I1) + 1) + 1e-6)
    hidden_IJM = jax.nn.relu(z_IJ[..., None] * p['slope_M'] + p['offset_M'])
    return (g_HIJ * jnp.einsum('hm,ijm->hij', p['output_HM'], hidden_IJM)).sum()

  got, exact = jax.jit(lambda p: (jax.grad(ours)(p), jax.grad(written_out)(p)))(p)
  for name in exact:
    atol = 64 * 30 * EPS * (1 + np.abs(exact[name]).max())
    np.testing.assert_allclose(got[name], exact[name], atol=atol, err_msg=name)


def test_parameters_begin_as_in_the_public_code():
  p = positions.make('fire', width=2000).init_layer(jax.random.key(0), DIMS)
  assert (p['c'], p['multiplier']) == (np.float32(0.1), 1)
  for name, bound in (('slope_M', 1), ('offset_M', 1), ('output_HM', 2000**-0.5)):
    assert 0.99 * bound < np.abs(p[name]).max() <= bound
    assert abs(p[name].mean()) < 5 * bound / (3 * p[name].size) ** 0.5
  assert p['output_HM'].shape == (3, 2000)


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'width': 0}, '0 hidden units has no bias. Use at least 1'),
    ({'threshold': 0.0}, 'threshold 0.0 divides by the logarithm of 1.*above 0'),
  ],
)
def test_networks_that_cannot_be_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    positions.make('fire', **settings)
