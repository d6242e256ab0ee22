"""Normalisation of the last axis, in float32 whatever the type of its input."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from posjax.linear import recomputed


@recomputed
def rms_normalise(x, scale_D, epsilon):
  x32 = x.astype(jnp.float32)
  power = jnp.mean(x32 * x32, axis=-1, keepdims=True)
  return (x32 * jax.lax.rsqrt(power + epsilon) * scale_D).astype(x.dtype)


@recomputed
def layer_normalise(x, scale_D, bias_D, epsilon):
  x32 = x.astype(jnp.float32)
  x32 -= jnp.mean(x32, axis=-1, keepdims=True)
  variance = jnp.mean(x32 * x32, axis=-1, keepdims=True)
  return (x32 * jax.lax.rsqrt(variance + epsilon) * scale_D + bias_D).astype(x.dtype)


class RMSNorm(nn.Module):
  """y = x / sqrt(mean(x^2) + epsilon) * scale (Zhang & Sennrich 2019, arXiv:1910.07467)."""

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x):
    scale_D = self.param('scale_D', nn.initializers.ones, x.shape[-1:])
    return rms_normalise(x, scale_D, self.epsilon)


class LayerNorm(nn.Module):
  """y = (x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias; Ba et al. 2016, arXiv:1607.06450."""

  epsilon: float = 1e-5
  biased: bool = True

  @nn.compact
  def __call__(self, x):
    scale_D = self.param('scale_D', nn.initializers.ones, x.shape[-1:])
    bias_D = self.param('bias_D', nn.initializers.zeros, x.shape[-1:]) if self.biased else 0.0
    return layer_normalise(x, scale_D, bias_D, self.epsilon)


NORMS = {
  'rms': RMSNorm,
  'layer': LayerNorm,
  'layer_unbiased': functools.partial(LayerNorm, biased=False),
}


def make_norm(kind: str, epsilon: float | None, name: str | None = None) -> nn.Module:
  """One of NORMS; epsilon None takes its own."""
  return NORMS[kind](name=name) if epsilon is None else NORMS[kind](epsilon=epsilon, name=name)
