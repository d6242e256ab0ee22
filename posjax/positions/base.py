"""The interface of a position scheme; the base class, as written, is NoPE.

A scheme is a frozen recipe of hyperparameters plus pure functions. It acts at one or more points,
and what it does not override leaves its input alone. Hooks see one sequence; callers vmap.

Letters: L tokens, I/J query/key rows of a tile, H heads, G key/value heads, K head width, D model
width, C extra columns.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from posjax.attend import Rows, Tile
from posjax.extension import Spectrum

Array = jax.Array
Params = Any  # a pytree of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dims:
  """Sizes a scheme may need: the model's, and the longest sequence it trains on, in tokens."""

  width: int
  heads: int
  kv_heads: int
  head_width: int
  length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
  """A position scheme. Override the hooks at which it acts, and nothing else."""

  relative: ClassVar[bool] = True  # unchanged when all positions shift by the same number
  per_layer: ClassVar[bool] = False  # own learned parameters in each layer, or one set for all
  reads_positions: ClassVar[bool] = True  # False: knows order from places and content alone

  def init(self, key: Array, dims: Dims) -> Params:
    """Learned parameters, float32; an empty dict where there are none."""
    del key, dims
    return {}

  def spectrum(self, dims: Dims) -> Spectrum:
    """What is not learned but may be extended, on the host in float64."""
    del dims
    return Spectrum()

  def capacity(self, spectrum: Spectrum, dims: Dims) -> float:
    """Tokens after which the scheme has no position left; checked before anything runs."""
    del spectrum, dims
    return math.inf

  def embed(self, params: Params, spectrum: Spectrum, x_LD: Array, pos_L: Array) -> Array:
    """Acts on the embedded tokens, once, before the first layer."""
    del params, spectrum, pos_L
    return x_LD

  def query(self, params: Params, spectrum: Spectrum, q_LHK: Array, pos_L: Array) -> Array:
    """Acts on the queries of each layer; may change the head width, together with `key`."""
    del params, spectrum, pos_L
    return q_LHK

  def key(self, params: Params, spectrum: Spectrum, k_LGK: Array, pos_L: Array) -> Array:
    """Acts on the keys of each layer."""
    del params, spectrum, pos_L
    return k_LGK

  def features(
    self, params: Params, spectrum: Spectrum, x_LD: Array, q_LHK: Array, k_LGK: Array, pos_L: Array
  ) -> tuple[Any, Any]:
    """What `score` needs of content: pytrees of arrays [L, ...] for query and for key rows.

    x_LD is what the layer's queries and keys were projected from.
    """
    del params, spectrum, x_LD, q_LHK, k_LGK, pos_L
    return None, None

  def score(self, params: Params, spectrum: Spectrum, s_HIJ: Array, tile: Tile) -> Array:
    """Acts on a tile of logits, float32, already scaled; the mask comes after."""
    del params, spectrum, tile
    return s_HIJ

  def columns(
    self, params: Params, spectrum: Spectrum, query: Rows, key: Rows, scale: float, dtype
  ) -> tuple[Array, Array]:
    """The same bias as `score`, as extra columns of queries [L, H, C] and keys [L, C].

      scale * (q columns . k columns) = bias + (anything that depends on the query alone)

    Every column must be exact in `dtype`, the type of the matmul; then each fused kernel runs the
    scheme unchanged. Only for a bias that factorises exactly.
    """
    raise NotImplementedError

  @property
  def scores(self) -> bool:
    """Whether the scheme touches logits, so that a fused kernel cannot run it as it is."""
    return type(self).score is not Scheme.score

  @property
  def factorises(self) -> bool:
    """Whether it offers `columns`, so that a fused kernel can after all."""
    return type(self).columns is not Scheme.columns


def exact_parts(x_X: Array, dtype) -> Array:
  """parts_XP whose sum over P is x to float32 precision, each part exact in `dtype`."""
  parts, rest_X = [], jnp.asarray(x_X, jnp.float32)
  for _ in range(1 if dtype == jnp.float32 else 3):
    parts.append(rest_X.astype(dtype).astype(jnp.float32))
    rest_X -= parts[-1]
  return jnp.stack(parts, axis=-1)
