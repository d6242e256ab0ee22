"""p-RoPE, or proportional RoPE: rotary position embedding without its slowest waves."""

import dataclasses

import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class PRoPE(Scheme):
  """Rotates pairs as RoPE does, but only the fastest F (Barbero et al. 2024, arXiv:2410.06205,
  sec. 6; "proportional" in transformers and Gemma).

    pair (f, f + K/2) turns by pos * theta^(-2f/K) for f < F = int(share * K // 2), else not at all

  The exponent has K, not 2F: turning fewer pairs leaves the frequencies of the others as they are.
  The pairs stay K/2 apart, so what turns is no prefix of the head.

  share: of the pairs that turns, above 0, at most 1, which is RoPE. At least one pair must.
  theta: base of the wavelengths, 2 pi to at most 2 pi theta tokens. Above 1.

  The spectrum holds the F frequencies that are not 0, so that every extension sees a geometric
  series: NTK-aware, for one, stretches the slowest pair that turns by exactly its factor.
  """

  share: float = 0.75
  theta: float = 10_000.0

  def __post_init__(self):
    if not 0 < self.share <= 1:
      raise ValueError(
        f'p-RoPE cannot turn a share of {self.share} of the pairs. Use 0 < share <= 1.'
      )

  def spectrum(self, dims):
    F = int(round(self.share * dims.head_width, 6) // 2)  # 2 / 98 * 98 is 1.9999999999999998
    if F < 1:
      raise ValueError(
        f'A share of {self.share} turns none of the {dims.head_width // 2} pairs of a head. '
        f'Use a share of at least {2 / dims.head_width}, or the scheme without positions.'
      )
    frequency_F = geometric_frequencies(dims.head_width, self.theta)[:F]
    return Spectrum(frequency_F=frequency_F, amplitude=1.0)

  def query(self, params, spectrum, q_LHK, pos_L):
    return turn(q_LHK, spectrum, pos_L)

  def key(self, params, spectrum, k_LGK, pos_L):
    return turn(k_LGK, spectrum, pos_L)


def turn(x_LHK, spectrum, pos_L):
  """x rotated: pairs after the last frequency have frequency 0, and so get the amplitude, too."""
  w_F = spectrum.frequency_F
  still = x_LHK.shape[-1] // 2 - w_F.shape[-1]
  w_F = jnp.pad(w_F, [(0, 0)] * (w_F.ndim - 1) + [(0, still)])
  return rotate(x_LHK, w_F, pos_L, spectrum.amplitude)
