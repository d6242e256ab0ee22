"""Partial rotary position embedding: the first dimensions of each head turn, the rest never do."""

import dataclasses

from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialRoPE(Scheme):
  """Rotates the first R = int(share * K) dimensions of each query and key head (Black et al. 2022,
  arXiv:2204.06745, sec. 2.1.1; GPT-NeoX).

    pair (f, f + R/2) turns by pos * theta^(-2f/R), f = 0 .. R/2 - 1; dimensions R .. K - 1 do not

  The exponent has R, not K: however few pairs turn, their wavelengths span 2 pi to 2 pi theta
  tokens.

  share: of the head width that turns, above 0, at most 1; GPT-NeoX-20B has 0.25. R must be even.
  theta: base of the wavelengths. Above 1.
  """

  share: float = 0.5
  theta: float = 10_000.0

  def __post_init__(self):
    if not 0 < self.share <= 1:
      raise ValueError(
        f'Partial RoPE cannot turn a share of {self.share} of a head. Use 0 < share <= 1.'
      )

  def spectrum(self, dims):
    K = dims.head_width
    R = int(round(self.share * K, 6))  # 30 / 44 * 44 is 29.999999999999996
    if R < 2 or R % 2:
      raise ValueError(
        f'A share of {self.share} turns {R} of {K} dimensions, but they turn in pairs. '
        f'Use a share that gives an even number, e.g. {2 * max(1, R // 2) / K}.'
      )
    return Spectrum(frequency_F=geometric_frequencies(R, self.theta), amplitude=1.0)

  def query(self, params, spectrum, q_LHK, pos_L):
    return rotate(q_LHK, spectrum.frequency_F, pos_L, spectrum.amplitude)

  def key(self, params, spectrum, k_LGK, pos_L):
    return rotate(k_LGK, spectrum.frequency_F, pos_L, spectrum.amplitude)
