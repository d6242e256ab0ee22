"""The decoder language model: embedding, pre-norm blocks, head.

Letters: B batch, L tokens, D model width, M MLP width, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from posjax import composition, sampling
from posjax.attend import FORMS, Choice, Mask, Rows
from posjax.attention import Attention, Layer, choose_form
from posjax.extension import Spectrum, each, extend, spectra
from posjax.linear import project, recomputed
from posjax.moe import Experts, Routing
from posjax.norm import NORMS
from posjax.positions import Dims, Scheme, merged

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


class MixedMLP(nn.Module):
  """The sum of shared experts, which are one gated MLP, and of the routed ones (posjax/moe.py)."""

  routing: Routing
  output_scale: float
  mesh: Mesh | None

  @nn.compact
  def __call__(self, x_BLD, real_BL=None):
    r, scale = self.routing, self.output_scale
    experts = Experts(r, activate=gated, output_scale=scale, mesh=self.mesh, name='experts')
    out_BLD = experts(x_BLD, real_BL)
    if r.shared:
      out_BLD += GatedMLP(r.shared * r.width, scale, name='shared')(x_BLD)
    return out_BLD


MLPS = {'gated': GatedMLP, 'plain': PlainMLP, 'experts': MixedMLP}


class Block(nn.Module):
  """Adds attention(norm(x)), then mlp(norm(x)): pre-norm (Xiong et al. 2020, arXiv:2002.04745)."""

  model: 'Decoder'
  layer: Layer

  @nn.compact
  def __call__(self, x_BLD, position, rows_B):
    m = self.model
    norm = NORMS[m.norm]
    params, spectrum = position
    params = merged(params, learned(self, self.layer.scheme.init_layer, m.dims))
    # Each block adds to the residual stream; 1/sqrt(2 N) keeps its variance (GPT-2, sec. 2.3).
    output_scale = (2 * m.layers) ** -0.5
    attention = Attention(
      layer=self.layer,
      heads=m.heads,
      kv_heads=m.kv_heads,
      head_width=m.head_width,
      qk_norm=m.qk_norm,
      form=m.attention,
      output_scale=output_scale,
      name='attention',
    )
    attention_norm, past_BLD = norm(name='attention_norm'), None
    if self.layer.segment is not None:
      past_BLD = attention_norm(jax.lax.stop_gradient(x_BLD))
    x_BLD += attention(attention_norm(x_BLD), (params, spectrum), rows_B, past_BLD)
    y_BLD, kind = norm(name='mlp_norm')(x_BLD), self.layer.mlp or m.mlp
    if kind == 'experts':
      real_BL = None if rows_B.segment_L is None else rows_B.segment_L > 0
      return x_BLD + MixedMLP(m.experts, output_scale, m.mesh, name='mlp')(y_BLD, real_BL), None
    return x_BLD + MLPS[kind](m.mlp_width, output_scale, name='mlp')(y_BLD), None


class Period(nn.Module):
  """One block after the other, for patterns of several layers; `positions`: one for each."""

  model: 'Decoder'
  pattern: tuple[Layer, ...]

  @nn.compact
  def __call__(self, x_BLD, positions, rows_B):
    block = REMAT[self.model.remat](Block) if REMAT[self.model.remat] else Block
    for n, (layer, position) in enumerate(zip(self.pattern, positions, strict=True)):
      x_BLD, _ = block(self.model, layer, name=f'layer_{n}')(x_BLD, position, rows_B)
    return x_BLD, None


class Decoder(nn.Module):
  """A causal language model around position schemes. Fields: configs/base.py, `model`.

  pattern: how its layers know positions, repeated over the depth; usually one for all.
  length: tokens of a training row, which some schemes need to size their tables.
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
  norm: str = 'rms'
  qk_norm: bool = False
  tied: bool = False
  dtype: str = 'auto'
  remat: str = 'none'
  attention: str = 'auto'
  experts: Routing | None = None
  mesh: Mesh | None = None

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
    for layer in self.pattern:
      if (layer.mlp or self.mlp) not in MLPS:
        raise ValueError(
          f"A layer's mlp = '{layer.mlp}' is unknown. Use one of: {', '.join(MLPS)}."
        )
      if (layer.mlp or self.mlp) == 'experts' and self.experts is None:
        raise ValueError("mlp = 'experts' needs to know which. Give experts=Routing(...).")
    for field in (
      'length', 'vocabulary', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width',
    ):
      if getattr(self, field) is None or getattr(self, field) < 1:
        raise ValueError(f'model.{field} = {getattr(self, field)}. Use a whole number >= 1.')
    if len(self.schemes) > 1 and any(scheme.overrides('embed') for scheme in self.schemes):
      raise ValueError(
        'A scheme that acts on the input acts once, for all layers, but the layers differ in their '
        'schemes. Give every layer the same, or schemes that act within layers.'
      )
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
  def scale(self) -> float:
    """Of the products of queries and keys."""
    return self.head_width**-0.5

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
    self.final_norm = NORMS[self.norm]()

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
    positions = tuple(
      (self.shared[self.schemes.index(layer.scheme)], one)
      for layer, one in zip(self.pattern, spectrum, strict=True)
    )
    # Rows of variance 1, while the same matrix, as the head, gives logits of variance 1.
    table_VD = self.embedding_VD
    if self.mesh is not None:  # told the rows' devices by the experts, XLA would copy x to all
      table_VD = jax.lax.with_sharding_constraint(table_VD, NamedSharding(self.mesh, P('tensor')))
    x_BLD = (table_VD[tokens_BL] * self.width**0.5).astype(self.compute_dtype)
    embed = functools.partial(self.pattern[0].scheme.embed, *positions[0])
    x_BLD = jax.vmap(embed)(x_BLD, tokens_BL, positions_BL)
    whole, rest = divmod(self.layers, len(self.pattern))
    if whole:
      x_BLD, _ = self.blocks(x_BLD, positions, rows_B)
    if rest:
      x_BLD, _ = self.rest(x_BLD, positions[:rest], rows_B)
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


def init_params(model: Decoder, key: jax.Array):
  """Parameters at their start; for shapes alone, give it to jax.eval_shape.

  They depend on neither tokens nor the form of attention: one token, densely, is least to trace.
  """
  tokens_BL, spectrum = jnp.zeros((1, 1), jnp.int32), jax.tree.map(jnp.float32, model.spectrum())
  return model.clone(attention='dense').init(key, tokens_BL, spectrum)['params']


def build(config: ConfigDict, mesh: Mesh | None = None) -> Decoder:
  """The model of an experiment (configs/base.py, complete: with a vocabulary).

  Its tables have the length that its weights were first trained at, also where training goes on at
  another one. mesh: of the devices that it runs on, which experts must know.

  Raises ValueError for an unknown scheme, hyperparameter or value.
  """
  settings = dict(config.model)
  mask = {key: settings.pop(key) for key in ('window', 'sinks', 'chunk')}
  cut = {key: settings.pop(key) for key in ('segment', 'memory')}
  alike = {'position': config.position, 'extended': True, 'mlp': settings['mlp'], **mask, **cut}
  settings['experts'] = Routing(**settings['experts'])
  pattern = tuple(make_layer(alike, one) for one in config.layers or ({},))
  return Decoder(
    pattern=pattern,
    length=trained_length(config),
    mesh=mesh if any(layer.mlp == 'experts' for layer in pattern) else None,
    **settings,
  )


def trained_length(config: ConfigDict) -> int:
  """Tokens that the weights were first trained at; of sampled positions, the range."""
  if config.extension.trained_length is not None:
    return config.extension.trained_length
  return sampling.make(**config.sampling).reach(config.train.length)


def label(config: ConfigDict) -> str:
  """What a reader calls an experiment's schemes; those of a pattern's layers with slashes."""
  layers = config.layers or ({},)
  names = [composition.label(layer.get('position', config.position)) for layer in layers]
  return ' / '.join(dict.fromkeys(names))


def make_layer(alike: dict, own: dict) -> Layer:
  """A layer of a config's pattern: what it sets itself, and for the rest what all layers have.

  Raises ValueError for an unknown key.
  """
  own = dict(own)
  for key in own.keys() - alike.keys():
    raise ValueError(f"A layer has no '{key}'. It takes: {', '.join(alike)}.")
  settings = alike | own
  scheme = composition.make(settings.pop('position'))
  mask = Mask(**{key: settings.pop(key) for key in ('window', 'sinks', 'chunk')})
  return Layer(scheme=scheme, mask=mask, **settings)


def as_trained(model: Decoder, config: ConfigDict) -> tuple[Spectrum, ...]:
  """The spectra the run trains with: the schemes' own, after the config's extension."""
  return extend(model.spectrum(), length=config.train.length, **config.extension)


def learned(module: nn.Module, init: Callable, dims: Dims, name: str = 'position'):
  """What a scheme's `init` or `init_layer` makes, as a parameter of `module` if it is anything."""
  shapes = jax.eval_shape(lambda key: init(key, dims), jax.random.key(0))
  return module.param(name, init, dims) if jax.tree.leaves(shapes) else {}


def describe_attention(model: Decoder, length: int, *, packed: bool) -> list[Choice]:
  """The form that each layer of the pattern takes at this length, and why."""
  of = lambda *shape: jax.ShapeDtypeStruct((length, *shape), model.compute_dtype)
  arrays = of(model.width), of(model.heads, model.head_width), of(model.kv_heads, model.head_width)
  choices = []
  for layer, spectrum in zip(model.pattern, model.spectrum(), strict=True):
    init = functools.partial(layer.scheme.parameters, dims=model.dims)
    position = jax.eval_shape(init, jax.random.key(0)), spectrum
    choices.append(choose_form(model.attention, layer, position, *arrays, packed=packed))
  return choices


def check_length(model: Decoder, spectrum, length: int) -> None:
  """Raises ValueError if a scheme has no positions for `length` tokens under `spectrum`."""
  capacity = model.capacity(spectrum)
  if length > capacity:
    if math.isinf(model.capacity(model.spectrum())):
      raise ValueError(
        f'The extension was made for {capacity:.0f} tokens, but the sequence has {length}. '
        f'Make it for that length.'
      )
    factor = math.ceil(length / model.capacity(model.spectrum()))
    raise ValueError(
      f'The position scheme has {capacity:.0f} positions, but the sequence has {length} tokens. '
      f'Use at most {capacity:.0f} tokens, or stretch them: extension linear, factor {factor}.'
    )
