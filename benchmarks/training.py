"""Training steps: posjax against a plain JAX step, and each scheme against none. Medians, in turn.

  python -m benchmarks.training --json=benchmarks/results/training.json

The model: d_model 256, 4 layers, 8 heads of 32, plain MLP of 1024, 256 ids, float32, AdamW. `plain`
is the same model as one writes it first in JAX: dense attention, `x @ w`, autodiff, a Python loop
over layers.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks import measure
from configs import base
from posjax import positions
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.training import init_state, make_optimizer, make_step

WIDTH, LAYERS, HEADS, MLP, IDS = 256, 4, 8, 1024, 256
SHAPES = ((8, 512), (2, 2048))


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--schemes', nargs='+', default=positions.names())
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--json', help='write the figures here, too')
  flags = parser.parse_args()
  print(measure.where())
  results = {}
  for B, L in SHAPES:
    runs = {'plain': plain(B, L)}
    for name in dict.fromkeys(['none', *flags.schemes]):
      runs[name] = ours(name, B, L)
    seconds = measure.alternate(runs, rounds=flags.rounds)
    print(f'\n{B} x {L} tokens   tokens/s   over none   tokens/s over plain')
    for name, time in seconds.items():
      over_none, speed = time / seconds['none'], seconds['plain'] / time
      print(f'{name:14} {B * L / time:10,.0f} {over_none:11.2f} {speed:14.2f}')
    results[f'{B} x {L}'] = {
      name: {
        'tokens_per_second': B * L / time,
        'time_over_none': time / seconds['none'],
        'tokens_per_second_over_plain': seconds['plain'] / time,
      }
      for name, time in seconds.items()
    }
  measure.write(flags.json, {'results': results})


def random_batch(B: int, L: int, ids: int = IDS) -> dict[str, jax.Array]:
  tokens_BT = jax.random.randint(jax.random.key(1), (B, L + 1), 0, ids)
  return {
    'tokens': tokens_BT[:, :-1],
    'targets': tokens_BT[:, 1:],
    'positions': jnp.broadcast_to(jnp.arange(L), (B, L)),
    'segments': jnp.ones((B, L), jnp.int32),
  }


def repeat(step, state, *args):
  """A function that runs one more training step, jitted and donating, each time it is called."""

  def once():
    nonlocal state
    state, metrics = step(state, *args)
    return metrics

  return once


def ours(name: str, B: int, L: int, layers: int = LAYERS):
  step, init, *rest = program(name, B, L, layers)
  return repeat(step, jax.jit(init)(jax.random.key(0)), *rest)


def program(name: str, B: int, L: int, layers: int = LAYERS):
  """A scheme's step, what makes its state from a key, its spectrum, and a batch."""
  train = base.get_config().train
  model = Decoder(
    pattern=(Layer(scheme=positions.make(name)),),
    length=L,
    vocabulary=IDS,
    width=WIDTH,
    layers=layers,
    heads=HEADS,
    kv_heads=HEADS,
    head_width=WIDTH // HEADS,
    mlp='plain',
    mlp_width=MLP,
  )
  optimizer = make_optimizer(train)
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  step = jax.jit(make_step(model, optimizer, train), donate_argnums=0)
  init = functools.partial(init_state, model, optimizer)
  return step, init, spectrum, random_batch(B, L)


def plain(B: int, L: int):
  """The same model without positions, written plainly."""
  D, H, K = WIDTH, HEADS, WIDTH // HEADS
  normal = jax.nn.initializers.normal(D**-0.5)
  keys = iter(jax.random.split(jax.random.key(0), 100))
  params = {
    'embedding': normal(next(keys), (IDS, D)),
    'head': normal(next(keys), (D, IDS)),
    'norm': jnp.ones(D),
    'layers': [
      {
        'q': normal(next(keys), (D, H, K)),
        'k': normal(next(keys), (D, H, K)),
        'v': normal(next(keys), (D, H, K)),
        'o': normal(next(keys), (H, K, D)),
        'up': normal(next(keys), (D, MLP)),
        'down': normal(next(keys), (MLP, D)),
        'norm1': jnp.ones(D),
        'norm2': jnp.ones(D),
      }
      for _ in range(LAYERS)
    ],
  }

  def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale

  def loss(params, batch):
    x = params['embedding'][batch['tokens']] * D**0.5
    causal = jnp.tril(jnp.ones((L, L), bool))
    for w in params['layers']:
      y = norm(x, w['norm1'])
      q, k, v = (jnp.einsum('bld,dhk->blhk', y, w[name]) for name in 'qkv')
      s = jnp.einsum('bihk,bjhk->bhij', q, k) * K**-0.5
      p = jax.nn.softmax(jnp.where(causal, s, -1e30), axis=-1)
      x += jnp.einsum('blhk,hkd->bld', jnp.einsum('bhij,bjhk->bihk', p, v), w['o'])
      x += jax.nn.gelu(norm(x, w['norm2']) @ w['up']) @ w['down']
    logits = norm(x, params['norm']) @ params['head']
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets']).mean()

  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch):
    params, optimizer_state = state
    value, grads = jax.value_and_grad(loss)(params, batch)
    updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
    return (optax.apply_updates(params, updates), optimizer_state), value

  return repeat(step, (params, optimizer.init(params)), random_batch(B, L))


if __name__ == '__main__':
  main()
