"""Polar coordinate position embedding: content is the length of each wave, position its phase."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import angles, at_position, geometric_frequencies


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoPE(Scheme):
  """Each dimension of a head is the length of a wave, its position the angle (Gopalakrishnan et al.
  2025, arXiv:2509.10534, sec. 3).

    q . k = sum_f softplus(q[f]) softplus(k[f]) cos((pos[j] - pos[i]) theta^(-f/K) + phase[g,f])

  with f = 0 .. K - 1: K frequencies, where RoPE has K/2. Queries and keys become [t cos | t sin] of
  2K dimensions; values keep K, and logits are divided by sqrt(K), not sqrt(2K). Keys alone have the
  phase, learned for each of their heads and each layer (x-transformers shares it among layers), and
  clamped to [-2 pi, 0] radians. As in the paper, one that steps outside gets no gradient there.

  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  phase: initial phases are uniform in [-phase, 0], radians; 0 to 2 pi, the paper's two choices: 0
    for lengths beyond training, 2 pi within.
  """

  theta: float = 10_000.0
  phase: float = dataclasses.field(default=0.0, metadata={'other': 2 * math.pi})

  def __post_init__(self):
    if not 0 <= self.phase <= 2 * math.pi:
      raise ValueError(
        f'PoPE with initial phases in [{-self.phase}, 0] would leave [-2 pi, 0], where they are '
        'clamped. Use 0 <= phase <= 2 pi.'
      )

  def init_layer(self, key, dims):
    shape = (dims.kv_heads, dims.head_width)
    return {'phase_GK': -self.phase * jax.random.uniform(key, shape)}

  def spectrum(self, dims):
    frequency_F = geometric_frequencies(2 * dims.head_width, self.theta)
    return Spectrum(frequency_F=frequency_F, amplitude=1.0)

  def query(self, params, spectrum, q_LHK, pos_L):
    return polar(q_LHK, spectrum, pos_L)

  def key(self, params, spectrum, k_LGK, pos_L):
    return polar(k_LGK, spectrum, pos_L, clamped(params['phase_GK']))


def polar(x_LHK, spectrum: Spectrum, pos_L, phase_HK=0.0):
  """[t cos(angle) | t sin(angle)] with t = amplitude softplus(x), in the type of x."""
  angle_LHK = angles(pos_L, spectrum.frequency_F)[:, None] + phase_HK
  length_LHK = jax.nn.softplus(x_LHK.astype(jnp.float32)) * at_position(spectrum.amplitude, pos_L)
  waves = [length_LHK * jnp.cos(angle_LHK), length_LHK * jnp.sin(angle_LHK)]
  return jnp.concatenate(waves, axis=-1).astype(x_LHK.dtype)


def clamped(phase_GK):
  """Clamped to [-2 pi, 0], with derivative 1 at both ends: phases start at one, and there jnp.clip
  has 1/2 and lax.clamp 0."""
  return jnp.where(phase_GK > 0, 0, jnp.where(phase_GK < -2 * jnp.pi, -2 * jnp.pi, phase_GK))
