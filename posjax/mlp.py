"""What a block has beside attention: gated and plain MLPs, and experts among them.

Letters: B batch, L tokens, D model width, M MLP width.
"""

import flax.linen as nn
from jax.sharding import Mesh

from posjax.activation import Gate, activate
from posjax.linear import affine
from posjax.moe import Experts, Routing

ZEROS = nn.initializers.zeros


class GatedMLP(nn.Module):
  """(f(x gate) * (x up)) down; SwiGLU where f is silu (Shazeer 2020, arXiv:2002.05202)."""

  width: int
  output_scale: float
  gate: Gate
  biased: bool = False

  @nn.compact
  def __call__(self, x_BLD):
    D, M = x_BLD.shape[-1], self.width
    bias = lambda name, size: self.param(name, ZEROS, (size,)) if self.biased else None
    gate_DM = self.param('gate_DM', nn.initializers.normal(D**-0.5), (D, M))
    up_DM = self.param('up_DM', nn.initializers.normal(D**-0.5), (D, M))
    down_MD = self.param('down_MD', nn.initializers.normal(self.output_scale * M**-0.5), (M, D))
    gate_BLM = affine(x_BLD, gate_DM, bias('gate_bias_M', M))
    up_BLM = affine(x_BLD, up_DM, bias('up_bias_M', M))
    return affine(self.gate(gate_BLM, up_BLM), down_MD, bias('down_bias_D', D))


class PlainMLP(nn.Module):
  """f(x up) down."""

  width: int
  output_scale: float
  activation: str
  biased: bool = False

  @nn.compact
  def __call__(self, x_BLD):
    D, M = x_BLD.shape[-1], self.width
    bias = lambda name, size: self.param(name, ZEROS, (size,)) if self.biased else None
    up_DM = self.param('up_DM', nn.initializers.normal(D**-0.5), (D, M))
    down_MD = self.param('down_MD', nn.initializers.normal(self.output_scale * M**-0.5), (M, D))
    up_BLM = affine(x_BLD, up_DM, bias('up_bias_M', M))
    return affine(activate(self.activation, up_BLM), down_MD, bias('down_bias_D', D))


class MixedMLP(nn.Module):
  """The sum of shared experts, which are one gated MLP, and of the routed ones (posjax/moe.py)."""

  routing: Routing
  output_scale: float
  gate: Gate
  mesh: Mesh | None
  biases: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, x_BLD, real_BL=None):
    r, scale = self.routing, self.output_scale
    experts = Experts(
      r, activate=self.gate, output_scale=scale, mesh=self.mesh, biases=self.biases,
      name='experts',
    )  # fmt: skip
    out_BLD = experts(x_BLD, real_BL)
    if r.shared:
      shared = GatedMLP(r.shared * r.width, scale, self.gate, name='shared')
      out_BLD += shared(x_BLD)
    return out_BLD


MLPS = {'gated': GatedMLP, 'plain': PlainMLP, 'experts': MixedMLP}
USUAL = {'gated': 'silu', 'plain': 'gelu_tanh', 'experts': 'silu'}  # activation of each
