"""One training step is AdamW's equations, the schedules are their formulas, and parts add up."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from posjax import positions
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.loss import token_losses
from posjax.training import State, decayed, init_state, make_optimizer, make_schedule, make_step

B, L, V = 4, 9, 13
MODEL = {
  'length': L, 'vocabulary': V, 'width': 8, 'layers': 2, 'heads': 2, 'kv_heads': 1,
  'head_width': 4, 'mlp_width': 12, 'attention': 'dense', 'dtype': 'float32', 'norm': 'layer',
}  # fmt: skip


def settings(**changes):
  """config.train for a few steps on a batch of B rows."""
  train = base.get_config().train
  train.update({'length': L, 'batch': B, 'steps': 4, 'warmup': 2, **changes})
  return train


@functools.cache
def tiny(scheme='t5'):
  model = Decoder(pattern=(Layer(scheme=positions.make(scheme)),), **MODEL)
  rng = np.random.default_rng(1)
  batches = [
    {
      'tokens': rng.integers(V, size=(B, L), dtype=np.int32),
      'targets': rng.integers(V, size=(B, L), dtype=np.int32),
      'positions': np.tile(np.arange(L, dtype=np.int32), (B, 1)),
      # Rows of unequal length, the last one empty: means over rows are not means over targets.
      'segments': np.int32([[1] * L, [1] * 5 + [0] * 4, [1] * 4 + [2] * 5, [0] * L]),
    }
    for _ in range(4)
  ]
  for batch in batches:
    batch['targets'][0, 2:5] = -1  # read, not learned
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  init = lambda key: init_state(model, make_optimizer(settings()), key).params
  params = jax.jit(init)(jax.random.key(0))
  return types.SimpleNamespace(model=model, spectrum=spectrum, batches=batches, params=params)


@functools.cache
def compiled(**changes):
  """The first state and the jitted step of `settings(**changes)`."""
  t, train = tiny(), settings(**changes)
  optimizer = make_optimizer(train)
  inner = jax.jit(optimizer.init)(t.params)
  state = State(params=t.params, optimizer=inner, step=jnp.int32(0))
  return state, jax.jit(make_step(t.model, optimizer, train))


def run(**changes):
  """The states after 0, 1, .. 4 steps, and what each step measured."""
  state, step = compiled(**changes)
  states, measured = [state], []
  for batch in tiny().batches:
    state, values = step(state, tiny().spectrum, batch)
    states.append(state)
    measured.append(values)
  return states, measured


@functools.cache
def mean_and_gradient(z_loss):
  """((with the z part, without), gradient) of all targets / their number, apart from the step."""
  t = tiny()

  def loss(params, batch):
    loss_BL, log_z_BL = token_losses(t.model, params, t.spectrum, batch)
    seen_BL = (batch['segments'] > 0) & (batch['targets'] >= 0)
    mean = lambda x_BL: jnp.where(seen_BL, x_BL, 0).sum() / seen_BL.sum()
    return mean(loss_BL + z_loss * log_z_BL**2), mean(loss_BL)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize(
  'changes',
  [
    pytest.param({'clip': None}, marks=pytest.mark.slow),
    {'clip': 0.05, 'b1': 0.8, 'b2': 0.99, 'weight_decay': 0.5},
    {'z_loss': 0.1, 'schedule': 'wsd', 'decay': 0.25, 'learning_rate': 1e-2, 'weight_decay': 0.0},
  ],
)
def test_four_steps_are_adamw_after_clipping_in_float64(changes):
  train = settings(**changes)
  states, measured = run(**changes)
  schedule = make_schedule(train)
  first = jax.tree.map(np.zeros_like, jax.tree.map(np.float64, states[0].params))
  second = first
  for t, batch in enumerate(tiny().batches, start=1):
    params = jax.tree.map(np.float64, states[t - 1].params)
    (_, mean), gradient = mean_and_gradient(train.z_loss)(states[t - 1].params, batch)
    np.testing.assert_allclose(measured[t - 1]['loss'], mean, rtol=1e-5)
    gradient = jax.tree.map(np.float64, gradient)
    norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(measured[t - 1]['gradient_norm'], norm, rtol=1e-5)
    if train.clip is not None:
      assert norm > train.clip  # or this would not be a test of clipping
      gradient = jax.tree.map(lambda g, norm=norm: g * train.clip / norm, gradient)
    first = jax.tree.map(lambda m, g: train.b1 * m + (1 - train.b1) * g, first, gradient)
    second = jax.tree.map(lambda v, g: train.b2 * v + (1 - train.b2) * g**2, second, gradient)

    def update(w, m, v, decays, t=t):
      adam = m / (1 - train.b1**t) / (np.sqrt(v / (1 - train.b2**t)) + 1e-8)
      return w - float(schedule(t - 1)) * (adam + train.weight_decay * decays * w)

    expected = jax.tree.map(update, params, first, second, decayed(params))
    # Gradients near 0 have relative errors of their own, and Adam divides by their size.
    close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=2e-5)
    jax.tree.map(close, states[t].params, expected)
    assert states[t].step == t


def test_matrices_decay_and_norms_and_positions_do_not():
  norm = {'scale_D': False, 'bias_D': False}
  assert decayed(tiny().params) == {
    'embedding_VD': True,
    'head_DV': True,
    'final_norm': norm,
    'position': {'table_EH': False},
    'blocks': {
      'layer_0': {
        'attention_norm': norm,
        'mlp_norm': norm,
        'attention': {'query_DX': True, 'key_DX': True, 'value_DX': True, 'output_XD': True},
        'mlp': {'gate_DM': True, 'up_DM': True, 'down_MD': True},
      },
    },
  }


def test_parts_of_a_batch_add_up_to_the_whole():
  # The two parts hold different numbers of targets: a mean of means would be another loss.
  whole, parts = run(clip=None), run(clip=None, accumulate=2)
  for ours, theirs in zip(parts[1], whole[1], strict=True):
    np.testing.assert_allclose(ours['loss'], theirs['loss'], rtol=1e-5)
    np.testing.assert_allclose(ours['gradient_norm'], theirs['gradient_norm'], rtol=1e-4)


def test_a_batch_without_targets_makes_no_parameter_nan():
  state, step = compiled(clip=None)
  empty = tiny().batches[0] | {'segments': np.zeros((B, L), np.int32)}
  state, measured = step(state, tiny().spectrum, empty)
  assert measured['loss'] == 0
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def cosine(step, train):
  if step < train.warmup:
    return train.learning_rate * (step + 1) / train.warmup
  share = (step - train.warmup) / (train.steps - train.warmup)
  height = train.final + (1 - train.final) * (1 + np.cos(np.pi * share)) / 2
  return train.learning_rate * height


def wsd(step, train):
  if step < train.warmup:
    return train.learning_rate * (step + 1) / train.warmup
  falling = step - (train.steps - round(train.decay * train.steps))
  share = max(0, falling) / max(1, round(train.decay * train.steps))
  return train.learning_rate * (1 - (1 - train.final) * share)


@pytest.mark.parametrize('formula', [cosine, wsd])
@pytest.mark.parametrize(
  'changes',
  [
    {'steps': 50, 'warmup': 7},
    {'steps': 50, 'warmup': 0, 'final': 0.0, 'decay': 0.5},
    {'steps': 31, 'warmup': 1, 'final': 0.3, 'learning_rate': 0.1},
    {'steps': 20, 'warmup': 16, 'decay': 0.2},
    {'steps': 20, 'warmup': 5, 'decay': 0.0},
  ],
)
def test_the_learning_rate_is_the_formula_s_at_every_step(formula, changes):
  train = settings(schedule=formula.__name__, **changes)
  schedule = make_schedule(train)
  ours = [float(schedule(step)) for step in range(train.steps)]
  theirs = [formula(step, train) for step in range(train.steps)]
  np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'warmup': 4}, r'A warm-up of 4 steps does not fit into 4 steps.*between 0 and'),
    ({'warmup': -1}, r'A warm-up of -1 steps'),
    ({'schedule': 'wsd', 'decay': 0.9}, r'A decay over 4 steps does not fit after .* 2 of 4'),
    ({'schedule': 'wsd', 'decay': -0.5}, r'A decay over -2 steps'),
    ({'schedule': 'linear'}, r"No schedule 'linear'. Use cosine or wsd"),
  ],
)
def test_a_schedule_that_does_not_fit_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    make_schedule(settings(**changes))


def test_a_later_phase_starts_its_schedule_anew_with_the_optimizer_of_the_one_before():
  """Without gradients AdamW only decays: matrix' = matrix (1 - learning rate x weight decay)."""
  phases = settings(), settings(steps=5, warmup=3, learning_rate=0.2, schedule='wsd')
  params, steps, state, seen = {'w_AB': jnp.ones((1, 1))}, 0, None, []
  for train in phases:
    optimizer = make_optimizer(train, steps)
    state = optimizer.init(params) if state is None else state
    for _ in range(train.steps):
      updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
      seen.append(-float(updates['w_AB'][0, 0]) / train.weight_decay)
    steps += train.steps
  expected = [float(make_schedule(train)(n)) for train in phases for n in range(train.steps)]
  np.testing.assert_allclose(seen, expected, rtol=1e-6)
  assert seen[4] == pytest.approx(0.2 / 3)
