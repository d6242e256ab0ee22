"""No position encoding: order comes from the causal mask alone."""

import dataclasses

from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPE(Scheme):
  """Nothing at all (Kazemnejad et al. 2023, arXiv:2305.19466).

  The first token of each document is the anchor from which a causal decoder can count, so data
  must start documents with one, and packed documents must not see each other.
  """
