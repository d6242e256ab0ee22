"""How many tokens chose each expert: what is counted, what it costs, and what moves the bias.

Letters: B rows, L tokens, C experts chosen for a token, E experts, X layers of a stack.
"""

from typing import Any

import jax
import jax.numpy as jnp


def counts(chosen_BLC, real_BL, experts: int):
  """count_BE: how many tokens of each row chose each expert, int32."""
  chose_BLE = (chosen_BLC[..., None] == jnp.arange(experts)).any(axis=2)
  return (chose_BLE & real_BL[..., None]).sum(1, dtype=jnp.int32)


def imbalance(score_BLE, count_BE, real_BL, chosen: int):
  """The load-balance loss, times the tokens that it is a mean over, summed over rows.

  loss[b] = sum_e share[e] score[e], share[e] = E count[e] / (C T), score[e] = the mean over the
  row's T tokens of each one's scores over their sum (DeepSeek-V3, arXiv:2412.19437, eq. 17-20; of
  softmax scores DeepSeek-V2's eq. 23-25). Balanced it is 1. Switch Transformer's (Fedus et al.
  2021, arXiv:2101.03961, eq. 4-6) is over a batch instead of a row; over rows, parts of a batch add
  up to the whole. Rows weigh by their tokens; padding counts nowhere.
  """
  share_BLE = score_BLE / (score_BLE.sum(-1, keepdims=True) + 1e-20)
  mass_BE = jnp.where(real_BL[..., None], share_BLE, 0).sum(1)
  tokens_B = jnp.maximum(real_BL.sum(1), 1)
  E = score_BLE.shape[-1]
  return (E / chosen * (count_BE * mass_BE).sum(-1) / tokens_B).sum()


def layers(loads: Any):
  """(names of the path, count_XE, imbalance_X) of each experts' module of a stack of X layers."""
  if 'count_E' in loads:
    yield (), loads['count_E'][0], loads['imbalance'][0]
    return
  for name, inner in loads.items():
    for path, *rest in layers(inner):
      yield (name, *path), *rest


def balance(params: Any, loads: Any, rate: float) -> Any:
  """Parameters with the routing biases a step nearer to equal loads, without an auxiliary loss.

  bias[e] += rate sign(mean load - load[e]) (Wang et al. 2024, arXiv:2408.15664, algorithm 1), from
  the loads of the whole batch, after the step that they are of.
  """
  for path, count_XE, _ in layers(loads):
    load_XE = count_XE.astype(jnp.float32)
    step_XE = rate * jnp.sign(load_XE.mean(-1, keepdims=True) - load_XE)
    params = _added(params, (*path, 'bias_E'), step_XE)
  return params


def _added(tree: Any, path: tuple[str, ...], x: jax.Array) -> Any:
  if not path:
    return tree + x
  return tree | {path[0]: _added(tree[path[0]], path[1:], x)}


def statistics(loads: Any, tokens) -> dict[str, jax.Array]:
  """What a step logs of its experts, means over layers; nothing where there are none.

  load_violation: the largest load over the mean, minus 1 (`MaxVio` of arXiv:2408.15664, sec. 3.1).
  load_idle: share of the experts that no token chose.
  load_imbalance: the load-balance loss, 1 where loads are equal.

  tokens: that the batch counts.
  """
  found = list(layers(loads))
  if not found:
    return {}
  load_XE = jnp.concatenate([jnp.atleast_2d(count_XE) for _, count_XE, _ in found])
  mean_X = jnp.maximum(load_XE.astype(jnp.float32).mean(-1), 1e-20)
  imbalance_X = jnp.concatenate([jnp.atleast_1d(imbalance_X) for *_, imbalance_X in found])
  return {
    'load_violation': (load_XE.max(-1) / mean_X - 1).mean(),
    'load_idle': (load_XE == 0).mean(),
    'load_imbalance': (imbalance_X / jnp.maximum(tokens, 1)).mean(),
  }
