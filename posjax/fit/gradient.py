"""Divisors and temperature by gradient descent, with the weights frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from posjax.fit.budget import Budget, Found

RATE = 0.03  # of Adam, on logarithms: a step changes a number by about 3 %


def gradient(budget: Budget, seed: int) -> Found:
  """Adam on ln divisor_F and ln temperature, from YaRN's, one window a step; the rate falls
  linearly to 0."""
  order = np.random.default_rng(seed)
  steps = (budget.left - budget.windows) // 3
  optimizer = optax.adam(optax.linear_schedule(RATE, 0, steps), b2=0.99)
  # YaRN's factor multiplies queries and keys, the temperature their product.
  point = (
    jnp.asarray(np.log(budget.divisors('yarn')), jnp.float32),
    jnp.asarray(2 * np.log(0.1 * np.log(budget.factor) + 1), jnp.float32),
  )
  state, history = optimizer.init(point), []
  for step in range(steps):
    if step % budget.windows == 0:
      windows = order.permutation(budget.windows)
    loss, slopes = budget.slope(*point, int(windows[step % budget.windows]))
    updates, state = optimizer.update(slopes, state)
    point = optax.apply_updates(point, updates)
    budget.spent += 3
    history.append((budget.spent, float(loss)))
  log_divisor_F, log_temperature = jax.tree.map(np.float64, point)
  recipe = {
    'name': 'rescale',
    'divisors': tuple(np.exp(log_divisor_F).tolist()),
    'temperature': float(np.exp(log_temperature)),
  }
  return Found(recipe=recipe, loss=budget.measure(recipe), passes=budget.spent, history=history)
