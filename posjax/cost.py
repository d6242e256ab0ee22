"""What a model costs before it runs: parameters, FLOPs and bytes."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posjax import decoding
from posjax.attention import Layer
from posjax.decoder import Decoder, init_params

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets; MFU is unknown elsewhere.
PEAK = (
  (r'H100.*PCIe', 756e12),
  (r'H100|H200|GH200', 989e12),
  (r'A100', 312e12),
  (r'B200', 2250e12),
  (r'TPU v4', 275e12),
  (r'TPU v5 lite|TPU v5e', 197e12),
  (r'TPU v5', 459e12),
  (r'TPU v6', 918e12),
)


def peak_flops(kind: str) -> float | None:
  """FLOP/s of a device kind (`jax.devices()[0].device_kind`), None where it is not known."""
  return next((flops for pattern, flops in PEAK if re.search(pattern, kind)), None)


def count_parameters(params: Any) -> dict[str, int]:
  """Parameters by group: the first two names of their path, over all layers."""
  groups: dict[str, int] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    names = [e.key for e in path[:-1] if not re.fullmatch(r'layer_\d+', e.key)] or [path[0].key]
    group = '/'.join(names[:2]).replace('rest/', 'blocks/')
    groups[group] = groups.get(group, 0) + int(np.prod(leaf.shape))
  return groups


def flops_per_token(model: Decoder, params: Any, length: int) -> float:
  """Training FLOPs per token: forward, and twice that backward; recomputation is not counted.

  2 per weight of a matrix and token, of routed experts those of the chosen ones, and 2 K + 2 V per
  head and visible key (q . k and p v). Causal attention is counted half: a query sees (L + 1) / 2
  keys on average, or its window.
  """
  visible = [visible_keys(layer, length) for layer in model.pattern]
  keys = sum(visible[n % len(visible)] for n in range(model.layers))
  value = model.head_width if model.latent is None else model.latent.value or model.head_width
  attention = 2 * model.heads * (model.query_width + value) * keys
  weights = sum(
    active(model, path[-1].key, leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if re.search(r'_(DV|DX|DM|XD|MD|DE|EDM|EMD|DC|DR|CX)$', path[-1].key)
  )
  if model.tied:
    weights += model.width * model.vocabulary
  return 3 * (2 * weights + attention)


def active(model: Decoder, name: str, array: Any) -> int:
  """Numbers of a parameter that a token meets: of routed experts, those it chooses."""
  size = int(np.prod(array.shape))
  routed = re.search(r'_(EDM|EMD)$', name)
  return size // model.experts.count * model.experts.chosen if routed else size


def visible_keys(layer: Layer, length: int) -> float:
  """Keys that a query sees, on average over the queries of a row of one document."""
  place_L = np.arange(length)
  piece = layer.mask.chunk or layer.segment or length
  oldest_L = np.maximum(0, place_L // piece * piece - layer.memory)
  if layer.mask.window is not None:
    oldest_L = np.maximum(oldest_L, place_L - layer.mask.window + 1)
  return float((place_L + 1 - oldest_L + np.minimum(layer.mask.sinks, oldest_L)).mean())


def cache_bytes_per_token(model: Decoder) -> float:
  """Bytes that decoding keeps of each token, over all layers, for the tokens that come after it.

  Its keys as the scheme leaves them, its values, and what the scheme's score needs of it as a key.
  A window bounds how many tokens are kept, not what one of them costs.
  """
  spectrum = jax.tree.map(jnp.float32, model.spectrum())

  def cached(key):
    weights = decoding.unstacked(model, init_params(model, key))
    return decoding.empty(model, weights, spectrum, batch=1, size=1)

  cache = jax.eval_shape(cached, jax.random.key(0))
  kept = [dataclasses.replace(layer, past_TD=None) for layer in cache.layers]
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def describe_parameters(params: Any) -> str:
  """A table of `count_parameters`, with their sum."""
  groups = count_parameters(params)
  groups['total'] = sum(groups.values())
  width = max(map(len, groups))
  return '\n'.join(f'{group:{width}}  {count:>14,}' for group, count in groups.items())


def memory_bytes(memory: Any) -> tuple[int, int]:
  """What XLA allots to a compiled step (`Compiled.memory_analysis()`) on each device, in bytes: for
  state and batch, and for a step's own work."""
  held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
  return held, memory.temp_size_in_bytes


def describe_memory(memory: Any) -> str:
  """One line of `memory_bytes`."""
  held, step = (size / 2**20 for size in memory_bytes(memory))
  total = held + step
  return f'{total:,.0f} MiB per device: {held:,.0f} for state and batch, {step:,.0f} for a step'
