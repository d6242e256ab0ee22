"""Experts are held to loops in NumPy float64: who is chosen, what comes out, what is counted."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_decoding
from e2e import assert_close, assert_same_bits, stored, train_here, train_there, words
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from posjax import grouped, metrics, moe, positions, sharding
from posjax.activation import Gate
from posjax.attention import Layer
from posjax.balancing import balance, counts, imbalance, statistics
from posjax.decoder import Decoder
from posjax.mlp import MixedMLP
from posjax.moe import FORMS, Experts, Routing, choose
from posjax.training import decayed

B, L, D, E, C, M = 2, 7, 6, 8, 3, 5
MATRICES = ('gate_EDM', 'up_EDM', 'down_EMD')
gated = Gate(activation='silu')
ROUTING = {'count': E, 'chosen': C, 'width': M}
V2 = {'scores': 'softmax', 'groups': 4, 'groups_chosen': 2, 'group_best': 1, 'normalise': False}
V3 = {'scores': 'sigmoid', 'groups': 4, 'groups_chosen': 2, 'group_best': 2, 'normalise': True}
CASES = [
  {},
  {'chosen': 1},
  {'chosen': 1, 'normalise': False, 'scale': 2.0},
  {'chosen': E},
  {'scores': 'softmax', 'normalise': False},  # V2-Lite's greedy
  {**V2, 'scale': 16.0},
  {**V3, 'scale': 2.5},
  {'groups': 2, 'groups_chosen': 1, 'group_best': 3},
  {'groups': 8, 'groups_chosen': 5, 'group_best': 1},
  {'weighs': 'input'},
  {'chosen': 1, 'normalise': False, 'weighs': 'input'},  # Llama 4
]
BIASES = {'router_bias_E': (E,), 'gate_bias_EM': (E, M), 'up_bias_EM': (E, M),
          'down_bias_ED': (E, D)}  # fmt: skip


# --- choosing -------------------------------------------------------------------------------------


def scores(logit_E, kind):
  if kind == 'sigmoid':
    return 1 / (1 + np.exp(-logit_E))
  e_E = np.exp(logit_E - logit_E.max())
  return e_E / e_E.sum()


def chosen_by_paper(score_E, bias_E, r):
  """{expert: weight}, by the papers' words: groups, then experts, then weights."""
  worth = {e: score_E[e] + bias_E[e] for e in range(r.count)}
  size = r.count // r.groups
  groups = [range(g * size, (g + 1) * size) for g in range(r.groups)]
  value = lambda group: sum(sorted((worth[e] for e in group), reverse=True)[: r.group_best])
  best = sorted(groups, key=value, reverse=True)[: r.groups_chosen]
  allowed = [e for group in best for e in group]
  winners = sorted(allowed, key=worth.get, reverse=True)[: r.chosen]
  total = sum(score_E[e] for e in winners) if r.normalise else 1
  return {e: r.scale * score_E[e] / total for e in winners}


@pytest.mark.parametrize('changes', CASES, ids=str)
def test_the_chosen_experts_and_their_weights_are_the_papers(changes, rng):
  r = Routing(**ROUTING | changes)
  logit_NE, bias_E = rng.normal(size=(200, E)), rng.normal(size=E) * 0.3
  score_NE = np.array([scores(logit_E, r.scores) for logit_E in logit_NE])
  ours_NE = moe.SCORES[r.scores](jnp.float32(logit_NE))
  np.testing.assert_allclose(ours_NE, score_NE, rtol=1e-5)
  chosen_NC, weight_NC = choose(ours_NE, jnp.float32(bias_E), r)
  assert chosen_NC.shape == weight_NC.shape == (200, r.chosen)
  for n, score_E in enumerate(score_NE):
    expected = chosen_by_paper(score_E, bias_E, r)
    assert [int(e) for e in chosen_NC[n]] == list(expected)  # the best first
    np.testing.assert_allclose(weight_NC[n], list(expected.values()), rtol=1e-5)


def test_the_best_group_of_v2_is_not_v3_s():
  """One great expert beside a bad one, or two good ones: the maximum against the sum of two."""
  score_1E = jnp.float32([[0.9, 0.1, 0.6, 0.7]])
  of = lambda best: Routing(
    count=4, chosen=2, width=1, groups=2, groups_chosen=1, group_best=best
  )
  assert choose(score_1E, jnp.zeros(4), of(1))[0].tolist() == [[0, 1]]
  assert choose(score_1E, jnp.zeros(4), of(2))[0].tolist() == [[3, 2]]


def test_experts_of_other_groups_are_not_chosen_even_where_all_that_is_left_is_negative():
  """A mask of 0 instead of minus infinity would choose them."""
  r = Routing(count=4, chosen=2, width=1, groups=2, groups_chosen=1, group_best=1)
  score_1E, bias_E = jnp.float32([[0.9, 0.2, 0.5, 0.5]]), jnp.float32([0, -0.5, -0.6, -0.6])
  assert choose(score_1E, bias_E, r)[0].tolist() == [[0, 1]]


def test_the_bias_chooses_but_weighs_nothing_and_gets_no_gradient():
  r = Routing(count=3, chosen=2, width=1, normalise=False)
  score_1E, bias_E = jnp.float32([[0.5, 0.4, 0.1]]), jnp.float32([0, 0, 9])
  chosen_1C, weight_1C = choose(score_1E, bias_E, r)
  assert chosen_1C.tolist() == [[2, 0]] and weight_1C.tolist() == [[np.float32(0.1), 0.5]]
  gradient = lambda argument: jax.grad(
    lambda *args: choose(*args, r)[1].sum(), argnums=argument
  )(score_1E, bias_E)
  assert gradient(0).tolist() == [[1, 0, 1]] and gradient(1).tolist() == [0, 0, 0]


# --- what comes out -------------------------------------------------------------------------------


def layer(form='tiled', activate=gated, biases=(), **changes):
  routing = Routing(**ROUTING | changes, form=form)
  return Experts(routing, activate=activate, output_scale=1.0, biases=biases)


def given(rng, biases=(), **changes):
  """x_BLD and parameters in float64."""
  r = Routing(**ROUTING | changes)
  params = {
    'router_DE': rng.normal(size=(D, E)),
    'bias_E': rng.normal(size=E) * 0.2,
    'gate_EDM': rng.normal(size=(E, D, M)) * D**-0.5,
    'up_EDM': rng.normal(size=(E, D, M)) * D**-0.5,
    'down_EMD': rng.normal(size=(E, M, D)) * M**-0.5,
  }
  if biases:
    params |= {name: rng.normal(size=shape) for name, shape in BIASES.items()}
  return rng.normal(size=(B, L, D)), params, r


def apply(module, params, x_BLD, *args, **kwargs):
  """In one program: operation by operation, each would be compiled."""
  run = jax.jit(lambda params, *args: module.apply({'params': params}, *args, **kwargs))
  return run(jax.tree.map(jnp.float32, params), jnp.float32(x_BLD), *args)


def swiglu(gate_M, up_M):
  return gate_M / (1 + np.exp(-gate_M)) * up_M


def by_loop(params, x_BLD, r, activate=swiglu):
  """out_BLD, and count_E: token by token, expert by expert."""
  bias = lambda name, *e: params[name][e] if name in params else 0
  out_BLD, count_E = np.zeros_like(x_BLD), np.zeros(E, int)
  for b, t in itertools.product(range(len(x_BLD)), range(x_BLD.shape[1])):
    x_D = x_BLD[b, t]
    logit_E = x_D @ params['router_DE'] + bias('router_bias_E')
    chosen = chosen_by_paper(scores(logit_E, r.scores), params['bias_E'], r)
    for e, weight in chosen.items():
      before, after = (weight, 1) if r.weighs == 'input' else (1, weight)
      gate_M = before * x_D @ params['gate_EDM'][e] + bias('gate_bias_EM', e)
      up_M = before * x_D @ params['up_EDM'][e] + bias('up_bias_EM', e)
      down_D = activate(gate_M, up_M) @ params['down_EMD'][e] + bias('down_bias_ED', e)
      out_BLD[b, t] += after * down_D
      count_E[e] += 1
  return out_BLD, count_E


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('changes', CASES, ids=str)
def test_routed_output_is_that_of_a_loop_over_tokens_and_experts(form, changes, rng, tolerance):
  x_BLD, params, r = given(rng, **changes)
  expected_BLD, count_E = by_loop(params, x_BLD, r)
  ours_BLD, kept = apply(layer(form, **changes), params, x_BLD, mutable=['loads'])
  atol = tolerance(D + M + C) * max(1, np.abs(expected_BLD).max())
  np.testing.assert_allclose(ours_BLD, expected_BLD, rtol=0, atol=atol)
  assert kept['loads']['count_E'][0].tolist() == count_E.tolist()


CLAMPED = Gate(activation='gelu_sigmoid', limit=0.8, offset=1.0)


def clamped(gate_M, up_M):
  gate_M, up_M = np.minimum(gate_M, 0.8), np.clip(up_M, -0.8, 0.8)
  return gate_M / (1 + np.exp(-1.702 * gate_M)) * (up_M + 1)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(
  'changes', [{'scores': 'softmax'}, {'weighs': 'input', 'chosen': 1}], ids=str
)
def test_experts_have_biases_limits_and_an_offset(form, changes, rng, tolerance):
  """With softmax scores, gpt-oss's; a softmax over the chosen logits alone is the same."""
  settings = {'biases': ('router', 'experts'), **changes}
  x_BLD, params, r = given(rng, **settings)
  expected_BLD, count_E = by_loop(params, x_BLD, r, clamped)
  ours_BLD, kept = apply(layer(form, CLAMPED, **settings), params, x_BLD, mutable=['loads'])
  atol = tolerance(D + M + C) * np.abs(expected_BLD).max()
  np.testing.assert_allclose(ours_BLD, expected_BLD, rtol=0, atol=atol)
  assert kept['loads']['count_E'][0].tolist() == count_E.tolist()
  if r.scores == 'softmax':
    logit_E = x_BLD[0, 0] @ params['router_DE'] + params['router_bias_E']
    chosen = chosen_by_paper(scores(logit_E, 'softmax'), params['bias_E'], r)
    alone_C = np.exp([logit_E[e] for e in chosen])
    np.testing.assert_allclose([*chosen.values()], alone_C / alone_C.sum())


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('rows', [(1, 1), (3, 1), (1, 90)])
def test_a_few_tokens_of_a_step_of_decoding_pass_as_many_do(form, rows, rng, tolerance):
  _, params, r = given(rng)
  x_BLD = rng.normal(size=(*rows, D))
  expected_BLD, _ = by_loop(params, x_BLD, r)
  ours_BLD = apply(layer(form), params, x_BLD)
  atol = tolerance(D + M + C) * np.abs(expected_BLD).max()
  np.testing.assert_allclose(ours_BLD, expected_BLD, rtol=0, atol=atol)


@pytest.mark.parametrize('form', FORMS)
def test_no_token_is_dropped_where_all_choose_the_same_experts(form, rng, tolerance):
  """Thirteen tiles of one expert, none of others: a capacity of twice the mean would drop half."""
  _, params, r = given(rng)
  params['bias_E'] = np.where(np.arange(E) < C, 10.0, 0)
  x_BLD = rng.normal(size=(2, 13 * grouped.TILE // 2, D))
  expected_BLD, count_E = by_loop(params, x_BLD, r)
  assert count_E.tolist() == [13 * grouped.TILE] * C + [0] * (E - C)
  ours_BLD, kept = apply(layer(form), params, x_BLD, mutable=['loads'])
  assert kept['loads']['count_E'][0].tolist() == count_E.tolist()
  atol = tolerance(D + M + C) * np.abs(expected_BLD).max()
  np.testing.assert_allclose(ours_BLD, expected_BLD, rtol=0, atol=atol)


@pytest.mark.parametrize('tile', [1, 4, 1000])
def test_tiles_of_any_size_hold_each_row_once(tile, rng, tolerance, monkeypatch):
  monkeypatch.setattr(grouped, 'TILE', tile)
  size_E, rows = [0, 5, 1, 0, 8, 4, 0], 18
  x_AD, w_EDO = rng.normal(size=(rows, D)), rng.normal(size=(7, D, M))
  expert_A = np.repeat(np.arange(7), size_E)
  expected_AO = np.einsum('ad,ado->ao', x_AD, w_EDO[expert_A])
  ours_AO = grouped.tiled(jnp.float32(x_AD), jnp.float32(w_EDO), jnp.int32(size_E))
  np.testing.assert_allclose(
    ours_AO, expected_AO, rtol=0, atol=tolerance(D) * np.abs(expected_AO).max()
  )


@pytest.mark.parametrize('form', ['tiled', pytest.param('ragged', marks=pytest.mark.slow)])
@pytest.mark.parametrize(
  'changes',
  [{}, V2, V3, {'weighs': 'input', 'normalise': False}, {'biases': ('router', 'experts')}],
  ids=['plain', 'V2', 'V3', 'input', 'biases'],
)
def test_gradients_are_those_of_the_dense_loop(form, changes, rng, tolerance):
  x_BLD, params, _ = given(rng, **changes)
  weight_BLD = jnp.float32(rng.normal(size=x_BLD.shape))

  def gradients(form):
    total = lambda params, x_BLD: (
      layer(form, **changes).apply({'params': params}, x_BLD) * weight_BLD
    ).sum()
    return jax.jit(jax.grad(total, argnums=(0, 1)))(
      jax.tree.map(jnp.float32, params), jnp.float32(x_BLD)
    )

  ours, theirs = gradients(form), gradients('dense')
  assert not ours[0]['bias_E'].any()
  assert all(x.any() for name, x in ours[0].items() if name != 'bias_E')
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    scale = max(1, float(jnp.abs(b).max()))
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance(B * L + D) * scale)


@pytest.mark.parametrize('form', FORMS)
def test_devices_that_hold_some_of_the_experts_add_up_to_all(form, rng, tolerance):
  """With rows that are nobody's there, or everybody's."""
  x_BLD, params, r = given(rng)
  params = jax.tree.map(jnp.float32, params)
  x_ND, w = jnp.float32(x_BLD).reshape(-1, D), moe.Weights(*[params[n] for n in MATRICES])
  score_NE = jax.nn.sigmoid(x_ND @ params['router_DE']).at[::2, :2].add(-1)
  chosen_NC, weight_NC = choose(score_NE, params['bias_E'], r)
  mix = jax.jit(lambda chosen_NC, w: FORMS[form](x_ND, chosen_NC, weight_NC, w, activate=gated))
  cut = lambda a, b: jax.tree.map(lambda x: x[a:b], w)
  parts = [mix(chosen_NC - a, cut(a, b)) for a, b in ((0, 2), (2, 3), (3, E))]
  whole_ND = mix(chosen_NC, w)
  np.testing.assert_allclose(
    sum(parts), whole_ND, rtol=0, atol=tolerance(D + M) * float(jnp.abs(whole_ND).max())
  )


def test_a_gradient_of_float32_weights_is_summed_in_float32(rng):
  """Under bfloat16 activations the sum of many rows would lose what is small."""
  rows = 4096
  x_AD, w_EDO = jnp.ones((rows, 1), jnp.bfloat16), jnp.ones((1, 1, 1))
  total = lambda w_EDO: grouped.tiled(x_AD, w_EDO, jnp.int32([rows])).astype(jnp.float32).sum()
  assert jax.grad(total)(w_EDO).tolist() == [[[rows]]]


def test_the_router_chooses_in_float32_whatever_the_activations_are(rng):
  """Two experts whose logits differ by less than bfloat16 can tell."""
  params = jax.tree.map(jnp.float32, given(rng)[1])
  params |= {'router_DE': jnp.zeros((D, E)).at[0].set(1 + 1e-3 * jnp.arange(E)),
             'bias_E': jnp.zeros(E)}  # fmt: skip
  x_BLD = jnp.ones((1, 1, D), jnp.bfloat16)
  run = jax.jit(lambda x_BLD: layer().apply({'params': params}, x_BLD, mutable=['loads']))
  out_BLD, kept = run(x_BLD)
  assert out_BLD.dtype == jnp.bfloat16
  assert kept['loads']['count_E'][0].tolist() == [0] * (E - C) + [1] * C


def test_shared_experts_are_one_gated_mlp_beside_the_routed_ones(rng):
  x_BLD, params, r = given(rng)
  r = dataclasses.replace(r, shared=2)
  module = MixedMLP(r, output_scale=1.0, gate=gated, mesh=None)
  whole = jax.jit(module.init)(jax.random.key(0), jnp.float32(x_BLD))['params']
  assert whole['shared']['up_DM'].shape == (D, 2 * M)
  whole |= {'experts': params}
  up = {name: np.float64(w) for name, w in whole['shared'].items()}
  gate_BLM = x_BLD @ up['gate_DM']
  shared_BLD = gate_BLM / (1 + np.exp(-gate_BLM)) * (x_BLD @ up['up_DM']) @ up['down_MD']
  expected_BLD = by_loop(params, x_BLD, r)[0] + shared_BLD
  np.testing.assert_allclose(apply(module, whole, x_BLD), expected_BLD, rtol=0, atol=2e-5)


# --- loads ----------------------------------------------------------------------------------------


def test_padding_is_counted_nowhere(rng):
  x_BLD, params, _ = given(rng)
  real_BL = np.arange(L) < np.array([[4], [0]])
  _, kept = apply(layer(), params, x_BLD, jnp.array(real_BL), mutable=['loads'])
  _, short = apply(layer(), params, x_BLD[:1, :4], mutable=['loads'])
  assert kept['loads']['count_E'][0].tolist() == short['loads']['count_E'][0].tolist()
  np.testing.assert_allclose(
    kept['loads']['imbalance'][0], short['loads']['imbalance'][0], rtol=1e-6
  )


@pytest.mark.parametrize('kind', ['sigmoid', 'softmax'])
def test_the_load_balance_loss_is_the_papers_row_by_row(kind, rng):
  logit_BLE = rng.normal(size=(3, L, E))
  score_BLE = np.array([[scores(x_E, kind) for x_E in row] for row in logit_BLE])
  chosen_BLC = np.argsort(-score_BLE, axis=-1)[..., :C]
  expected = 0
  for b in range(3):
    row = 0
    for e in range(E):
      f = E / (C * L) * sum(e in chosen_BLC[b, t] for t in range(L))
      p = sum(score_BLE[b, t, e] / score_BLE[b, t].sum() for t in range(L)) / L
      row += f * p
    expected += L * row
  real_BL = jnp.ones((3, L), bool)
  count_BE = counts(jnp.array(chosen_BLC), real_BL, E)
  ours = imbalance(jnp.float32(score_BLE), count_BE, real_BL, C)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_the_load_balance_loss_is_one_for_equal_loads_and_the_experts_over_the_chosen_at_worst():
  """And its gradient lowers the scores of experts that many tokens chose."""
  real_BL = jnp.ones((1, 4), bool)
  mean = lambda score_BLE, count: imbalance(
    score_BLE, jnp.int32([count]), real_BL, 1
  ) / 4
  np.testing.assert_allclose(mean(jnp.full((1, 4, 4), 0.25), [1, 1, 1, 1]), 1)
  one_BLE = jnp.zeros((1, 4, 4)).at[..., 0].set(1)
  np.testing.assert_allclose(mean(one_BLE, [4, 0, 0, 0]), 4)
  gradient_BLE = jax.grad(mean)(jnp.full((1, 4, 4), 0.25), [3, 1, 0, 0])
  assert (gradient_BLE[..., 0] > 0).all() and (gradient_BLE[..., 2:] < 0).all()


def test_a_bias_moves_one_rate_toward_the_mean_load_whatever_the_distance():
  """Algorithm 1 of arXiv:2408.15664; an expert that has the mean load stays."""
  count_XE = jnp.int32([[9, 1, 2, 4], [0, 0, 0, 0], [3, 3, 3, 4]])
  params = {'blocks': {'experts': {'bias_E': jnp.full((3, 4), 0.5), 'up_EDM': jnp.ones(2)}}}
  loads = {'blocks': {'experts': {'count_E': (count_XE,), 'imbalance': (jnp.ones(3),)}}}
  after = balance(params, loads, 0.125)['blocks']['experts']
  assert after['up_EDM'] is params['blocks']['experts']['up_EDM']
  step_XE = [[-1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, -1]]
  np.testing.assert_array_equal(after['bias_E'], 0.5 + 0.125 * np.array(step_XE))
  assert balance(params, {}, 0.125) is params


def test_statistics_say_how_far_loads_are_from_equal():
  count_XE = jnp.int32([[6, 2, 0, 0], [2, 2, 2, 2]])
  loads = {'rest': {'experts': {'count_E': (count_XE,), 'imbalance': (jnp.float32([8, 4]),)}}}
  ours = statistics(loads, 4)
  expected = {'load_violation': (2 + 0) / 2, 'load_idle': 2 / 8, 'load_imbalance': (2 + 1) / 2}
  assert {name: float(value) for name, value in ours.items()} == expected
  assert statistics({}, 4) == {}


def test_biases_equalise_loads_of_a_router_that_learns_nothing(rng):
  """Scores that favour some experts: from over twice the mean load to within a tenth of it."""
  r = Routing(**ROUTING)
  score_NE = jax.nn.sigmoid(jnp.float32(rng.normal(size=(800, E)) + np.linspace(-2, 2, E)))

  @jax.jit
  def step(params, _):
    chosen_NC, _ = choose(score_NE, params['bias_E'], r)
    count_1E = counts(chosen_NC[None], jnp.ones((1, len(score_NE)), bool), E)
    loads = {'count_E': (count_1E[0],), 'imbalance': (jnp.ones(()),)}
    return balance(params, loads, 1e-2), statistics(loads, 800)['load_violation']

  _, violation_T = jax.lax.scan(step, {'bias_E': jnp.zeros(E)}, length=200)
  assert violation_T[0] > 1 and violation_T[-20:].max() < 0.1


# --- in training ----------------------------------------------------------------------------------

SETTINGS = ('log.every=1', 'train.batch=8', 'train.balance_loss=0.01')
LOADS = ('load_violation', 'load_idle', 'load_imbalance')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of configs/moe.py, a dense layer and one of experts, and what it reported."""
  workdir = tmp_path_factory.mktemp('moe') / 'run'
  rows = train_here(
    workdir, *SETTINGS, config='configs/moe.py:smoke', evaluate='configs/eval/base.py:smoke'
  )
  return workdir, rows


def experts_of(tree):
  return tree['blocks']['layer_1']['mlp']['experts']


def assert_equal_loads(rows, reference):
  for name in LOADS:
    ours, theirs = ([row[name] for row in lines] for lines in (rows, reference))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=name)


def test_every_line_of_the_metrics_says_how_experts_were_loaded(trained):
  """No token is dropped: the mean load is that of 8 x 32 tokens, 3 experts each, of 16."""
  _, rows = trained
  mean = 8 * 32 * 3 / 16
  for row in rows:
    largest = (row['load_violation'] + 1) * mean
    assert abs(largest - round(largest)) < 1e-3 and mean <= largest <= 8 * 32
    assert (row['load_idle'] * 16).is_integer() and 0.9 < row['load_imbalance'] < 16 / 3


def test_only_the_balance_moves_the_routing_bias(trained):
  """Six steps of one rate each, up or down or not; the optimizer has seen no gradient of it."""
  _, tree, _ = stored(trained[0])
  steps_1E = np.float64(experts_of(tree['params'])['bias_E']) / 1e-3
  np.testing.assert_allclose(steps_1E, np.round(steps_1E), atol=1e-4)
  assert 0 < np.abs(steps_1E).max() < 6.5
  found = jax.tree_util.tree_leaves_with_path(tree['optimizer'])
  moments = [x for path, x in found if jax.tree_util.keystr(path).endswith("['bias_E']")]
  assert len(moments) == 2 and not any(x.any() for x in moments)


@pytest.mark.slow
def test_a_run_with_experts_that_resumes_ends_with_the_same_bits(trained, tmp_path):
  copy = shutil.copytree(trained[0], tmp_path / 'copy')
  shutil.rmtree(copy / 'checkpoints' / '6')
  train_here(copy, *SETTINGS, config='configs/moe.py:smoke')
  assert_same_bits(copy, trained[0])


@pytest.mark.slow
def test_parts_of_a_batch_have_the_loads_and_the_balance_of_the_whole(trained, tmp_path):
  settings = (*SETTINGS, 'train.accumulate=4', 'model.experts.form=dense', 'model.remat=block')
  rows = train_here(tmp_path / 'run', *settings, config='configs/moe.py:smoke')
  assert_close(rows, trained[1])
  assert_equal_loads(rows, trained[1])


@pytest.mark.slow
def test_experts_spread_over_eight_devices_learn_what_those_of_one_do(trained, tmp_path):
  """Two devices along each axis: rows over data and fsdp, experts over tensor."""
  mesh = ('mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2')
  _, complaints = train_there(
    words(tmp_path / 'run', *SETTINGS, *mesh, config='configs/moe.py:smoke'), devices=8
  )
  assert 'rematerialization' not in complaints  # XLA copies no activations to all devices
  rows = metrics.read(tmp_path / 'run')
  assert_close(rows, trained[1])
  assert_equal_loads(rows, trained[1])
  (_, ours, _), (_, theirs, _) = stored(tmp_path / 'run'), stored(trained[0])
  ours, theirs = experts_of(ours['params']), experts_of(theirs['params'])
  np.testing.assert_array_equal(ours['bias_E'], theirs['bias_E'])
  for name in ('router_DE', 'gate_EDM', 'down_EMD'):
    np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_experts_decode_with_a_cache_as_they_read_the_whole_row(rng):
  """In tiles that are cut to the few rows that experts get in a step."""
  layers = (Layer(scheme=positions.make('none'), mlp=kind) for kind in ('gated', 'experts'))
  model, params = test_decoding.build(*layers, experts=Routing(**ROUTING | V3, shared=1))
  tokens_BL = jnp.asarray(rng.integers(0, test_decoding.V, (2, test_decoding.L)), jnp.int32)
  given = model, params, model.spectrum(), tokens_BL
  found_BLV, _ = test_decoding.decoded(*given, test_decoding.PIECES)
  np.testing.assert_allclose(found_BLV, test_decoding.whole(*given), rtol=0, atol=1e-4)


def test_matrices_of_experts_decay_and_their_biases_do_not(rng):
  _, params, _ = given(rng, biases=('router', 'experts'))
  matrices = {name for name, decays in decayed(params).items() if decays}
  assert matrices == {'router_DE', 'gate_EDM', 'up_EDM', 'down_EMD'}
  assert params.keys() - matrices == {'bias_E', *BIASES}


def test_each_device_holds_whole_experts_and_parts_of_their_matrices():
  sizes = {'data': 2, 'fsdp': 2, 'tensor': 2}
  places = sharding.place(
    {
      'gate_EDM': jax.ShapeDtypeStruct((3, 16, 32, 12), 'float32'),
      'down_EMD': jax.ShapeDtypeStruct((3, 16, 12, 32), 'float32'),
      'router_DE': jax.ShapeDtypeStruct((3, 32, 16), 'float32'),
      'bias_E': jax.ShapeDtypeStruct((3, 16), 'float32'),
      'up_bias_EM': jax.ShapeDtypeStruct((3, 16, 12), 'float32'),
      'down_bias_ED': jax.ShapeDtypeStruct((3, 16, 32), 'float32'),
    },
    AbstractMesh(tuple(sizes.values()), tuple(sizes)),
  )
  assert {name: place.spec for name, place in places.items()} == {
    'gate_EDM': P(None, 'tensor', 'fsdp', None),
    'down_EMD': P(None, 'tensor', None, 'fsdp'),
    'router_DE': P(None, None, None),
    'bias_E': P(None, None),
    'up_bias_EM': P(None, 'tensor', None),
    'down_bias_ED': P(None, 'tensor', None),
  }


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'chosen': 9}, r'cannot choose 9 experts of 8, .* in 1 of 1 groups. Lower experts.chosen, or'),
    ({'groups': 4, 'groups_chosen': 1, 'chosen': 3}, r'cannot choose 3 experts of 2, which are in'),
    ({'groups': 3}, r'8 experts cannot be cut into 3 equal groups. Make experts.groups a divisor'),
    ({'groups': 2, 'groups_chosen': 3}, r'3 groups cannot be chosen of 2. Lower experts.groups_'),
    ({'groups': 8, 'groups_chosen': 8}, r'A group of 1 experts has no 2 best. Lower .*best to 1'),
    ({'chosen': 0}, r'experts.chosen = 0. Use a whole number >= 1'),
    ({'width': 0}, r'experts.width = 0. Use a whole number >= 1'),
    ({'shared': -1}, r'experts.shared = -1. Use 0 for none, or more'),
    ({'scores': 'tanh'}, r"experts.scores = 'tanh' is unknown. Use one of: sigmoid, softmax"),
    ({'weighs': 'both'}, r"experts.weighs = 'both' is unknown. Use one of: output, input"),
    ({'form': 'fast'}, r"experts.form = 'fast' is unknown. Use one of: auto, dense, tiled, rag"),
  ],
)
def test_numbers_that_do_not_fit_each_other_are_refused_with_the_way_out(changes, message):
  with pytest.raises(ValueError, match=message):
    Routing(**ROUTING | changes)


@pytest.mark.parametrize(
  ('layer', 'model', 'message'),
  [
    ({'mlp': 'expert'}, {}, r"A layer's mlp = 'expert' is unknown. Use one of: gated, plain, exp"),
    ({'mlp': 'experts'}, {}, r"mlp = 'experts' needs to know which. Give experts=Routing"),
    ({}, {'mlp': 'experts'}, r"mlp = 'experts' needs to know which"),
  ],
)
def test_a_layer_of_unknown_experts_is_refused(layer, model, message):
  sizes = dict.fromkeys(
    ('length', 'vocabulary', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width'), 4
  )
  with pytest.raises(ValueError, match=message):
    Decoder(pattern=(Layer(scheme=positions.make('none'), **layer),), **sizes, **model)
