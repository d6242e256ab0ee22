"""Inverse frequencies, waves, and the rotation shared by every scheme that rotates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def geometric_frequencies(width: int, theta: float) -> np.ndarray:
  """frequency[f] = theta^(-2 f / width), f = 0 .. width/2 - 1, in radians per token, float64.

  Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5; Su et al. 2021, arXiv:2104.09864, eq. 15.
  Raises ValueError if width is odd or not positive, or theta is not above 1.
  """
  if width < 2 or width % 2:
    raise ValueError(f'Rotation acts on pairs, but the width is {width}. Use an even one.')
  if not theta > 1:
    raise ValueError(f'theta = {theta} gives no falling frequencies. Use theta > 1, e.g. 10000.')
  return theta ** (-np.arange(0, width, 2, dtype=np.float64) / width)


def waves(pos_L: jax.Array, frequency_F: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(cos_LF, sin_LF) of pos * frequency[f], float32.

  For products of waves of two positions, which are to hold what a wave of their distance does: an
  angle is off by 3e-10 of itself up to position 65,535, where a rounded one is by 6e-8. It is the
  sum of two, one of them exact: the first 8 bits of a frequency, times 16 of a position.
  """
  pos_L1, w_F = (jnp.asarray(x, jnp.float32) for x in (pos_L[..., None], frequency_F))
  high_F = lax.reduce_precision(w_F, exponent_bits=8, mantissa_bits=7)
  a_LF, b_LF = pos_L1 * high_F, pos_L1 * (w_F - high_F)
  cos_LF = jnp.cos(a_LF) * jnp.cos(b_LF) - jnp.sin(a_LF) * jnp.sin(b_LF)
  return cos_LF, jnp.sin(a_LF) * jnp.cos(b_LF) + jnp.cos(a_LF) * jnp.sin(b_LF)


def wave_sums(
  cos_XF: jax.Array, sin_XF: jax.Array, frequency_F: jax.Array, first, count: int
) -> jax.Array:
  """sum_XR of cos[x,f] cos(w[f] r) + sin[x,f] sin(w[f] r) over f, float32, for `count` whole
  distances r = first, first - 1, ...

  By angle addition, C distances at a time: R / C + C waves, which cost more than products, not R.
  """
  C = 1 << round(math.log2(len(cos_XF) * count) / 2)
  starts_N = first - C * jnp.arange(-(-count // C))
  (cos_NF, sin_NF), (cos_CF, sin_CF) = (
    map(once, waves(r_L, frequency_F)) for r_L in (starts_N, jnp.arange(C))
  )
  cos_X1F, sin_X1F = cos_XF[:, None], sin_XF[:, None]
  both_XND = jnp.concatenate(
    [cos_X1F * cos_NF + sin_X1F * sin_NF, cos_X1F * sin_NF - sin_X1F * cos_NF], axis=-1
  )
  wave_CD = jnp.concatenate([cos_CF, sin_CF], axis=-1)
  sum_XNC = jnp.matmul(both_XND, wave_CD.T, precision='highest')
  return sum_XNC.reshape(len(cos_XF), -1)[:, :count]


def once(x_LF: jax.Array) -> jax.Array:
  """x_LF, bit for bit: waves that many vectors meet.

  Outside of a loop over layers, from which they are lifted, XLA on CPU computes them anew for each
  head, and for each half of it, which takes longer than all else that a rotation does. It does not
  reach beyond a product, here with the identity.
  """
  product = lambda x_LF: jnp.matmul(x_LF, jnp.eye(x_LF.shape[-1]), precision='highest')
  return lax.platform_dependent(x_LF, cpu=product, default=lambda x_LF: x_LF)


def angles(pos_L: jax.Array, frequency_F: jax.Array) -> jax.Array:
  """angle_LF = pos * frequency[f], float32 whatever a model computes in: bfloat16 cannot even hold
  position 257. Frequencies [P, F] are those of each position, which is a whole number below P."""
  if frequency_F.ndim == 2:
    frequency_F = frequency_F[pos_L]
  return pos_L.astype(jnp.float32)[:, None] * frequency_F.astype(jnp.float32)


def rotate(x_LHK: jax.Array, frequency_F: jax.Array, pos_L: jax.Array, amplitude=1.0) -> jax.Array:
  """Turns pair f of each head by the angle pos * frequency[f] (Su et al. 2021, eq. 34).

    y[f]     = amplitude (x[f] cos(a) - x[f + F] sin(a))
    y[f + F] = amplitude (x[f + F] cos(a) + x[f] sin(a))

  Pairs are (f, f + F), the half-split layout of GPT-NeoX, Llama in transformers and Gemma, not
  (2f, 2f + 1) as in GPT-J and Meta's Llama, whose weights must be permuted to run here.
  Dimensions past 2F pass through. Angles, cosines and sines are float32, whatever x is. The result
  has the type of x. Frequencies and amplitude may be those of each position: [P, F] and [P].

  Raises ValueError if 2F is larger than the head width.
  """
  F, K = frequency_F.shape[-1], x_LHK.shape[-1]
  if 2 * F > K:
    raise ValueError(
      f'{F} frequencies rotate {2 * F} dimensions, but a head has {K}. Use at most {K // 2}.'
    )
  angle_L1F = angles(pos_L, frequency_F)[:, None, :]
  gain = at_position(amplitude, pos_L)
  cos_L1F, sin_L1F = (once(gain * wave(angle_L1F)) for wave in (jnp.cos, jnp.sin))
  a_LHF, b_LHF = x_LHK[..., :F], x_LHK[..., F : 2 * F]
  turned = [a_LHF * cos_L1F - b_LHF * sin_L1F, b_LHF * cos_L1F + a_LHF * sin_L1F]
  return jnp.concatenate([y.astype(x_LHK.dtype) for y in turned] + [x_LHK[..., 2 * F :]], axis=-1)


def at_position(amplitude, pos_L: jax.Array):
  """What multiplies arrays [L, heads, ...]: the amplitude, or its number for each position."""
  amplitude = jnp.asarray(amplitude, jnp.float32)
  return amplitude if amplitude.ndim == 0 else amplitude[pos_L][:, None, None]
