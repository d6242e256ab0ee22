"""Sinusoids added to the embedded tokens."""

import dataclasses

import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import angles, geometric_frequencies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sinusoidal(Scheme):
  """Sines and cosines of the position (Vaswani et al. 2017, arXiv:1706.03762, sec. 3.5).

    x[l, 2f]     += amplitude * sin(pos[l] * frequency[f])
    x[l, 2f + 1] += amplitude * cos(pos[l] * frequency[f]),    frequency[f] = theta^(-2f / D)

  Sines and cosines alternate, as in the paper. Two other layouts are in the wild: [sin | cos]
  halves with the same exponents (Transformer-XL), and with exponents f / (D/2 - 1) (tensor2tensor,
  XGLM), which `halves` asks for: the slowest frequency is then 1 / theta.

  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  amplitude: of each wave, in units of the embedded tokens, which have variance 1 here.
  begin: position of the first token; 2 in XGLM.
  """

  theta: float = 10_000.0
  amplitude: float = 1.0
  halves: bool = False
  begin: int = dataclasses.field(default=0, metadata={'other': 2})

  relative = False

  def spectrum(self, dims):
    F = dims.width // 2
    if self.halves and F < 2:
      raise ValueError(f'Waves from 1 to 1 / theta need a width of 4 or more, not {dims.width}.')
    theta = self.theta ** (F / (F - 1)) if self.halves else self.theta
    return Spectrum(frequency_F=geometric_frequencies(dims.width, theta))

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    angle_LF = angles(pos_L + self.begin, spectrum.frequency_F)
    wave_LFX = jnp.stack([jnp.sin(angle_LF), jnp.cos(angle_LF)], axis=-2 if self.halves else -1)
    return x_LD + (self.amplitude * wave_LFX).reshape(x_LD.shape).astype(x_LD.dtype)
