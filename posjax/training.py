"""Optimizer, state, and one pure training step.

Letters: B rows of a batch, L tokens, A parts that a batch is cut into (accumulation).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from posjax import balancing, sampling
from posjax.decoder import Decoder, init_params
from posjax.loss import counted, real, token_losses_and_loads


@functools.partial(
  jax.tree_util.register_dataclass, data_fields=['params', 'optimizer', 'step'], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, kw_only=True)
class State:
  """All that a step changes: float32 parameters, optax's state, steps done."""

  params: Any
  optimizer: Any
  step: jax.Array


def make_schedule(train: ConfigDict, begin: int = 0) -> optax.Schedule:
  """Learning rate after `step` steps: linear warm-up, then a cosine, or a plateau and linear decay.

  begin: steps of the phases before, which it does not count.

  Raises ValueError for an unknown schedule, or if warm-up (and decay) do not fit into the steps.
  """
  peak, final = train.learning_rate, train.learning_rate * train.final
  if not 0 <= train.warmup < train.steps:
    raise ValueError(
      f'A warm-up of {train.warmup} steps does not fit into {train.steps} steps. '
      'Use --config.train.warmup between 0 and train.steps - 1.'
    )
  # From peak / warmup, not from 0: a first step without a step would be a step lost.
  warm = optax.linear_schedule(peak / max(1, train.warmup), peak, max(0, train.warmup - 1))
  if train.schedule == 'cosine':
    rest = optax.cosine_decay_schedule(peak, train.steps - train.warmup, alpha=train.final)
    return after(begin, optax.join_schedules([warm, rest], [train.warmup]))
  if train.schedule == 'wsd':
    decay = round(train.decay * train.steps)
    if not 0 <= decay <= train.steps - train.warmup:
      raise ValueError(
        f'A decay over {decay} steps does not fit after a warm-up of {train.warmup} of '
        f'{train.steps} steps. Use a smaller --config.train.decay, at least 0.'
      )
    stable, fall = optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)
    joined = optax.join_schedules([warm, stable, fall], [train.warmup, train.steps - decay])
    return after(begin, joined)
  raise ValueError(f"No schedule '{train.schedule}'. Use cosine or wsd.")


def after(begin: int, schedule: optax.Schedule) -> optax.Schedule:
  return lambda step: schedule(step - begin)


def make_optimizer(train: ConfigDict, begin: int = 0) -> optax.GradientTransformation:
  """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) after clipping of the global norm.

  Its state is the same in all phases, which carry it over; `begin` as for the schedule.
  """
  adamw = optax.adamw(
    make_schedule(train, begin),
    b1=train.b1,
    b2=train.b2,
    weight_decay=train.weight_decay,
    mask=decayed,
  )
  return adamw if train.clip is None else optax.chain(optax.clip_by_global_norm(train.clip), adamw)


def decayed(params: Any) -> Any:
  """True for matrices, by the axes their names end with: not for norms, biases or positions."""

  def one(path, _):
    keys = [entry.key for entry in path]
    name, _, axes = keys[-1].rpartition('_')
    return 'position' not in keys and len(axes) >= 2 and not name.endswith('bias')

  return jax.tree_util.tree_map_with_path(one, params)


def init_state(model: Decoder, optimizer: optax.GradientTransformation, key: jax.Array) -> State:
  """A state before the first step. Pure: give it to jax.eval_shape, or to jit with shardings."""
  params = init_params(model, key)
  return State(params=params, optimizer=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def make_step(
  model: Decoder,
  optimizer: optax.GradientTransformation,
  train: ConfigDict,
  *,
  sampler: sampling.Sampler = sampling.PLAIN,
  seed: int = 0,
) -> Callable[[State, Any, Any], tuple[State, dict[str, jax.Array]]]:
  """step(state, spectrum, batch) -> (state, metrics), pure.

  The loss is the mean over the batch's targets, in nats per token, plus z_loss * mean(log_z^2)
  (PaLM, Chowdhery et al. 2022, arXiv:2204.02311, sec. 5) + balance_loss * the load-balance loss of
  each layer of experts, whose routing biases the step then moves by their loads. Cutting the batch
  into parts changes memory and the order of sums, nothing else: they are divided by the whole
  batch's targets.

  What is drawn at random, by `sampler` and by the schemes (`Scheme.sample`), is a function of the
  seed and the step.

  metrics: loss (nats per token, without the other parts), gradient_norm (before clipping), and with
  experts their loads (`balancing.statistics`).
  """

  def sums(params, spectrum, batch, share):
    (loss_BL, log_z_BL), loads = token_losses_and_loads(
      model,
      params,
      spectrum,
      batch,
      chunk=train.loss_chunk,
      contiguous=sampler == sampling.PLAIN,
    )
    nats = loss_BL.sum()
    total = nats + train.z_loss * jnp.square(log_z_BL).sum()
    for _, _, imbalance_X in balancing.layers(loads):
      total += train.balance_loss * share * imbalance_X.sum()
    return total, (nats, loads)

  def gradients(params, spectrum, batch, share):
    grad = jax.grad(sums, has_aux=True)
    if train.accumulate == 1:
      return grad(params, spectrum, batch, share)
    # Part a takes rows a, a + A, ...: each device's rows stay where they are.
    parts = jax.tree.map(
      lambda x: x.reshape(-1, train.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
    )
    of_part = lambda part: grad(params, spectrum, part, share)
    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    add = lambda total, part: (jax.tree.map(jnp.add, total, of_part(part)), None)
    return jax.lax.scan(add, zero, parts)[0]

  def step(state, spectrum, batch):
    position_key, spectrum_key = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), state.step)
    )
    batch = batch | {'positions': sampler(position_key, batch['positions'])}
    spectrum = model.sample(spectrum, spectrum_key)
    count, tokens = (jnp.maximum(f(batch).sum(), 1) for f in (counted, real))
    # Loads are of tokens, be they read or learned, but the sums will be divided by the targets.
    grads, (nats, loads) = gradients(state.params, spectrum, batch, count / tokens)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, optimizer_state = optimizer.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new = State(
      params=balancing.balance(params, loads, train.balance_rate),
      optimizer=optimizer_state,
      step=state.step + 1,
    )
    measured = {'loss': nats / count, 'gradient_norm': optax.tree.norm(grads)}
    return new, measured | balancing.statistics(loads, tokens)

  return step
