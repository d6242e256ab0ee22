import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.extension import extend

DIMS = positions.Dims(width=16, heads=3, kv_heads=1, head_width=8, length=64)
P_H, A_H = [0.05, 0.7, 1.9], [0.02, 0.95, 0.3]
EPS = np.finfo(np.float32).eps


def bias(kernel, r, p, a):
  """Of the authors' code (megatron/mpu/layers.py), where distances to keys ahead are 0."""
  r = max(r, 0)
  return -p * math.log(1 + a * r) if kernel == 'log' else -a * r**p


def swapped(kernel, r, p, a):
  """Known-wrong: the two parameters for one another."""
  return bias(kernel, r, a, p)


def divided(kernel, r, p, a):
  """Known-wrong: the bias divided by sqrt(K) as the products are."""
  return bias(kernel, r, p, a) / math.sqrt(DIMS.head_width)


def params(kernel):
  """What is learned where the penalty has P_H and A_H."""
  raw_p_H = [math.log(math.expm1(p)) if kernel == 'log' else math.log(p / (2 - p)) for p in P_H]
  raw_a_H = [math.log(math.expm1(a)) for a in A_H]
  return {'raw_p_H': jnp.array(raw_p_H), 'raw_a_H': jnp.array(raw_a_H)}


def tile(pos_I, pos_J, contiguous=False):
  rows = lambda pos_L: Rows(
    index_L=jnp.asarray(pos_L), pos_L=jnp.asarray(pos_L), contiguous=contiguous
  )
  return Tile(rows(pos_I), rows(pos_J))


@pytest.mark.parametrize('factor', [1.0, 4.0])
@pytest.mark.parametrize('contiguous', [True, False])
@pytest.mark.parametrize('kernel', ['log', 'power'])
def test_the_bias_is_the_authors(rng, kernel, contiguous, factor):
  scheme = positions.make('kerple', kernel=kernel)
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=64)
  pos_I, pos_J = np.arange(298, 302), np.arange(0, 302)
  s_HIJ = np.float32(rng.normal(size=(3, 4, 302)))
  score = jax.jit(lambda params, s_HIJ, tile: scheme.score(params, spectrum, s_HIJ, tile))
  got_HIJ = np.asarray(score(params(kernel), s_HIJ, tile(pos_I, pos_J, contiguous)))
  wrong = {swapped: 0.0, divided: 0.0}
  for h, i, j in np.ndindex(3, 4, 302):
    pair = kernel, (pos_I[i] - pos_J[j]) / factor, P_H[h], A_H[h]
    exact = bias(*pair)
    # Rounding of p is multiplied by ln r in a power.
    bound = EPS * (1 + 16 * math.log(302) * abs(exact))
    assert abs(got_HIJ[h, i, j] - s_HIJ[h, i, j] - exact) < bound + 2 * EPS * abs(s_HIJ[h, i, j])
    for other in wrong:
      wrong[other] = max(wrong[other], abs(other(*pair) - exact))
  assert min(wrong.values()) > 0.5


def total(kernel, raw_p_H, raw_a_H, rate):
  """Sum of the biases of five tokens, keys ahead included, in float64."""
  p_H = [math.log1p(math.exp(x)) if kernel == 'log' else 2 / (1 + math.exp(-x)) for x in raw_p_H]
  a_H = [math.log1p(math.exp(x)) for x in raw_a_H]
  return sum(bias(kernel, rate * (i - j), p_H[h], a_H[h]) for h, i, j in np.ndindex(3, 5, 5))


@pytest.mark.parametrize('kernel', ['log', 'power'])
def test_gradients_are_exact_also_at_distance_0_and_for_keys_ahead(kernel):
  """r^p with p < 1 has an infinite slope at r = 0, and is not a number for r < 0."""
  scheme, pos_L, learned = positions.make('kerple', kernel=kernel), np.arange(5), params(kernel)

  def ours(learned, rate):
    spectrum = dataclasses.replace(scheme.spectrum(DIMS), rate=rate)
    return scheme.score(learned, spectrum, jnp.zeros((3, 5, 5)), tile(pos_L, pos_L)).sum()

  grads, of_rate = jax.grad(ours, argnums=(0, 1))(learned, jnp.float32(1))
  got = np.r_[grads['raw_p_H'], grads['raw_a_H'], of_rate]
  at = np.r_[learned['raw_p_H'], learned['raw_a_H'], 1.0].astype(np.float64)
  apart = lambda x: total(kernel, x[:3], x[3:6], x[6])
  step_XX = 1e-5 * np.eye(7)
  exact = [(apart(at + step) - apart(at - step)) / 2e-5 for step in step_XX]
  np.testing.assert_allclose(got, exact, rtol=1e-5)


@pytest.mark.parametrize('kernel', ['log', 'power'])
def test_no_step_of_an_optimizer_leaves_the_range_of_the_kernel(kernel):
  """Where the authors clamp: the penalty stays one, and a power stays at most a square."""
  scheme, far = positions.make('kerple', kernel=kernel), tile([1000], [0, 1000])
  for raw in (-30.0, 30.0):
    extreme = {'raw_p_H': jnp.full(3, raw), 'raw_a_H': jnp.full(3, -1.0)}
    bias_HIJ = scheme.score(extreme, scheme.spectrum(DIMS), jnp.zeros((3, 1, 2)), far)
    assert np.isfinite(bias_HIJ).all()
    assert (bias_HIJ[..., 0] < 0).all() and (bias_HIJ[..., 1] == 0).all()
    assert kernel == 'log' or (bias_HIJ[..., 0] >= -math.log1p(math.exp(-1)) * 1.001e6).all()


@pytest.mark.parametrize('kernel', ['log', 'power'])
def test_p_and_a_begin_uniform_on_the_authors_ranges(kernel):
  many = positions.Dims(width=16, heads=4000, kv_heads=1, head_width=8, length=64)
  learned = positions.make('kerple', kernel=kernel).init(jax.random.key(0), many)
  raw_p_H, raw_a_H = np.float64(learned['raw_p_H']), np.float64(learned['raw_a_H'])
  p_H = np.log1p(np.exp(raw_p_H)) if kernel == 'log' else 2 / (1 + np.exp(-raw_p_H))
  a_H = np.log1p(np.exp(raw_a_H))
  for drawn_H, highest in ((p_H, 1.99), (a_H, 1.0)):
    ranks_H = (np.arange(4000) + 0.5) / 4000
    expected_H = 0.01 + ranks_H * (highest - 0.01)
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by 999 of 1000 uniform samples.
    assert np.abs(np.sort(drawn_H) - expected_H).max() < 1.95 / 4000**0.5 * (highest - 0.01)
    assert drawn_H.min() > 0.0099


def test_a_kernel_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match=r"no kernel 'exp'\. Use one of: log, power"):
    positions.make('kerple', kernel='exp')
