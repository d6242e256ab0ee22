"""The decoder language model: embedding, blocks, head.

Letters: B batch, L tokens, D model width, V vocabulary.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from posjax import adaptive
from posjax.attend import Choice, Rows
from posjax.attention import Layer, choose_form
from posjax.block import Period, learned
from posjax.checks import check
from posjax.extension import Spectrum, each, spectra
from posjax.latent import Latent, decoupled
from posjax.linear import affine
from posjax.moe import Routing
from posjax.norm import make_norm
from posjax.positions import Dims, Scheme


class Decoder(nn.Module):
  """A causal language model around position schemes. Fields: configs/base.py, `model`.

  pattern: how its layers know positions, repeated over the depth; usually one for all.
  length: tokens of a training row, which some schemes need to size their tables.
  latent: of all layers, or None where heads have keys and values of their own.
  experts: of the layers whose MLP is that, else None.
  mesh: of the devices that experts lie on; None without experts, or on one device.

  Parameters are float32, one stacked array per weight for all repetitions of the pattern: they run
  as one scan, so compile time does not grow with depth. Layers left over, where the pattern does
  not divide the depth, come last. Activations have `dtype`.
  """

  pattern: tuple[Layer, ...]
  length: int
  vocabulary: int
  width: int
  layers: int
  heads: int
  kv_heads: int
  head_width: int
  mlp_width: int
  mlp: str = 'gated'
  activation: str | None = None
  gate_limit: float | None = None
  gate_offset: float = 0.0
  residual: str = 'sequential'
  norm: str = 'rms'
  norm_at: str = 'input'
  norm_epsilon: float | None = None
  qk_norm: str = 'none'
  biases: tuple[str, ...] = ()
  embedding_scale: float | None = None
  embedding_norm: bool = False
  tied: bool = False
  cutoffs: tuple[int, ...] | None = None
  logit_cap: float | None = None
  dtype: str = 'auto'
  remat: str = 'none'
  attention: str = 'auto'
  latent: Latent | None = None
  experts: Routing | None = None
  mesh: Mesh | None = None

  def __post_init__(self):
    super().__post_init__()
    check(self)

  @property
  def dims(self) -> Dims:
    """What a scheme sees: of latent attention the decoupled slice, which has one key head."""
    return Dims(
      width=self.width,
      heads=self.heads,
      kv_heads=self.kv_heads if self.latent is None else 1,
      head_width=self.head_width if self.latent is None else self.latent.slice,
      length=self.length,
    )

  @property
  def query_width(self) -> int:
    """Of a query or key head."""
    return self.head_width + (0 if self.latent is None else self.latent.slice)

  @property
  def scale(self) -> float:
    """Of the products of queries and keys."""
    return self.query_width**-0.5

  @property
  def compute_dtype(self):
    if self.dtype != 'auto':
      return jnp.dtype(self.dtype)
    return jnp.dtype('float32' if jax.default_backend() == 'cpu' else 'bfloat16')

  @property
  def schemes(self) -> tuple[Scheme, ...]:
    """The pattern's schemes, each once: layers of the same one share what all its layers share."""
    return tuple(dict.fromkeys(layer.scheme for layer in self.pattern))

  def spectrum(self) -> tuple[Spectrum, ...]:
    """The spectra of the pattern's layers as trained, on the host in float64."""
    fix = lambda one: dataclasses.replace(one, fixed=True)
    spectra = [layer.scheme.spectrum(self.dims) for layer in self.pattern]
    return tuple(
      spectrum if layer.extended else each(fix, spectrum)
      for layer, spectrum in zip(self.pattern, spectra, strict=True)
    )

  def capacity(self, spectrum) -> float:
    """Tokens after which one of the schemes has no position left."""
    pairs = zip(self.pattern, spectrum, strict=True)
    own = min(layer.scheme.capacity(one, self.dims) for layer, one in pairs)
    return min(own, *(one.capacity for one in spectra(spectrum)))

  def sample(self, spectrum, key):
    """The spectra of one training step."""
    keys = jax.random.split(key, len(self.pattern))
    rest = zip(self.pattern, spectrum, keys, strict=True)
    return tuple(layer.scheme.sample(one, key) for layer, one, key in rest)

  def setup(self):
    D, V = self.width, self.vocabulary
    self.embedding_VD = self.param('embedding_VD', nn.initializers.normal(D**-0.5), (V, D))
    if not self.tied:
      self.head_DV = self.param('head_DV', nn.initializers.normal(D**-0.5), (D, V))
    self.head_bias_V = None
    if 'head' in self.biases:
      self.head_bias_V = self.param('head_bias_V', nn.initializers.zeros, (V,))
    if self.cutoffs:
      C = len(self.cutoffs)
      self.cluster_DC = self.param('cluster_DC', nn.initializers.normal(D**-0.5), (D, C))
      self.cluster_bias_C = None
      if 'head' in self.biases:
        self.cluster_bias_C = self.param('cluster_bias_C', nn.initializers.zeros, (C,))
    norm = functools.partial(make_norm, self.norm, self.norm_epsilon)
    self.input_norm = norm() if self.embedding_norm else lambda x_BLD: x_BLD
    names = ['position', *(f'position_{n}' for n in range(1, len(self.schemes)))]
    self.shared = tuple(
      learned(self, scheme.init, self.dims, name)
      for name, scheme in zip(names, self.schemes, strict=True)
    )
    whole, rest = divmod(self.layers, len(self.pattern))
    if whole:
      self.blocks = self.repeated(self.pattern, whole)
    if rest:
      self.rest = self.repeated(self.pattern[:rest], 1)
    # Where sums are normalised, the last block has done it.
    self.final_norm = norm() if self.norm_at != 'sum' else lambda x_BLD: x_BLD

  def repeated(self, pattern: tuple[Layer, ...], times: int):
    """`times` x the pattern, as one scan over stacked parameters."""
    stack = nn.scan(
      Period,
      variable_axes={'params': 0, 'intermediates': 0, 'loads': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=times,
      check_constancy_invariants=False,  # nothing is shared along the depth: no trace for that
    )
    return stack(self.clone(parent=None), pattern)

  def hidden(
    self, tokens_BL, spectrum, positions_BL=None, segments_BL=None, contiguous: bool = False
  ):
    """hidden_BLD, normalised, from which `logits` reads the next token.

    spectrum: of each layer of the pattern.
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
    layers = zip(self.pattern, spectrum, strict=True)
    if any(layer.under(one, self.scale).mask.counts_from_begin for layer, one in layers):
      rows_B = rows_B.with_begin()
    x_BLD, positions = self.begin(tokens_BL, spectrum, positions_BL)
    whole, rest = divmod(self.layers, len(self.pattern))
    if whole:
      x_BLD, _ = self.blocks(x_BLD, positions, rows_B)
    if rest:
      x_BLD, _ = self.rest(x_BLD, positions[:rest], rows_B)
    return self.end(x_BLD)

  def begin(self, tokens_BL, spectrum, positions_BL):
    """What enters the first layer, x_BLD, and what each layer of the pattern knows of positions:
    (learned by its scheme for all layers, spectrum)."""
    positions = tuple(
      (self.shared[self.schemes.index(layer.scheme)], one)
      for layer, one in zip(self.pattern, spectrum, strict=True)
    )
    # Rows of variance 1, while the same matrix, as the head, gives logits of variance 1.
    scale = self.width**0.5 if self.embedding_scale is None else self.embedding_scale
    table_VD = self.embedding_VD
    if self.mesh is not None:  # told the rows' devices by the experts, XLA would copy x to all
      table_VD = jax.lax.with_sharding_constraint(table_VD, NamedSharding(self.mesh, P('tensor')))
    x_BLD = (table_VD[tokens_BL] * scale).astype(self.compute_dtype)
    embed = functools.partial(self.pattern[0].scheme.embed, *positions[0])
    return self.input_norm(jax.vmap(embed)(x_BLD, tokens_BL, positions_BL)), positions

  def end(self, x_BLD):
    """hidden_BLD of what leaves the last layer."""
    return self.final_norm(x_BLD)

  def logits(self, hidden_BLD):
    """logits_BLV, float32; of an adaptive softmax, logarithms of probabilities."""
    head_DV = self.embedding_VD.T if self.tied else self.head_DV
    logits_BLV = affine(hidden_BLD, head_DV, self.head_bias_V).astype(jnp.float32)
    if self.cutoffs is not None:
      clusters_BLC = jnp.zeros((*hidden_BLD.shape[:-1], 0))
      if self.cutoffs:
        clusters_BLC = affine(hidden_BLD, self.cluster_DC, self.cluster_bias_C)
      return adaptive.log_probabilities(logits_BLV, clusters_BLC.astype(jnp.float32), self.cutoffs)
    cap = self.logit_cap
    return logits_BLV if cap is None else cap * jnp.tanh(logits_BLV / cap)

  def __call__(
    self, tokens_BL, spectrum, positions_BL=None, segments_BL=None, contiguous: bool = False
  ):
    """logits_BLV, float32: memory B x L x V; training goes through posjax.loss instead."""
    return self.logits(self.hidden(tokens_BL, spectrum, positions_BL, segments_BL, contiguous))


def init_params(model: Decoder, key: jax.Array):
  """Parameters at their start; for shapes alone, give it to jax.eval_shape.

  They depend on neither tokens nor the form of attention: one token, densely, is least to trace.
  """
  tokens_BL, spectrum = jnp.zeros((1, 1), jnp.int32), jax.tree.map(jnp.float32, model.spectrum())
  return model.clone(attention='dense').init(key, tokens_BL, spectrum)['params']


def describe_attention(model: Decoder, spectrum, length: int, *, packed: bool) -> list[Choice]:
  """The form that each layer of the pattern takes under its spectrum at this length, and why."""
  of = lambda *shape: jax.ShapeDtypeStruct((length, *shape), model.compute_dtype)
  width = model.query_width
  arrays = of(model.width), of(model.heads, width), of(model.kv_heads, width)
  choices = []
  for layer, one in zip(model.pattern, spectrum, strict=True):
    init = functools.partial(layer.scheme.parameters, dims=model.dims)
    position = jax.eval_shape(init, jax.random.key(0)), one
    if model.latent is not None:
      layer = decoupled(layer, model.latent)
    choices.append(choose_form(model.attention, layer, position, *arrays, packed=packed))
  return choices


def check_length(model: Decoder, spectrum, length: int) -> None:
  """Raises ValueError if a scheme has no positions for `length` tokens under `spectrum`."""
  capacity = model.capacity(spectrum)
  if length > capacity:
    if math.isinf(model.capacity(model.spectrum())):
      raise ValueError(
        f'The extension has numbers for {capacity:.0f} tokens, but the sequence has {length}. '
        f'Leave out its `length`, or set it to {length} or more.'
      )
    factor = math.ceil(length / model.capacity(model.spectrum()))
    raise ValueError(
      f'The position scheme has {capacity:.0f} positions, but the sequence has {length} tokens. '
      f'Use at most {capacity:.0f} tokens, or stretch them: extension linear, factor {factor}.'
    )
