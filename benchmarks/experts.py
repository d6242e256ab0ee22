"""Forms of routed experts, in turn with one MLP of as many FLOPs: medians, ratios.

  python -m benchmarks.experts --json=benchmarks/results/experts.json

Routing is random and equal in expectation; a router and its top-k belong to all but the MLP.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks import measure
from posjax.activation import Gate
from posjax.mlp import GatedMLP
from posjax.moe import FORMS, Experts, Routing

# Tokens, model width, experts, chosen, width of each, and what is timed
SHAPES = (
  (4096, 256, 16, 3, 172, 'forward + backward'),
  (8, 256, 64, 6, 64, 'forward'),
  (1, 256, 64, 6, 64, 'forward'),
)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--json', help='write the figures here, too')
  flags = parser.parse_args()
  print(measure.where())
  results = {}
  for N, D, E, C, M, what in SHAPES:
    gate = Gate(activation='silu')
    modules = {'mlp': GatedMLP(C * M, output_scale=1.0, gate=gate)}
    for form in FORMS:
      routing = Routing(count=E, chosen=C, width=M, form=form)
      modules[form] = Experts(routing, activate=gate, output_scale=1.0)
    x_BLD = jax.random.normal(jax.random.key(0), (1, N, D))
    runs = {name: run(module, x_BLD, what) for name, module in modules.items()}
    seconds = measure.alternate(runs, rounds=flags.rounds)
    case = f'{N} tokens of {D}, {C} of {E} experts of {M}, {what}'
    print(f'\n{case}\n{"":8} {"ms":>9}   over mlp   over dense')
    for name, time in seconds.items():
      over_mlp, over_dense = time / seconds['mlp'], time / seconds['dense']
      print(f'{name:8} {1e3 * time:9.2f} {over_mlp:10.2f} {over_dense:12.2f}')
    results[case] = {
      name: {
        'seconds': time,
        'time_over_mlp': time / seconds['mlp'],
        'time_over_dense': time / seconds['dense'],
      }
      for name, time in seconds.items()
    }
  measure.write(flags.json, {'results': results})


def run(module, x_BLD, what: str):
  params = jax.jit(module.init)(jax.random.key(1), x_BLD)['params']
  forward = lambda params, x_BLD: module.apply({'params': params}, x_BLD)
  total = lambda params, x_BLD: jnp.square(forward(params, x_BLD)).sum()
  compiled = jax.jit(forward if what == 'forward' else jax.grad(total, argnums=(0, 1)))
  return lambda: compiled(params, x_BLD)


if __name__ == '__main__':
  main()
