"""The interface of a position scheme; the base class, as written, is NoPE.

A scheme is a frozen recipe of hyperparameters plus pure functions. It acts at one or more points,
and what it does not override leaves its input alone. Hooks see one sequence; callers vmap.

`params` is what `init` and `init_layer` made, as one dict: the first is the same for all layers.

Letters: L tokens, I/J query/key rows of a tile, H heads, G key/value heads, K head width, V value
width, D model width, C extra columns.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax

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
  reads_positions: ClassVar[bool] = True  # False: knows order from places and content alone
  replaces_logits: ClassVar[bool] = False  # `walk` computes them anew, from keys as projected

  # Tokens before the first of a piece of a row that hooks read, beside what a cache keeps of them.
  embed_reads: ClassVar[int] = 0  # `embed`: tokens
  features_read: ClassVar[int] = 0  # `features`: inputs of the layer

  def init(self, key: Array, dims: Dims) -> Params:
    """Learned parameters that all layers share: a dict of float32 arrays, or of such dicts."""
    del key, dims
    return {}

  def init_layer(self, key: Array, dims: Dims) -> Params:
    """Learned parameters that each layer has for itself, under names that `init` does not use."""
    del key, dims
    return {}

  def parameters(self, key: Array, dims: Dims) -> Params:
    """Both, as the hooks of one layer get them."""
    shared, own = jax.random.split(key)
    return merged(self.init(shared, dims), self.init_layer(own, dims))

  def spectrum(self, dims: Dims) -> Spectrum:
    """What is not learned but may be extended, on the host in float64."""
    del dims
    return Spectrum()

  def sample(self, spectrum: Spectrum, key: Array) -> Spectrum:
    """The spectrum of one training step, for a scheme that trains on varied ones."""
    del key
    return spectrum

  def capacity(self, spectrum: Spectrum, dims: Dims) -> float:
    """Tokens after which the scheme has no position left; checked before anything runs."""
    del spectrum, dims
    return math.inf

  def embed(
    self, params: Params, spectrum: Spectrum, x_LD: Array, tokens_L: Array, pos_L: Array
  ) -> Array:
    """Acts on the embedded tokens, once, before the first layer; `init` alone made `params`."""
    del params, spectrum, tokens_L, pos_L
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
    self, params: Params, spectrum: Spectrum, x_LD: Array, q_LHK: Array, k_LGK: Array, rows: Rows
  ) -> tuple[Any, Any]:
    """What `score` needs of content: pytrees of arrays [L, ...] for query and for key rows.

    x_LD is what the layer's queries and keys were projected from; `rows` knows the positions, and
    which tokens belong to one document.
    """
    del params, spectrum, x_LD, q_LHK, k_LGK, rows
    return None, None

  def continued(self, features_L: Any, gap: Any) -> Any:
    """Features of a piece of a row, given those of its own tokens alone.

    gap: what the features of the key before the piece have come to along the whole row, less what
    they come to in the piece, which begins `features_read` tokens early. For sums along the row.
    """
    del gap
    return features_L

  def age(
    self,
    params: Params,
    spectrum: Spectrum,
    k_GRK: Array,
    place_R: Array,
    features_S: Any,
    place_S: Array,
  ) -> Array:
    """k_GRK of a cache after S more tokens, for keys that what comes later changes; float32.

    Their own keys are among them already. features_S: what `features` made of theirs. place: in the
    row; -1: an empty slot, a token that is not there. A query then meets all keys as they are: of
    a scheme that overrides this, key features of None tell `walk` to leave logits alone.
    """
    del params, spectrum, place_R, features_S, place_S
    return k_GRK

  def remembered(self, features_L: Any) -> Any:
    """Of the features of keys, what a cache keeps, for schemes that `age` them."""
    return features_L

  def recalled(self, params: Params, features_R: Any, k_RGK: Array) -> Any:
    """What is remembered as features again, of keys that are older than every query."""
    del params, k_RGK
    return features_R

  def table(self, params: Params, spectrum: Spectrum, r_R: Array) -> Any:
    """What `score` needs of distances r_R, in tokens: a pytree of arrays [R, ...].

    Computed once for all tiles and sequences where positions are contiguous; a tile then has its
    own part, `tile.table_M`, and None elsewhere. Worth it where a distance costs much.
    """
    del params, spectrum, r_R

  def score(self, params: Params, spectrum: Spectrum, s_HIJ: Array, tile: Tile) -> Array:
    """Acts on a tile of logits, float32, already scaled; the mask comes after."""
    del params, spectrum, tile
    return s_HIJ

  def start(self, params: Params, spectrum: Spectrum, query: Rows) -> Any:
    """The state of `walk` before the newest key: a pytree of float32 arrays [..., I, ...]."""
    del params, spectrum, query
    return ()

  def prepare(self, params: Params, spectrum: Spectrum, key: Rows, J: int) -> Any:
    """features_L of keys that come in tiles of J, from those that `features` made of them.

    For work that a tile of keys needs once, not again for every tile of queries. The number of keys
    is a multiple of J; the last may be padding, all of whose features are 0.
    """
    del params, spectrum, J
    return key.features_L

  def walk(
    self, params: Params, spectrum: Spectrum, s_HIJ: Array, tile: Tile, state: Any
  ) -> tuple[Array, Any]:
    """As `score`, and before it, with a state that goes from newer keys to older, tile by tile.

    Within the tile it is for the scheme to go from newer keys to older. Keys that the query does
    not see (`tile.visible_IJ`) must not change what becomes of those it sees: whether they come at
    all depends on the tiles.
    """
    del params, spectrum, tile
    return s_HIJ, state

  def read(self, params: Params, spectrum: Spectrum, p_HIJ: Array, tile: Tile) -> Array:
    """out_HIV that queries read beside the values; linear in the weights p_HIJ, float32."""
    raise NotImplementedError

  def columns(
    self,
    params: Params,
    spectrum: Spectrum,
    query: Rows,
    key: Rows,
    *,
    heads: int,
    kv_heads: int,
    scale: float,
    dtype,
  ) -> tuple[Array, Array]:
    """The same bias as `score`, as extra columns of queries [L, H, C] and keys [L, G, C].

      scale * (q columns . k columns) = bias + (anything that depends on the query alone)

    Every column must be exact in `dtype`, the type of the matmul; then each fused kernel runs the
    scheme unchanged. Keys may give [L, 1, C], the same for all heads. Only for a bias that
    factorises exactly.
    """
    raise NotImplementedError

  def temperature(self, spectrum: Spectrum, heads: int) -> Any:
    """Of the logits, as their last factor: a number, or one for each head."""
    del heads
    return spectrum.temperature

  @property
  def scores(self) -> bool:
    """Whether the scheme touches logits or weights, so that no fused kernel can run it as it is."""
    return self.overrides('score') or self.walks or self.reads

  @property
  def walks(self) -> bool:
    """Whether its score carries a state along the keys."""
    return self.overrides('walk')

  @property
  def ages(self) -> bool:
    """Whether later tokens change what a cache keeps of a key."""
    return self.overrides('age')

  @property
  def reads(self) -> bool:
    """Whether queries read something beside the values."""
    return self.overrides('read')

  @property
  def factorises(self) -> bool:
    """Whether it offers `columns`, so that a fused kernel can after all."""
    return self.overrides('columns')

  def overrides(self, hook: str) -> bool:
    """Whether the scheme acts at this hook."""
    return getattr(type(self), hook) is not getattr(Scheme, hook)


def merged(shared: Params, own: Params) -> Params:
  """What hooks get as `params`: one dict, merged where both hold a dict of the same name."""
  both = {name: merged(shared[name], own[name]) for name in shared.keys() & own.keys()}
  return {**shared, **own, **both}
