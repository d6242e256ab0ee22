import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax.linear import project


@pytest.mark.parametrize('leading', [(), (6,), (2, 3)])
def test_a_product_and_its_derivatives_are_those_of_the_definition(rng, tolerance, leading):
  D, O = 5, 4
  x, w, g = rng.normal(size=(*leading, D)), rng.normal(size=(D, O)), rng.normal(size=(*leading, O))
  y, dx, dw = np.zeros((*leading, O)), np.zeros(x.shape), np.zeros(w.shape)
  for n in np.ndindex(*leading):
    for d in range(D):
      for o in range(O):
        y[(*n, o)] += x[(*n, d)] * w[d, o]
        dx[(*n, d)] += g[(*n, o)] * w[d, o]
        dw[d, o] += x[(*n, d)] * g[(*n, o)]
  got, pull = jax.vjp(project, jnp.float32(x), jnp.float32(w))
  for ours, theirs in zip((got, *pull(jnp.float32(g))), (y, dx, dw), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=tolerance(D * max(leading, default=1)))


def test_the_gradient_of_a_float32_weight_is_not_rounded_to_the_type_of_the_activations(rng):
  x_ND = jnp.asarray(rng.normal(size=(64, 8)), jnp.bfloat16)
  g_NO = jnp.asarray(rng.normal(size=(64, 4)), jnp.bfloat16)
  w_DO = jnp.zeros((8, 4), jnp.float32)
  y_NO, pull = jax.vjp(project, x_ND, w_DO)
  dx_ND, dw_DO = pull(g_NO)
  exact_DO = np.float64(x_ND).T @ np.float64(g_NO)
  rounded_DO = np.float64(jnp.asarray(exact_DO, jnp.bfloat16))
  assert (y_NO.dtype, dx_ND.dtype, dw_DO.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(dw_DO, exact_DO, rtol=0, atol=1e-5)
  assert np.abs(rounded_DO - exact_DO).max() > 1e-2


def test_a_weight_used_under_vmap_gets_the_sum_of_its_gradients(rng, tolerance):
  x_BND, w_DO = jnp.float32(rng.normal(size=(3, 4, 5))), jnp.float32(rng.normal(size=(5, 2)))
  ours = jax.grad(lambda w: jnp.sum(jax.vmap(lambda x: project(x, w))(x_BND) ** 2))(w_DO)
  theirs = jax.grad(lambda w: jnp.sum((x_BND @ w) ** 2))(w_DO)
  np.testing.assert_allclose(ours, theirs, atol=5 * tolerance(12 * 5))
