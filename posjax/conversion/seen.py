"""What a model's attention meets on text: how large its inputs are, and how far its heads look.

Letters: B rows, L tokens, R repetitions of a pattern, D model width, H query heads, G key heads, F
pairs of a head that turn, X = 2 F.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posjax import layers
from posjax.attend import Rows
from posjax.attention import Layer, position_and_attend
from posjax.conversion.rotations import Turning
from posjax.decoder import Decoder
from posjax.positions import merged
from posjax.rotary import rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
  """What a layer's attention met on text.

  power_DD: mean of y^T y over tokens, y being what keys and values are projected from.
  turn_HF: mean of e^(i w[f] (pos[j] - pos[i])) over what queries i look at, by their attention.
  """

  power_DD: np.ndarray
  turn_HF: np.ndarray


def measure(
  model: Decoder,
  params: Any,
  spectrum: Any,
  turnings: Sequence[Turning],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> list[Seen]:
  """What each layer met on `batches`, as posjax.data.Stream has them. Memory: D x D per layer."""
  spectrum = jax.tree.map(jnp.float32, spectrum)

  @jax.jit
  def sums(batch):
    real_BL = (batch['segments'] > 0).astype(jnp.float32)
    stacks = layers.projected(
      model, params, spectrum, batch['tokens'], batch['positions'], segments_BL=batch['segments']
    )
    rows_B = Rows(
      index_L=jnp.arange(real_BL.shape[1]), pos_L=batch['positions'], segment_L=batch['segments']
    ).with_begin()
    found = {}
    for stack, places in stacks.items():
      for n, vectors_RBL in enumerate(places):
        shared = layers.shared(model, params, n)

        def one(layer, n=n, shared=shared):
          own, vectors_BL = layer
          position = merged(shared, own), spectrum[n]
          x_BLD, *_ = vectors_BL = [x.astype(jnp.float32) for x in vectors_BL]
          turn_HF = looked_at(model.pattern[n], position, *vectors_BL, rows_B, real_BL, turnings[n])
          return jnp.einsum('bl,bld,ble->de', real_BL, x_BLD, x_BLD), turn_HF

        found[stack, n] = jax.lax.map(one, (layers.own(params, stack, n), vectors_RBL))
    return found, real_BL.sum()

  total = None
  for batch in batches:
    found = jax.tree.map(np.asarray, sums(batch))
    total = found if total is None else jax.tree.map(np.add, total, found)
  sums_of, tokens = total
  seen = []
  for layer in range(model.layers):
    stack, repetition, n = layers.place(model, layer)
    power_DD, turn_HF = (x[repetition] / tokens for x in sums_of[stack, n])
    seen.append(Seen(power_DD=power_DD, turn_HF=turn_HF))
  return seen


def looked_at(
  layer: Layer, position, x_BLD, q_BLHK, k_BLGK, rows_B: Rows, real_BL, turning: Turning
):
  """Sum of e^(i w[f] (pos[j] - pos[i])) over queries i and keys j, by their attention: [H, F].

  Attention itself adds them up: its values are the waves of the keys' positions, whose sum is
  turned back by the query's. Memory is linear in L.
  """
  (B, L), G, F = x_BLD.shape[:2], k_BLGK.shape[2], len(turning.frequency_F)
  if not F:
    return jnp.zeros((q_BLHK.shape[2], 0), jnp.complex64)
  frequency_F = jnp.asarray(turning.frequency_F)
  turned = lambda x_BLGX, sign: jax.vmap(
    lambda x_LGX, pos_L: rotate(x_LGX, sign * frequency_F, pos_L)
  )(x_BLGX, rows_B.pos_L)
  one_X = jnp.repeat(jnp.asarray([1.0, 0.0]), F)
  wave_BLGX = turned(jnp.broadcast_to(one_X, (B, L, G, 2 * F)), 1)
  out_BLHX = position_and_attend(
    layer, position, x_BLD, q_BLHK, k_BLGK, wave_BLGX, rows_B, 'tiled'
  )
  sum_HX = jnp.einsum('bl,blhx->hx', real_BL, turned(out_BLHX, -1))
  return sum_HX[:, :F] + 1j * sum_HX[:, F:]
