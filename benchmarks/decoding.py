"""Time of a decoding step by kind of attention, batch and cached tokens; bytes it reads, bandwidth.

  python -m benchmarks.decoding --json=benchmarks/results/decoding.json
  python -m benchmarks.decoding --kinds mha absorbed --cached 1024 4096
  python -m benchmarks.decoding --kinds gqa --schemes none rope path --batch 1

The model: d_model 512, 2 layers, 16 heads of 64 (query and value; latent attention: a latent of 256
and a slice of 32), gated MLP of 1,376, 256 ids, all layers alike, RoPE if no scheme is named, in
the type that the platform computes in. The cache holds noise: no cost of a step hangs on it.

  mha, gqa, mqa   16, 4 and 1 key/value heads
  absorbed        latent attention, queries meeting the latents themselves
  expanded        the same weights and cache, keys and values made of the latents at every step

A step reads its weights and its cache once. `reads` is that in bytes, `of a copy` the bandwidth it
comes to over that of the largest copy that the same run makes: of an array of 256 MiB onto another,
which reads and writes each byte once. Times are medians of rounds in which all kinds take turns.
The growth at the end is from the shortest cache to the longest, and what each further MiB of cache
costs: if that stays, a step reads what it must and no more.
"""

import argparse
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp

from benchmarks import measure
from posjax import positions
from posjax.attention import Layer
from posjax.decoder import Decoder, init_params
from posjax.decoding import advance, empty, unstacked
from posjax.latent import Latent

HEADS, HEAD_WIDTH = 16, 64
LATENT = Latent(width=256, slice=32)
KINDS = {
  'mha': {'kv_heads': HEADS},
  'gqa': {'kv_heads': 4},
  'mqa': {'kv_heads': 1},
  'absorbed': {'latent': dataclasses.replace(LATENT, decode='absorbed')},
  'expanded': {'latent': dataclasses.replace(LATENT, decode='expanded')},
}
STEPS = 4  # in one measurement


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=KINDS)
  parser.add_argument('--schemes', nargs='+', default=['rope'], choices=positions.names())
  parser.add_argument('--batch', nargs='+', type=int, default=[1, 8])
  parser.add_argument('--cached', nargs='+', type=int, default=[1024, 4096, 16384])
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--json', help='write the figures here, too')
  flags = parser.parse_args()
  print(measure.where())
  bandwidth = copied()
  print(f'A copy of 256 MiB: {bandwidth / 1e9:,.1f} GB/s, read and written\n')
  rows = []
  for batch in flags.batch:
    print(f'batch {batch:<8} cached  step ms  over mha  reads MiB   GB/s  of a copy')
    for cached in flags.cached:
      each = [(kind, scheme) for kind in flags.kinds for scheme in flags.schemes]
      rows += compare(each, batch, cached, flags.rounds, bandwidth)
      print()
  grown(rows)
  measure.write(flags.json, {'copy': bandwidth, 'unit': 'seconds, bytes', 'rows': rows})


def compare(each, batch: int, cached: int, rounds: int, bandwidth: float) -> list[dict]:
  """One line for each (kind, scheme), at one batch and number of cached tokens."""
  runs, reads = {}, {}
  for kind, scheme in each:
    name = kind if scheme == 'rope' else f'{kind} {scheme}'
    runs[name], reads[name] = stepping(kind, scheme, batch, cached)
  seconds = measure.alternate(runs, rounds=rounds)
  rows = []
  for kind in runs:
    step = seconds[kind] / STEPS
    over = step * STEPS / seconds['mha'] if 'mha' in seconds else float('nan')
    rate = reads[kind] / step
    print(
      f'{kind:14} {cached:6,}  {step * 1e3:7.2f}  {over:8.2f}  {reads[kind] / 2**20:9,.1f}  '
      f'{rate / 1e9:5.1f}  {rate / bandwidth:9.2f}',
      flush=True,
    )
    rows.append({
      'kind': kind, 'batch': batch, 'cached': cached, 'step': step, 'over_mha': over,
      'reads': reads[kind], 'bandwidth': rate,
    })  # fmt: skip
  return rows


def grown(rows: list[dict]):
  """Prints how steps grow with what is cached."""
  print('batch kind            time   bytes   us for each further MiB, cache by cache')
  for batch, kind in dict.fromkeys((row['batch'], row['kind']) for row in rows):
    own = [row for row in rows if (row['batch'], row['kind']) == (batch, kind)]
    times, reads = (own[-1][name] / own[0][name] for name in ('step', 'reads'))
    further = [
      (b['step'] - a['step']) * 1e6 / ((b['reads'] - a['reads']) / 2**20)
      for a, b in itertools.pairwise(own)
    ]
    costs = '  '.join(f'{cost:8.1f}' for cost in further)
    print(f'{batch:<5} {kind:14} {times:5.1f} {reads:7.1f}   {costs}')


def stepping(kind: str, scheme: str, batch: int, cached: int):
  """(takes STEPS steps with so many tokens cached, bytes that one of them reads)."""
  model = Decoder(
    pattern=(Layer(scheme=positions.make(scheme)),), length=cached + 64,
    vocabulary=256, width=512, layers=2, heads=HEADS, head_width=HEAD_WIDTH, mlp_width=1376,
    **{'kv_heads': HEADS} | KINDS[kind],
  )  # fmt: skip
  weights = jax.jit(lambda key: unstacked(model, init_params(model, key)))(jax.random.key(0))
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  cache = jax.jit(functools.partial(empty, model, batch=batch, size=cached + 64))(weights, spectrum)
  noise = lambda x: jax.random.normal(jax.random.key(1), x.shape, x.dtype)
  cache = dataclasses.replace(
    cache,
    layers=jax.jit(lambda layers: jax.tree.map(noise, layers))(cache.layers),
    length_B=jnp.full(batch, cached, jnp.int32),
  )
  step = jax.jit(functools.partial(advance, model), donate_argnums=2)
  tokens_B1, one_B = jnp.zeros((batch, 1), jnp.int32), jnp.ones(batch, jnp.int32)
  held = {'cache': cache}

  def run():
    for _ in range(STEPS):
      hidden_B1D, held['cache'] = step(weights, spectrum, held['cache'], tokens_B1, one_B)
    # Back to where it began, so that every round reads as much.
    full_B = jnp.full(batch, cached, jnp.int32)
    held['cache'] = dataclasses.replace(held['cache'], length_B=full_B)
    return hidden_B1D

  size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return run, size(weights['layers']) + size(cache.layers)


def copied() -> float:
  """Bytes per second, read and written, of a large copy."""
  x_N = jnp.zeros(2**26, jnp.float32)
  held = {'y': jnp.ones_like(x_N)}
  # Onto an array that is there: fresh memory would cost its first touch.
  copy = jax.jit(lambda x_N, y_N: y_N.at[:].set(-x_N), donate_argnums=1)

  def run():
    held['y'] = copy(x_N, held['y'])
    return held['y']

  return 2 * x_N.nbytes / measure.alternate({'copy': run}, rounds=9)['copy']


if __name__ == '__main__':
  main()
