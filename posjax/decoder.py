"""The decoder language model: embedding, pre-norm blocks, head.

Letters: B batch, L tokens, D model width, M MLP width, V vocabulary.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from posjax import positions
from posjax.attend import FORMS, Mask, Rows
from posjax.attention import Attention
from posjax.extension import Spectrum, extend
from posjax.linear import project, recomputed
from posjax.norm import NORMS
from posjax.positions import Dims, Scheme

DTYPES = ('auto', 'float32', 'bfloat16', 'float16')
REMAT = {
  'none': None,
  'block': lambda block: nn.remat(block, prevent_cse=False),
  'dots': lambda block: nn.remat(
    block,
    prevent_cse=False,
    policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  ),
}


@recomputed
def gated(gate_BLM, up_BLM):
  return jax.nn.silu(gate_BLM) * up_BLM


@recomputed
def gelu(x_BLM):
  return jax.nn.gelu(x_BLM, approximate=True)


class GatedMLP(nn.Module):
  """(silu(x gate) * (x up)) down, SwiGLU without biases (Shazeer 2020, arXiv:2002.05202)."""

  width: int
  output_scale: float

  @nn.compact
  def __call__(self, x_BLD):
    D, M = x_BLD.shape[-1], self.width
    gate_DM = self.param('gate_DM', nn.initializers.normal(D**-0.5), (D, M))
    up_DM = self.param('up_DM', nn.initializers.normal(D**-0.5), (D, M))
    down_MD = self.param('down_MD', nn.initializers.normal(self.output_scale * M**-0.5), (M, D))
    return project(gated(project(x_BLD, gate_DM), project(x_BLD, up_DM)), down_MD)


class PlainMLP(nn.Module):
  """gelu(x up) down, without biases; GELU in its tanh form, as GPT-2's."""

  width: int
  output_scale: float

  @nn.compact
  def __call__(self, x_BLD):
    D, M = x_BLD.shape[-1], self.width
    up_DM = self.param('up_DM', nn.initializers.normal(D**-0.5), (D, M))
    down_MD = self.param('down_MD', nn.initializers.normal(self.output_scale * M**-0.5), (M, D))
    return project(gelu(project(x_BLD, up_DM)), down_MD)


MLPS = {'gated': GatedMLP, 'plain': PlainMLP}


class Block(nn.Module):
  """Adds attention(norm(x)), then mlp(norm(x)): pre-norm (Xiong et al. 2020, arXiv:2002.04745)."""

  model: 'Decoder'

  @nn.compact
  def __call__(self, x_BLD, position, rows_B):
    m = self.model
    norm = NORMS[m.norm]
    params, spectrum = position
    if m.scheme.per_layer:
      params = learned(self, m.scheme, m.dims)
    # Each block adds to the residual stream; 1/sqrt(2 N) keeps its variance (GPT-2, sec. 2.3).
    output_scale = (2 * m.layers) ** -0.5
    attention = Attention(
      scheme=m.scheme,
      heads=m.heads,
      kv_heads=m.kv_heads,
      head_width=m.head_width,
      mask=Mask(window=m.window),
      qk_norm=m.qk_norm,
      form=m.attention,
      output_scale=output_scale,
      name='attention',
    )
    x_BLD += attention(norm(name='attention_norm')(x_BLD), (params, spectrum), rows_B)
    mlp = MLPS[m.mlp](m.mlp_width, output_scale, name='mlp')
    return x_BLD + mlp(norm(name='mlp_norm')(x_BLD)), None


class Decoder(nn.Module):
  """A causal language model around one position scheme. Fields: configs/base.py, `model`.

  length: tokens of a training row, which some schemes need to size their tables.

  Parameters are float32, one stacked array per weight for all layers: the layers run as one scan,
  so compile time does not grow with depth. Activations have `dtype`.
  """

  scheme: Scheme
  length: int
  vocabulary: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int
  window: int | None = None
  mlp: str = 'gated'
  norm: str = 'rms'
  qk_norm: bool = False
  tied: bool = False
  dtype: str = 'auto'
  remat: str = 'none'
  attention: str = 'auto'

  def __post_init__(self):
    super().__post_init__()
    choices = {
      'mlp': MLPS, 'norm': NORMS, 'dtype': DTYPES, 'remat': REMAT, 'attention': ('auto', *FORMS),
    }
    for field, allowed in choices.items():
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"model.{field} = '{getattr(self, field)}' is unknown. Use one of: {', '.join(allowed)}."
        )
    for field in (
      'length', 'vocabulary', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width',
    ):
      if getattr(self, field) is None or getattr(self, field) < 1:
        raise ValueError(f'model.{field} = {getattr(self, field)}. Use a whole number >= 1.')
    if self.heads % self.kv_heads:
      raise ValueError(
        f'{self.heads} query heads cannot share {self.kv_heads} key/value heads evenly. '
        'Make model.kv_heads a divisor of model.heads.'
      )

  @property
  def dims(self) -> Dims:
    return Dims(
      width=self.width,
      heads=self.heads,
      kv_heads=self.kv_heads,
      head_width=self.head_width,
      length=self.length,
    )

  @property
  def compute_dtype(self):
    if self.dtype != 'auto':
      return jnp.dtype(self.dtype)
    return jnp.dtype('float32' if jax.default_backend() == 'cpu' else 'bfloat16')

  def spectrum(self) -> Spectrum:
    """The scheme's spectrum as trained, on the host in float64."""
    return self.scheme.spectrum(self.dims)

  def setup(self):
    D, V = self.width, self.vocabulary
    self.embedding_VD = self.param('embedding_VD', nn.initializers.normal(D**-0.5), (V, D))
    if not self.tied:
      self.head_DV = self.param('head_DV', nn.initializers.normal(D**-0.5), (D, V))
    if not self.scheme.per_layer:
      self.position = learned(self, self.scheme, self.dims)
    block = REMAT[self.remat](Block) if REMAT[self.remat] else Block
    self.blocks = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=self.layers,
    )(model=self.clone(parent=None))
    self.final_norm = NORMS[self.norm]()

  def hidden(
    self, tokens_BL, spectrum, positions_BL=None, segments_BL=None, contiguous: bool = False
  ):
    """hidden_BLD, normalised, from which `logits` reads the next token.

    positions_BL: None counts 0, 1, 2, ... along each row.
    segments_BL: number of each token's document within its row; None: one document per row.
    contiguous: promises that given positions rise by one within each document (`attend.Rows`).
    """
    index_L = jnp.arange(tokens_BL.shape[1])
    if positions_BL is None:
      positions_BL, contiguous = jnp.broadcast_to(index_L, tokens_BL.shape), True
    rows_B = Rows(
      index_L=index_L, pos_L=positions_BL, segment_L=segments_BL, contiguous=contiguous
    )
    params = {} if self.scheme.per_layer else self.position
    # Rows of variance 1, while the same matrix, as the head, gives logits of variance 1.
    x_BLD = (self.embedding_VD[tokens_BL] * self.width**0.5).astype(self.compute_dtype)
    embed = lambda x_LD, pos_L: self.scheme.embed(params, spectrum, x_LD, pos_L)
    x_BLD, _ = self.blocks(jax.vmap(embed)(x_BLD, rows_B.pos_L), (params, spectrum), rows_B)
    return self.final_norm(x_BLD)

  def logits(self, hidden_BLD):
    """logits_BLV, float32."""
    head_DV = self.embedding_VD.T if self.tied else self.head_DV
    return project(hidden_BLD, head_DV).astype(jnp.float32)

  def __call__(
    self, tokens_BL, spectrum, positions_BL=None, segments_BL=None, contiguous: bool = False
  ):
    """logits_BLV, float32: memory B x L x V; training goes through posjax.loss instead."""
    return self.logits(self.hidden(tokens_BL, spectrum, positions_BL, segments_BL, contiguous))


def build(config: ConfigDict) -> Decoder:
  """The model of an experiment (configs/base.py, complete: with a vocabulary).

  Its tables have the length that its weights were first trained at, also where training goes on at
  another one. Raises ValueError for an unknown scheme, hyperparameter or value.
  """
  return Decoder(
    scheme=positions.make(**config.position),
    length=config.extension.trained_length or config.train.length,
    **config.model,
  )


def as_trained(model: Decoder, config: ConfigDict) -> Spectrum:
  """The spectrum the run trains with: the scheme's own, after the config's extension."""
  return extend(model.spectrum(), **config.extension)


def learned(module: nn.Module, scheme: Scheme, dims: Dims):
  """The scheme's learned parameters as parameters of `module`, if it has any."""
  shapes = jax.eval_shape(lambda key: scheme.init(key, dims), jax.random.key(0))
  return module.param('position', scheme.init, dims) if jax.tree.leaves(shapes) else {}


def check_length(model: Decoder, spectrum: Spectrum, length: int) -> None:
  """Raises ValueError if the scheme has no positions for `length` tokens under `spectrum`."""
  capacity = model.scheme.capacity(spectrum, model.dims)
  if length > capacity:
    factor = math.ceil(length / model.scheme.capacity(model.spectrum(), model.dims))
    raise ValueError(
      f'The position scheme has {capacity:.0f} positions, but the sequence has {length} tokens. '
      f'Use at most {capacity:.0f} tokens, or stretch them: extension linear, factor {factor}.'
    )
