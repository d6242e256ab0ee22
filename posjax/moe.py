"""Mixture of experts as DeepSeek's: a router, and experts of which each token passes through a few.

Letters: B rows, L tokens, N = B L tokens, D model width, E experts, G groups of experts, C experts
chosen for a token, A = N C rows for experts, M width of an expert.

No token is dropped and no expert has a capacity: shapes depend on A alone, loops on what came.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from posjax import grouped
from posjax.balancing import counts, imbalance
from posjax.linear import affine

WEIGHS = ('output', 'input')
SCORES = {'sigmoid': jax.nn.sigmoid, 'softmax': functools.partial(jax.nn.softmax, axis=-1)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routing:
  """What an experts' layer is made of, and how its router chooses. Fields: configs/base.py.

  score[e] = sigmoid(x . router[:, e]), or the softmax over e. Of `groups` equal groups of experts
  the `groups_chosen` best stay, a group being worth the sum of its `group_best` best scores; of
  their experts the `chosen` best, each weighing its score, over the sum of the chosen ones' where
  `normalise`, times `scale`. All choices are by score + bias, all weights by score alone.

  DeepSeek-V2 (arXiv:2405.04434, sec. 2.2): softmax, group_best 1, not normalised, no shared bias
  (all 0); its `greedy` is groups = 1. DeepSeek-V3 (arXiv:2412.19437, sec. 2.1.2): sigmoid,
  group_best 2, normalised. V2's released code scales only weights that it does not normalise: a
  checkpoint with both has scale 1. Experts of other groups cannot be chosen, as in DeepSeek's
  inference code and transformers 5; transformers 4 gave them the score 0, which beats a negative
  score + bias.

  A softmax over the chosen logits alone (gpt-oss) is softmax, normalised.

  weighs: what of an expert is multiplied by its weight, its 'output', or its 'input' (Llama 4:
    sigmoid, one chosen, not normalised).

  Raises ValueError for numbers that do not fit each other.
  """

  count: int
  chosen: int
  width: int
  shared: int = 0
  scores: str = 'sigmoid'
  groups: int = 1
  groups_chosen: int = 1
  group_best: int = 2
  normalise: bool = True
  scale: float = 1.0
  weighs: str = 'output'
  form: str = 'auto'

  def __post_init__(self):
    words = {'scores': SCORES, 'weighs': WEIGHS, 'form': ('auto', *FORMS)}
    for field, allowed in words.items():
      if getattr(self, field) not in allowed:
        raise ValueError(
          f"experts.{field} = '{getattr(self, field)}' is unknown. "
          f'Use one of: {", ".join(allowed)}.'
        )
    for field in ('count', 'chosen', 'width', 'groups', 'groups_chosen', 'group_best'):
      if getattr(self, field) < 1:
        raise ValueError(f'experts.{field} = {getattr(self, field)}. Use a whole number >= 1.')
    if self.shared < 0:
      raise ValueError(f'experts.shared = {self.shared}. Use 0 for none, or more.')
    if self.count % self.groups:
      raise ValueError(
        f'{self.count} experts cannot be cut into {self.groups} equal groups. '
        'Make experts.groups a divisor of experts.count.'
      )
    size = self.count // self.groups
    if self.groups_chosen > self.groups:
      raise ValueError(
        f'{self.groups_chosen} groups cannot be chosen of {self.groups}. '
        'Lower experts.groups_chosen to experts.groups or less.'
      )
    if self.chosen > self.groups_chosen * size:
      raise ValueError(
        f'A token cannot choose {self.chosen} experts of {self.groups_chosen * size}, which are in '
        f'{self.groups_chosen} of {self.groups} groups. Lower experts.chosen, or raise '
        'experts.count or experts.groups_chosen.'
      )
    if self.groups > 1 and self.group_best > size:
      raise ValueError(
        f'A group of {size} experts has no {self.group_best} best. Lower experts.group_best to '
        f'{size} or less, or use fewer groups.'
      )


def choose(score_NE, bias_E, routing: Routing):
  """chosen_NC, numbers of experts, the best first, and weight_NC, float32: `Routing`'s equations.

  Of equal scores the expert of the lower number wins. The bias gets no gradient.
  """
  r = routing
  worth_NE = jax.lax.stop_gradient(score_NE + bias_E)
  if r.groups_chosen < r.groups:
    worth_NGS = worth_NE.reshape(len(worth_NE), r.groups, -1)
    worth_NG = jax.lax.top_k(worth_NGS, r.group_best)[0].sum(-1)
    best_NX = jax.lax.top_k(worth_NG, r.groups_chosen)[1]
    stays_NG = (best_NX[:, :, None] == jnp.arange(r.groups)).any(axis=1)
    worth_NE = jnp.where(stays_NG[:, :, None], worth_NGS, -jnp.inf).reshape(worth_NE.shape)
  chosen_NC = jax.lax.top_k(worth_NE, r.chosen)[1]
  weight_NC = jnp.take_along_axis(score_NE, chosen_NC, axis=-1)
  if r.normalise:
    weight_NC /= weight_NC.sum(-1, keepdims=True) + 1e-20  # the authors', against 0 / 0
  return chosen_NC, weight_NC * r.scale


class Experts(nn.Module):
  """The routed experts of a layer: out[n] = sum over the chosen e of weight[n, e] mlp[e](x[n]).

  mlp[e](x) = activate(x gate[e], x up[e]) down[e]; where weights are of the input, the sum is over
  mlp[e](weight[n, e] x[n]). The router works in float32.

  biases: 'router' adds one to the logits that scores are made of, 'experts' to gate, up and down.

  bias_E is a parameter that no gradient reaches: AdamW leaves it where it is, having neither a
  gradient nor weight decay for it, and the training step moves it (posjax/balancing.py). So it is
  saved, restored, sharded and handed from phase to phase as every parameter is.

  With a mesh each device computes its tokens' rows for its experts, which lie along the tensor
  axis, and the outputs are summed over it: no token travels, as in a tensor-parallel MLP.

  Sows into 'loads' count_E, tokens that chose each expert, and imbalance, the load-balance loss.
  """

  routing: Routing
  activate: Callable
  output_scale: float
  mesh: Mesh | None = None
  biases: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, x_BLD, real_BL=None):
    """out_BLD. real_BL: False where a token is padding, which is routed, but not counted."""
    r, (B, L, D) = self.routing, x_BLD.shape
    E, M, C = r.count, r.width, r.chosen
    near = nn.initializers.normal(D**-0.5)
    router_DE = self.param('router_DE', near, (D, E))
    zeros = nn.initializers.zeros
    bias_E = self.param('bias_E', zeros, (E,))
    gate_EDM = self.param('gate_EDM', near, (E, D, M))
    up_EDM = self.param('up_EDM', near, (E, D, M))
    spread = nn.initializers.normal(self.output_scale * M**-0.5)
    down_EMD = self.param('down_EMD', spread, (E, M, D))
    weights = Weights(gate_EDM, up_EDM, down_EMD)
    if 'experts' in self.biases:
      weights = Weights(
        gate_EDM, up_EDM, down_EMD,
        gate_bias_EM=self.param('gate_bias_EM', zeros, (E, M)),
        up_bias_EM=self.param('up_bias_EM', zeros, (E, M)),
        down_bias_ED=self.param('down_bias_ED', zeros, (E, D)),
      )  # fmt: skip
    logit_BLE = jnp.matmul(
      x_BLD.astype(jnp.float32), router_DE, precision=jax.lax.Precision.HIGHEST
    )
    if 'router' in self.biases:
      logit_BLE += self.param('router_bias_E', zeros, (E,))
    score_BLE = SCORES[r.scores](logit_BLE)
    chosen_NC, weight_NC = choose(score_BLE.reshape(-1, E), bias_E, r)
    chosen_BLC, weight_BLC = (x.reshape(B, L, C) for x in (chosen_NC, weight_NC))
    if self.is_mutable_collection('loads'):
      real_BL = jnp.ones((B, L), bool) if real_BL is None else real_BL
      count_BE = counts(chosen_BLC, real_BL, E)
      self.sow('loads', 'count_E', count_BE.sum(0))
      self.sow('loads', 'imbalance', imbalance(score_BLE, count_BE, real_BL, C))
    return routed(x_BLD, chosen_BLC, weight_BLC, weights, self.activate, r, self.mesh)


class Weights(NamedTuple):
  """Of a layer's routed experts, side by side."""

  gate_EDM: jax.Array
  up_EDM: jax.Array
  down_EMD: jax.Array
  gate_bias_EM: jax.Array | None = None
  up_bias_EM: jax.Array | None = None
  down_bias_ED: jax.Array | None = None


def routed(
  x_BLD, chosen_BLC, weight_BLC, weights: Weights, activate: Callable, routing: Routing, mesh
):
  """out_BLD of the experts, on all devices of a mesh."""
  mix = functools.partial(
    FORMS[pick(routing.form)], activate=activate, weighs=routing.weighs
  )

  def local(x_BLD, chosen_BLC, weight_BLC, weights, first):
    flat = lambda x: x.reshape(-1, x.shape[-1])
    out_ND = mix(flat(x_BLD), flat(chosen_BLC) - first, flat(weight_BLC), weights)
    return out_ND.reshape(x_BLD.shape)

  if mesh is None or mesh.size == 1:
    return local(x_BLD, chosen_BLC, weight_BLC, weights, 0)

  batch = ('data', 'fsdp')
  if len(x_BLD) % (mesh.shape['data'] * mesh.shape['fsdp']):
    batch = ()  # rows that cannot be spread, of one sequence that is decoded, say
  rows = P(batch)

  def part(*arrays):
    # Each device's own from here on; the derivative sums over the devices that hold copies.
    vary = lambda tree, axes: jax.lax.pcast(tree, axes, to='varying') if axes else tree
    *tokens, weights = arrays
    tokens, weights = vary(tokens, ('tensor',)), vary(weights, batch)
    first = jax.lax.axis_index('tensor') * len(weights.gate_EDM)
    return jax.lax.psum(local(*tokens, weights, first), 'tensor')

  return jax.shard_map(
    part, mesh=mesh, in_specs=(rows, rows, rows, P('tensor')), out_specs=rows
  )(x_BLD, chosen_BLC, weight_BLC, weights)


# --- forms: out_ND of rows and weights; experts not in [0, E) are another device's ---------------


def dense(
  x_ND, chosen_NC, weight_NC, weights: Weights, *, activate: Callable, weighs: str = 'output'
):
  """The definition: each expert reads every token, and most weigh nothing. E / C times the work."""

  def add(total_ND, expert):
    e, (gate_DM, up_DM, down_MD, *biases) = expert
    here_NC = chosen_NC == e
    weight_N1 = jnp.where(here_NC, weight_NC, 0).sum(-1, keepdims=True)
    in_ND = x_ND
    if weighs == 'input':
      in_ND = (x_ND * weight_N1).astype(x_ND.dtype)
      weight_N1 = here_NC.any(-1, keepdims=True)
    gate_M, up_M, down_D = biases
    gate_NM, up_NM = affine(in_ND, gate_DM, gate_M), affine(in_ND, up_DM, up_M)
    return total_ND + weight_N1 * affine(activate(gate_NM, up_NM), down_MD, down_D), None

  numbers_E = jnp.arange(len(weights.gate_EDM))
  zero_ND = jnp.zeros_like(x_ND, dtype=jnp.float32)
  total_ND, _ = jax.lax.scan(add, zero_ND, (numbers_E, weights))
  return total_ND.astype(x_ND.dtype)


def by_expert(
  x_ND, chosen_NC, weight_NC, weights: Weights, *, activate: Callable, multiply: Callable,
  weighs: str = 'output',
):  # fmt: skip
  """Rows sorted by expert, `multiply`(x_AD, w_EDO, size_E) for each matrix, and back."""
  N, C = chosen_NC.shape
  E = len(weights.gate_EDM)
  expert_A = chosen_NC.reshape(-1)
  expert_A = jnp.where((expert_A >= 0) & (expert_A < E), expert_A, E)
  size_E = (expert_A[:, None] == jnp.arange(E)).sum(0, dtype=jnp.int32)
  order_A = jnp.argsort(expert_A)
  back_A = jnp.argsort(order_A)
  x_AD = jnp.repeat(x_ND, C, axis=0)
  if weighs == 'input':
    x_AD = (x_AD * weight_NC.reshape(-1, 1)).astype(x_ND.dtype)
    weight_NC = jnp.ones_like(weight_NC)
  x_AD = grouped.permute(x_AD, order_A, back_A)

  def apply(x_AD, w_EDO, bias_EO):
    y_AO = multiply(x_AD, w_EDO, size_E)
    if bias_EO is None:
      return y_AO
    return y_AO + by_rows(bias_EO, expert_A[order_A]).astype(y_AO.dtype)

  gate_AM = apply(x_AD, weights.gate_EDM, weights.gate_bias_EM)
  up_AM = apply(x_AD, weights.up_EDM, weights.up_bias_EM)
  y_AD = apply(activate(gate_AM, up_AM), weights.down_EMD, weights.down_bias_ED)
  y_NCD = grouped.permute(y_AD, back_A, order_A).reshape(N, C, -1)
  ours_NC = (expert_A < E).reshape(N, C)
  y_NCD = jnp.where(ours_NC[:, :, None], y_NCD, 0)  # what no expert wrote may be anything
  return jnp.einsum('nc,ncd->nd', weight_NC, y_NCD.astype(jnp.float32)).astype(x_ND.dtype)


def by_rows(bias_EO, expert_A):
  """bias[expert], or 0 where it is none of them, as a product: the derivative of a gather would add
  up in any order on a GPU."""
  one_AE = (expert_A[:, None] == jnp.arange(len(bias_EO))).astype(bias_EO.dtype)
  return jnp.matmul(one_AE, bias_EO, precision=jax.lax.Precision.HIGHEST)


FORMS = {
  'dense': dense,
  'tiled': functools.partial(by_expert, multiply=grouped.tiled),
  'ragged': functools.partial(by_expert, multiply=grouped.ragged),
}


def pick(form: str) -> str:
  """The form of a platform: JAX's ragged product multiplies every row by every expert on CPU."""
  if form != 'auto':
    return form
  return 'tiled' if jax.default_backend() == 'cpu' else 'ragged'
