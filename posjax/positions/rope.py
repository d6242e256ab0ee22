"""Rotary position embedding: queries and keys turn with their position."""

import dataclasses

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoPE(Scheme):
  """Rotates pair f of each query and key head by pos * theta^(-2f/K) (Su et al. 2021,
  arXiv:2104.09864, eq. 34), so that their product depends on the distance alone.

  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  """

  theta: float = 10_000.0

  def spectrum(self, dims):
    return Spectrum(frequency_F=geometric_frequencies(dims.head_width, self.theta), amplitude=1.0)

  def query(self, params, spectrum, q_LHK, pos_L):
    return rotate(q_LHK, spectrum.frequency_F, pos_L, spectrum.amplitude)

  def key(self, params, spectrum, k_LGK, pos_L):
    return rotate(k_LGK, spectrum.frequency_F, pos_L, spectrum.amplitude)
