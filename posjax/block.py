"""A layer of the decoder: attention and MLP around the residual stream; layers in their pattern.

Letters: B batch, L tokens, D model width.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from posjax.activation import Gate
from posjax.attend import Rows
from posjax.attention import Attention, Layer
from posjax.latent import LatentAttention
from posjax.mlp import MLPS, USUAL, MixedMLP
from posjax.norm import make_norm
from posjax.positions import Dims, merged

REMAT = {
  'none': None,
  'block': lambda block: nn.remat(block, prevent_cse=False),
  'dots': lambda block: nn.remat(
    block,
    prevent_cse=False,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
}
RESIDUALS = ('sequential', 'parallel', 'parallel_shared')
# Where a block normalises: what goes into its two parts, what comes out of them, the sums.
NORM_AT = {'input': ('input',), 'output': ('output',), 'both': ('input', 'output'), 'sum': ('sum',)}


class Block(nn.Module):
  """Adds attention and MLP to the residual stream.

    sequential       x += attention(norm(x));  x += mlp(norm(x))
    parallel         x += attention(norm(x)) + mlp(norm'(x))    (Wang & Komatsuzaki 2021, GPT-J)
    parallel_shared  the same with one norm for both

  Norms are at the input of each part, pre-norm (Xiong et al. 2020, arXiv:2002.04745), or elsewhere
  as NORM_AT has it: x += norm(part(x)), x += norm'(part(norm(x))), x = norm(x + part(x)).
  """

  model: Any  # the Decoder, whose fields say what layers are made of
  layer: Layer

  @nn.compact
  def __call__(self, x_BLD, position, rows_B, cache=None):
    """(x_BLD, cache): without a cache of the tokens before these, None."""
    m = self.model

    def norm(part: str, place: str = 'input'):
      if place not in NORM_AT[m.norm_at]:
        return lambda y_BLD: y_BLD
      name = f'{part}_norm' if place == 'input' else f'{part}_{place}_norm'
      return make_norm(m.norm, m.norm_epsilon, name)

    params, spectrum = position
    params = merged(params, learned(self, self.layer.scheme.init_layer, m.dims))
    # Each block adds to the residual stream; 1/sqrt(2 N) keeps its variance (GPT-2, sec. 2.3).
    output_scale = (2 * m.layers) ** -0.5
    attention = make_attention(m, self.layer, output_scale)
    attention_norm, past_BLD = norm('attention'), None
    if self.layer.segment is not None and cache is None:
      past_BLD = attention_norm(jax.lax.stop_gradient(x_BLD))
    y_BLD = attention_norm(x_BLD)
    out_BLD, cache = attention(y_BLD, (params, spectrum), rows_B, past_BLD, cache)
    out_BLD = norm('attention', 'output')(out_BLD)
    mlp = make_mlp(m, self.layer, output_scale, rows_B)
    if m.residual == 'sequential':
      x_BLD = norm('attention', 'sum')(x_BLD + out_BLD)
      out_BLD = mlp(norm('mlp')(x_BLD))
      return norm('mlp', 'sum')(x_BLD + norm('mlp', 'output')(out_BLD)), cache
    if m.residual == 'parallel':
      y_BLD = norm('mlp')(x_BLD)
    return x_BLD + out_BLD + norm('mlp', 'output')(mlp(y_BLD)), cache


def make_attention(model: Any, layer: Layer, output_scale: float) -> nn.Module:
  """What a block has first: heads with keys and values of their own, or one latent for all."""
  alike = {
    'layer': layer,
    'heads': model.heads,
    'head_width': model.head_width,
    'norm_epsilon': model.norm_epsilon,
    'form': model.attention,
    'output_scale': output_scale,
    'name': 'attention',
  }
  if model.latent is not None:
    return LatentAttention(latent=model.latent, **alike)
  return Attention(
    kv_heads=model.kv_heads, qk_norm=model.qk_norm, biases=model.biases, **alike
  )


def make_mlp(model: Any, layer: Layer, output_scale: float, rows_B: Rows) -> Callable:
  """What a block has beside attention, of its layer's kind."""
  kind = layer.mlp or model.mlp
  activation = model.activation or USUAL[kind]
  gate = Gate(activation=activation, limit=model.gate_limit, offset=model.gate_offset)
  if kind != 'experts':
    biased = 'mlp' in model.biases
    how = activation if kind == 'plain' else gate
    return MLPS[kind](model.mlp_width, output_scale, how, biased, name='mlp')
  real_BL = None if rows_B.segment_L is None else rows_B.segment_L > 0
  experts = MixedMLP(
    model.experts, output_scale, gate, model.mesh, biases=model.biases, name='mlp'
  )
  return functools.partial(experts, real_BL=real_BL)


class Period(nn.Module):
  """One block after the other, for patterns of several layers; `positions`: one for each."""

  model: Any
  pattern: tuple[Layer, ...]

  @nn.compact
  def __call__(self, x_BLD, positions, rows_B):
    block = REMAT[self.model.remat](Block) if REMAT[self.model.remat] else Block
    for n, (layer, position) in enumerate(zip(self.pattern, positions, strict=True)):
      x_BLD, _ = block(self.model, layer, name=f'layer_{n}')(x_BLD, position, rows_B)
    return x_BLD, None


def learned(module: nn.Module, init: Callable, dims: Dims, name: str = 'position'):
  """What a scheme's `init` or `init_layer` makes, as a parameter of `module` if it is anything."""
  shapes = jax.eval_shape(lambda key: init(key, dims), jax.random.key(0))
  return module.param(name, init, dims) if jax.tree.leaves(shapes) else {}
