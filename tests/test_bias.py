import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax.bias import exact_parts, exact_products

TYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize('dtype', TYPES)
def test_parts_are_exact_and_add_up_to_float32(rng, dtype):
  x_X = np.float32(rng.normal(size=200) * 10.0 ** rng.integers(-1, 4, size=200))
  parts_XP = jax.jit(exact_parts, static_argnums=1)(x_X, dtype)
  np.testing.assert_array_equal(np.float64(parts_XP), np.float64(parts_XP.astype(dtype)))
  # float16 ends at 2^-24: what is below cannot be a part.
  atol = 2.0**-24 if dtype == jnp.float16 else 0
  np.testing.assert_allclose(np.float64(parts_XP).sum(-1), x_X, rtol=2.0**-24, atol=atol)


def test_parts_are_rounded_by_what_no_compiler_leaves_out():
  """A cast to bfloat16 and back may go, where excess precision is allowed, and two parts with it;
  this platform keeps casts, so the program is read."""
  program = str(jax.make_jaxpr(exact_parts, static_argnums=1)(jnp.ones(3), jnp.bfloat16))
  assert program.count('reduce_precision[exponent_bits=8 mantissa_bits=7]') == 3


@pytest.mark.parametrize('dtype', TYPES)
def test_products_of_parts_are_the_products_and_none_can_be_spared(rng, dtype):
  L, H, G, C = 6, 4, 2, 5
  q_LHC, k_LGC = np.float32(rng.normal(size=(L, H, C))), np.float32(rng.normal(size=(L, G, C)))
  q_LHX, k_LGX = exact_products(jnp.asarray(q_LHC), jnp.asarray(k_LGC), dtype)
  pairs = 1 if dtype == jnp.float32 else 6
  assert (q_LHX.shape, k_LGX.shape) == ((L, H, C * pairs), (L, G, C * pairs))
  for x in (q_LHX, k_LGX):
    np.testing.assert_array_equal(np.float64(x), np.float64(x.astype(dtype)))
  each = lambda x, count: np.repeat(np.float64(x), count, axis=1)
  terms_IJHX = each(q_LHX, 1)[:, None] * each(k_LGX, H // G)[None]
  exact_IJH = (each(q_LHC, 1)[:, None] * each(k_LGC, H // G)[None]).sum(-1)
  atol = 8 * C**0.5 * 2.0**-26 + (2.0**-22 if dtype == jnp.float16 else 0)
  np.testing.assert_allclose(terms_IJHX.sum(-1), exact_IJH, atol=atol)
  if dtype == jnp.bfloat16:
    for n in range(pairs):
      spared_IJH = np.delete(terms_IJHX, np.s_[n * C : n * C + C], axis=-1).sum(-1)
      assert np.abs(spared_IJH - exact_IJH).max() > 3 * atol
