"""Transformer-XL: queries meet a learned projection of the sinusoids of the distance."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.attend.diagonals import along_diagonals
from posjax.bias import exact_products
from posjax.extension import Spectrum
from posjax.positions.base import Scheme
from posjax.rotary import geometric_frequencies, wave_sums, waves


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerXL(Scheme):
  """Content and distance, each with its own query (Dai et al. 2019, arXiv:1901.02860, sec. 3.3).

    logit[h,i,j] = ((q + u[h]) . k[j] + (q + v[h]) . (W[h] R[pos[i] - pos[j]])) / sqrt(K)
    R[r] = [sin(r w[f]) | cos(r w[f])],   w[f] = theta^(-2f / D)

  R is as wide as the model. Each layer has its own W, without bias; u and v are the same for all
  layers, as in the authors' code by default, or `untied`. So are sines before cosines there, and
  everything learned drawn normal with deviation 0.02. The memory of segments is not the scheme's:
  config.model.segment, config.model.memory.

  Where positions are contiguous, W R is computed once for each distance of a layer's rows (2 D K
  FLOPs a head, shared by the batch; 2 L H K numbers), and a tile then takes about as many FLOPs for
  distances as for q . k. Elsewhere it takes D / K times as many: by angle addition, the distance is
  D columns of waves. These are `columns`, too: D in float32, 6 D in bfloat16 (exact parts). Not
  where distances are clamped: no column knows which keys are far. A single query, that of a step of
  decoding, meets distances by angle addition, too, which come as sums of waves: W R of all would
  take K times as many.

  theta: base of the wavelengths, 2 pi to 2 pi theta tokens. Above 1.
  deviation: of the initial W, u and v. Not negative.
  untied: each layer has its own u and v (the authors' `untie_r`).
  clamp: farther keys count as if they were `clamp` tokens away (their `clamp_len`); None: where
    they are.
  """

  theta: float = 10_000.0
  deviation: float = 0.02
  untied: bool = False
  clamp: int | None = dataclasses.field(default=None, metadata={'other': 4})

  def __post_init__(self):
    if not self.deviation >= 0:
      raise ValueError(
        f'Transformer-XL cannot draw weights with deviation {self.deviation}. Use one >= 0.'
      )
    if self.clamp is not None and self.clamp < 1:
      raise ValueError(
        f'Distances clamped at {self.clamp} tokens are no distances. Use clamp >= 1, or None.'
      )

  def init(self, key, dims):
    return {} if self.untied else self.queries(key, dims)

  def init_layer(self, key, dims):
    shape = dims.width, dims.heads, dims.head_width
    own = {'distance_DHK': self.deviation * jax.random.normal(key, shape)}
    return own | self.queries(jax.random.fold_in(key, 1), dims) if self.untied else own

  def queries(self, key, dims):
    """u and v."""
    u_key, v_key = jax.random.split(key)
    shape = dims.heads, dims.head_width
    return {
      'u_HK': self.deviation * jax.random.normal(u_key, shape),
      'v_HK': self.deviation * jax.random.normal(v_key, shape),
    }

  @property
  def factorises(self):
    return self.clamp is None

  def spectrum(self, dims):
    return Spectrum(frequency_F=geometric_frequencies(dims.width, self.theta))

  def query(self, params, spectrum, q_LHK, pos_L):
    return added(q_LHK, params['u_HK'])

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, pos_L):
    return added(q_LHK, params['v_HK']), None

  def table(self, params, spectrum, r_R):
    r_R = r_R if self.clamp is None else jnp.minimum(r_R, self.clamp)
    cos_RF, sin_RF = waves(r_R, spectrum.frequency_F)
    wave_RD = jnp.concatenate([sin_RF, cos_RF], axis=-1)
    return jnp.einsum('rd,dhk->rhk', wave_RD, params['distance_DHK'])

  def score(self, params, spectrum, s_HIJ, tile):
    q_IHK = tile.query.features_L
    scale = q_IHK.shape[-1] ** -0.5
    if tile.table_M is not None and len(q_IHK) > 1:
      q_HIK, table_HKM = jnp.swapaxes(q_IHK, 0, 1), jnp.transpose(tile.table_M, (1, 2, 0))
      return s_HIJ + scale * along_diagonals(q_HIK, table_HKM.astype(q_HIK.dtype))
    way = alone if tile.contiguous and len(q_IHK) == 1 else by_angles
    more_HIJ = way(params['distance_DHK'], spectrum, q_IHK, tile)
    if self.clamp is not None:  # one distance for all that are far
      (far_HK,) = self.table(params, spectrum, jnp.asarray([self.clamp]))
      far_HI = jnp.einsum('ihk,hk->hi', q_IHK, far_HK, preferred_element_type=jnp.float32)
      more_HIJ = jnp.where(tile.distance_IJ > self.clamp, far_HI[:, :, None], more_HIJ)
    return s_HIJ + scale * more_HIJ

  def columns(self, params, spectrum, query, key, *, heads, kv_heads, scale, dtype):
    """Waves of the key, and what the query makes of each: the same for all heads, and not."""
    q_LHK = query.features_L
    turned_HLD = turned(params['distance_DHK'], spectrum, q_LHK, query.pos_L)
    q_LHD = jnp.swapaxes(turned_HLD, 0, 1) * (q_LHK.shape[-1] ** -0.5 / scale)
    k_LD = jnp.concatenate(waves(key.pos_L, spectrum.frequency_F), axis=-1)
    return exact_products(q_LHD, k_LD[:, None], dtype)


def added(q_LHK, more_HK):
  """Their sum, in the type of q."""
  return (q_LHK.astype(jnp.float32) + more_HK).astype(q_LHK.dtype)


def alone(distance_DHK, spectrum: Spectrum, q_1HK, tile):
  """s_H1J of a single query, to which the distances of its keys fall one by one."""
  sin_HF, cos_HF = jnp.split(facing(distance_DHK, q_1HK)[:, 0], 2, axis=-1)
  count = len(tile.key.index_L)
  sums = wave_sums(cos_HF, sin_HF, spectrum.frequency_F, tile.distance_M[0], count)
  return sums[:, None]


def by_angles(distance_DHK, spectrum: Spectrum, q_IHK, tile):
  """s_HIJ where distances are of any kind."""
  q_HID = turned(distance_DHK, spectrum, q_IHK, tile.query.pos_L).astype(q_IHK.dtype)
  k_JD = jnp.concatenate(waves(tile.key.pos_L, spectrum.frequency_F), axis=-1)
  return jnp.matmul(q_HID, k_JD.T.astype(q_IHK.dtype), preferred_element_type=jnp.float32)


def turned(distance_DHK, spectrum: Spectrum, q_LHK, pos_L):
  """turned_HLD, float32, with q . (W R[pos - x]) = turned . [cos(x w) | sin(x w)] for any x.

  W^T q = [a | b] faces sines and cosines of a difference of angles, so that
    a sin(i - j) + b cos(i - j) = (a sin(i) + b cos(i)) cos(j) + (b sin(i) - a cos(i)) sin(j)
  """
  a_HLF, b_HLF = jnp.split(facing(distance_DHK, q_LHK), 2, axis=-1)
  cos_LF, sin_LF = waves(pos_L, spectrum.frequency_F)
  return jnp.concatenate(
    [a_HLF * sin_LF + b_HLF * cos_LF, b_HLF * sin_LF - a_HLF * cos_LF], axis=-1
  )


def facing(distance_DHK, q_LHK):
  """W^T q, float32: c_HLD, of which each number meets a wave of the distance."""
  return jnp.einsum('lhk,dhk->hld', q_LHK.astype(jnp.float32), distance_DHK, precision='highest')
