"""Matrix products of a network, with a weight gradient that is fast on every platform."""

import functools

import jax
import jax.numpy as jnp

# For elementwise functions: their derivative computes them again from their inputs, which takes
# less time than to write and read what autodiff would keep, and less memory. Inside a scan over
# layers the two passes are different loops, so there is no common subexpression to guard against.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


@jax.custom_vjp
def project(x_ND: jax.Array, w_DO: jax.Array) -> jax.Array:
  """y[..., o] = sum_d x[..., d] w[d, o], in the type of x; w is cast to it.

  Like `x @ w`, apart from the derivative of w: one product that contracts the token axes of both
  operands, summed in float32 and returned in the type of w. What autodiff writes makes XLA on CPU
  copy a transposed cotangent (half of the time of an MLP's forward and backward pass), and in
  bfloat16 rounds the gradient of float32 weights.
  """
  return x_ND @ w_DO.astype(x_ND.dtype)


def affine(x_ND: jax.Array, w_DO: jax.Array, bias_O: jax.Array | None) -> jax.Array:
  """`project`, and the bias where there is one."""
  y_NO = project(x_ND, w_DO)
  return y_NO if bias_O is None else y_NO + bias_O.astype(y_NO.dtype)


def _forward(x_ND, w_DO):
  return project(x_ND, w_DO), (x_ND, w_DO)


def _backward(saved, g_NO):
  x_ND, w_DO = saved
  tokens = tuple(range(x_ND.ndim - 1))
  dw_DO = jax.lax.dot_general(
    x_ND, g_NO, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
  )
  return g_NO @ w_DO.astype(g_NO.dtype).T, dw_DO.astype(w_DO.dtype)


project.defvjp(_forward, _backward)
