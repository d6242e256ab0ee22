import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.positions import Dims

DIMS = Dims(width=8, heads=3, kv_heads=1, head_width=4, length=64)


def test_a_query_is_multiplied_by_the_logarithm_of_the_keys_it_sees(rng):
  scheme, strength_H = positions.make('ssmax'), np.array([0.2, 0.43, 1.5], np.float32)
  pos_L = np.r_[0:20, 4095, 100_000]
  q_LHK = np.float32(rng.normal(size=(len(pos_L), 3, 4)))
  got = scheme.query({'strength_H': strength_H}, None, jnp.asarray(q_LHK), jnp.asarray(pos_L))
  for l, pos in enumerate(pos_L):
    for h in range(3):
      expected = q_LHK[l, h] * float(strength_H[h]) * math.log(pos + 1)
      np.testing.assert_allclose(got[l, h], expected, rtol=2e-6, atol=1e-7)


def test_each_head_starts_from_the_strength_that_is_set_and_learns_its_own():
  scheme = positions.make('ssmax', strength=0.7)
  params = scheme.parameters(jax.random.key(0), DIMS)
  np.testing.assert_array_equal(params['strength_H'], np.float32([0.7] * 3))
  q_LHK = jnp.ones((5, 3, 4))
  grads = jax.grad(lambda p: scheme.query(p, None, q_LHK, jnp.arange(5)).sum())(params)
  np.testing.assert_allclose(grads['strength_H'], 4 * math.log(math.factorial(5)), rtol=1e-6)


@pytest.mark.parametrize('strength', [0.0, -1.0, math.nan])
def test_a_strength_that_points_nowhere_is_refused(strength):
  with pytest.raises(ValueError, match='Use strength > 0'):
    positions.make('ssmax', strength=strength)
