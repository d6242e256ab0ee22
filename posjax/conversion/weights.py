"""The weights of latent attention from those of heads, by singular value decompositions.

Letters: D model width, H query heads, G key/value heads, K head width, F pairs of a head that turn,
S of the slice, C latent width (the rank), R width of the slice, X columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from posjax import layers
from posjax.conversion.rotations import Turning, turning
from posjax.conversion.seen import Seen
from posjax.decoder import Decoder


def factor(m_DX: np.ndarray, power_DD: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """(down_DC, up_CX), of whose products of rank C `down up` is nearest to m on what it meets.

  Least mean of |y m - y down up|^2 over y of second moments `power`. The singular values are shared
  out evenly: y down has them as second moments. All on one side, training from there breaks.
  """
  value_D, vector_DD = np.linalg.eigh(power_DD)
  # Directions that the text hardly had are not taken for ones that it cannot have.
  value_D = np.maximum(value_D, 1e-6 * value_D.mean())
  root_DD, inverse_DD = ((vector_DD * value_D**p) @ vector_DD.T for p in (0.5, -0.5))
  left_DC, singular_C, right_CX = np.linalg.svd(root_DD @ m_DX, full_matrices=False)
  root_C = singular_C[:rank] ** 0.5
  return inverse_DD @ left_DC[:, :rank] * root_C, root_C[:, None] * right_CX[:rank]


def convert_weights(
  weights: Mapping[str, Any],
  seen: Seen,
  turning: Turning,
  slice_frequency_S: np.ndarray,
  *,
  heads: int,
  kv_heads: int,
  rank: int,
  slice: int,
  method: str,
) -> dict[str, np.ndarray]:
  """A layer's weights of `LatentAttention` (no norm, queries from x) for those of `Attention`.

  Float64 within. Raises ValueError where the slice has a frequency that no pair of a head has.
  """
  query_DHK, key_DGK, value_DGK = (
    np.float64(weights[name]).reshape(len(weights[name]), count, -1)
    for name, count in (('query_DX', heads), ('key_DX', kv_heads), ('value_DX', kv_heads))
  )
  D, H, K = query_DHK.shape
  G, F, S = kv_heads, len(turning.frequency_F), len(slice_frequency_S)
  group_H = np.arange(H) // (H // G)
  power_DD = np.eye(D) if method == 'plain' else np.float64(seen.power_DD)
  turn_HF = seen.turn_HF if method == 'attended' else np.ones((H, F))

  # Pairs as complex numbers, and what never turns.
  query_DHF, key_DGF = (_pairs(x, F).copy() for x in (query_DHK, key_DGK))
  query_DHY, key_DGY = query_DHK[..., 2 * F :], key_DGK[..., 2 * F :].copy()
  slice_DS, slice_query_DHS = np.zeros((D, S), complex), np.zeros((D, H, S), complex)
  for s, f in enumerate(matches(turning.frequency_F, slice_frequency_S)):
    down_D1, up_1G = factor(key_DGF[:, :, f], power_DD, 1)
    slice_DS[:, s] = down_D1[:, 0]
    slice_query_DHS[:, :, s] = query_DHF[:, :, f] * up_1G[0, group_H].conj()
    key_DGF[:, :, f] -= down_D1 @ up_1G
  # The rest of the slice never turns either: it keeps what all heads have most of there.
  still = slice - 2 * S
  slice_DZ, slice_query_DHZ = np.zeros((D, still)), np.zeros((D, H, still))
  if still and key_DGY.size:
    down_DZ, up_ZX = factor(key_DGY.reshape(D, -1), power_DD, still)
    up_ZHY = up_ZX.reshape(len(up_ZX), G, -1)[:, group_H]
    slice_DZ[:, : len(up_ZX)] = down_DZ
    slice_query_DHZ[..., : len(up_ZX)] = np.einsum('dhy,zhy->dhz', query_DHY, up_ZHY)
    key_DGY -= (down_DZ @ up_ZX).reshape(key_DGY.shape)

  # The rest of the keys loses its rotation to the queries: Re(conj(q) t k) = Re(conj(q t*) k).
  query_DHF = query_DHF * turn_HF.conj() * turning.amplitude**2
  content_DHK = np.concatenate([query_DHF.real, query_DHF.imag, query_DHY], axis=-1)
  key_DGK = np.concatenate([key_DGF.real, key_DGF.imag, key_DGY], axis=-1)
  balance = 1.0 if method == 'plain' else _balance(key_DGK, value_DGK, power_DD)
  both_DX = np.concatenate([balance * key_DGK, value_DGK], axis=1).reshape(D, -1)
  latent_DC, up_CX = factor(both_DX, power_DD, rank)
  up_CGK = up_CX.reshape(rank, 2 * G, K)
  query_DHX = np.concatenate([
    content_DHK, slice_query_DHS.real, slice_query_DHS.imag, slice_query_DHZ
  ], axis=-1)  # fmt: skip
  return {
    # Logits are divided by sqrt(K + R) there, by sqrt(K) here.
    'query_DX': ((K + slice) / K) ** 0.5 * query_DHX.reshape(D, -1),
    'latent_DC': latent_DC,
    'slice_DR': np.concatenate([slice_DS.real, slice_DS.imag, slice_DZ], axis=-1),
    'key_up_CX': up_CGK[:, :G][:, group_H].reshape(rank, -1) / balance,
    'value_up_CX': up_CGK[:, G:][:, group_H].reshape(rank, -1),
    **{name: np.float64(weights[name]) for name in ('output_XD', 'null_H') if name in weights},
  }


def matches(frequency_F: np.ndarray, slice_frequency_S: np.ndarray) -> list[int]:
  """The pair of a head for each pair of the slice, which turns as it does."""
  free, found = list(range(len(frequency_F))), []
  for frequency in slice_frequency_S:
    f = next((f for f in free if np.isclose(frequency_F[f], frequency, rtol=1e-5, atol=0)), None)
    if f is None:
      raise ValueError(
        f'The slice would turn a pair by {frequency:.4g} radians per token, as no pair of a head '
        'does. Use a slice and a stride whose product divides the head width, or, of a run that '
        'was extended, convert the run it started from.'
      )
    free.remove(f)
    found.append(f)
  return found


def _pairs(x_DHK: np.ndarray, F: int) -> np.ndarray:
  return x_DHK[..., :F] + 1j * x_DHK[..., F : 2 * F]


def _balance(key_DGK, value_DGK, power_DD) -> float:
  """What makes keys as large as values on average; 1 where nothing is left of the keys."""
  power = lambda x_DGK: np.einsum('dgk,de,egk->', x_DGK, power_DD, x_DGK)
  keys, values = power(key_DGK), power(value_DGK)
  return (values / keys) ** 0.5 if keys > 1e-12 * values else 1.0


def convert_params(
  model: Decoder,
  params: Any,
  turnings: Sequence[Turning],
  seen: Sequence[Seen],
  latent_model: Decoder,
  latent_spectrum: Any,
  method: str,
) -> Any:
  """Parameters of `latent_model`, whose slices turn by `latent_spectrum`. On the host."""
  latent = latent_model.latent
  targets = []
  for layer, one in zip(latent_model.pattern, latent_spectrum, strict=True):
    targets.append(turning(layer.scheme, latent_model.dims, one).frequency_F)
  params = jax.tree.map(np.asarray, params)
  new: dict[tuple[str, int], list] = {}
  for layer in range(model.layers):
    stack, _, n = layers.place(model, layer)
    converted = convert_weights(
      layers.weights(model, params, layer)['attention'], seen[layer], turnings[n], targets[n],
      heads=model.heads, kv_heads=model.kv_heads, rank=latent.width, slice=latent.slice,
      method=method,
    )  # fmt: skip
    new.setdefault((stack, n), []).append(jax.tree.map(np.float32, converted))
  params = {**params, **{stack: dict(params[stack]) for stack, _ in new}}
  for (stack, n), repetitions in new.items():
    attention = jax.tree.map(lambda *x: np.stack(x), *repetitions)
    params[stack][f'layer_{n}'] = {**params[stack][f'layer_{n}'], 'attention': attention}
  return params
