"""Kinds of attention at equal parameters: loss, cache, and how fast each reads and writes.

  python -m benchmarks.blocks --workdir=runs/blocks --json=benchmarks/results/blocks.json
  ... --smoke    # the code path in seconds

Every kind is configs/quickstart.py but for its attention, and for the width of its MLPs, which
makes up for the parameters that this has more or fewer, to within one unit. Runs are those of
train.py, in <workdir>/<kind>-<seed>; the same command goes on where it was stopped.

  mha, gqa, mqa   4, 2 and 1 key/value heads of 32
  mla             latent attention: a latent of 48 and a slice of 16; content and values of 32

Speeds are those of one trained model of the kind, of `batch` rows that read `prompt` tokens at once
and then write one at a time.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import train
from benchmarks import compare, measure
from posjax import cli, cost, loading
from posjax.config import load
from posjax.decoder import init_params
from posjax.decoding import Decoding
from posjax.experiment import build
from posjax.report.tables import markdown_table

BUDGET = 'configs/quickstart.py'
KINDS = {
  'mha': {},
  'gqa': {'model.kv_heads': 2},
  'mqa': {'model.kv_heads': 1},
  'mla': {'model.latent.width': 48, 'model.latent.slice': 16},
}
STEPS = 32  # that are written in a measurement of speed


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True, help='where the runs go')
  parser.add_argument('--seeds', default='0,1,2', metavar='N,N', help='0,1,2 unless told')
  parser.add_argument('--batch', type=int, default=8, help='rows, of speeds')
  parser.add_argument('--prompt', type=int, default=1024, help='tokens that each of them reads')
  parser.add_argument('--rounds', type=int, default=5, help='of speeds')
  parser.add_argument('--smoke', action='store_true', help='the code path in seconds')
  parser.add_argument('--json', help='write the figures here, too')
  flags = parser.parse_args(words)
  cli.cache_compilations()
  seeds, budget = compare.read_seeds(flags.seeds), BUDGET + ':smoke' * flags.smoke
  workdir = Path(flags.workdir).expanduser()
  settings = equalised(budget)
  for seed in seeds:
    for kind in KINDS:
      if not trained(workdir / f'{kind}-{seed}', budget, settings[kind] | {'seed': seed}):
        print('Stopped. The same command goes on from here.')
        return
  speeds = measure_speeds(workdir, seeds[0], flags.batch, flags.prompt, flags.rounds)
  rows = [gather(workdir, kind, seeds, speeds[kind]) for kind in KINDS]
  print(table(rows))
  asked = {'seeds': seeds, 'batch': flags.batch, 'prompt': flags.prompt}
  measure.write(flags.json, asked | {'rows': rows})


def equalised(budget: str) -> dict[str, dict[str, Any]]:
  """Of each kind the keys that it sets, its MLPs as wide as leaves the number of parameters."""
  words = lambda keys: [f'--config.{key}={value}' for key, value in keys.items()]

  def parameters(keys) -> int:
    config = load(budget, words(keys))
    train.complete(config)
    shapes = jax.eval_shape(lambda key: init_params(build(config), key), jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))

  config, wanted, settings = load(budget), parameters({}), {}
  unit = 3 * config.model.width * config.model.layers  # of a gated MLP's width, in parameters
  for kind, keys in KINDS.items():
    missing = wanted - parameters(keys)
    settings[kind] = keys | {'model.mlp_width': config.model.mlp_width + round(missing / unit)}
  return settings


def trained(folder: Path, budget: str, settings: dict[str, Any]) -> bool:
  """Trains and evaluates, unless that is done; False if asked to stop before the end."""
  evaluation = 'configs/eval/base.py' + ':smoke' * budget.endswith(':smoke')
  if not (folder / 'evaluation' / 'base.json').exists():
    print(f'\n--- {folder.name} ---', flush=True)
    keys = settings | {'eval': evaluation}
    words = [f'--config.{key}={value}' for key, value in keys.items()]
    train.main([f'--config={budget}', f'--workdir={folder}', *words])
  return (folder / 'evaluation' / 'base.json').exists()


def measure_speeds(workdir: Path, seed: int, batch: int, prompt: int, rounds: int) -> dict:
  """Of each kind the tokens per second that all rows together read and write, medians in turn."""
  size, reading, writing = prompt + STEPS, {}, {}
  for kind in KINDS:
    loaded = loading.load(workdir / f'{kind}-{seed}')
    spectrum = loaded.model.spectrum()
    decoding = Decoding(
      loaded.model, loaded.params, lambda length, s=spectrum: s, batch=batch, size=size, chunk=256
    )
    tokens_BL = np.random.default_rng(0).integers(1, 256, (batch, prompt))
    reading[kind], writing[kind] = reader(decoding, tokens_BL), writer(decoding, tokens_BL[:, 0])
  reads = measure.alternate(reading, rounds=rounds)
  writes = measure.alternate(writing, rounds=rounds)
  return {
    kind: {'read': batch * prompt / reads[kind], 'write': batch * STEPS / writes[kind]}
    for kind in KINDS
  }


def reader(decoding: Decoding, tokens_BL):
  def run():
    decoding.restart()
    return decoding.read(tokens_BL)

  return run


def writer(decoding: Decoding, token_B):
  def run():
    decoding.restart()  # what is read of an empty cache is as much as of a full one
    for _ in range(STEPS):
      logits_BV = decoding.step(token_B)
    return logits_BV

  return run


def gather(workdir: Path, kind: str, seeds: Sequence[int], speed: dict[str, float]) -> dict:
  """What the table says of a kind."""
  losses = []
  for seed in seeds:
    evaluation = json.loads((workdir / f'{kind}-{seed}' / 'evaluation' / 'base.json').read_text())
    losses += [row['loss'] for row in evaluation['rows'] if row['estimator'] == 'sliding']
  loaded = loading.load(workdir / f'{kind}-{seeds[0]}')
  return {
    'kind': kind,
    'parameters': sum(x.size for x in jax.tree.leaves(loaded.params)),
    'mlp_width': loaded.config.model.mlp_width,
    'losses': losses,
    'cache': cost.cache_bytes_per_token(loaded.model),
    **speed,
  }


def table(rows: Sequence[dict]) -> str:
  """In Markdown; the cache against that of the first."""
  header = (
    'attention', 'parameters', 'MLP width', 'loss', 'bytes/token', 'of MHA', 'read tokens/s',
    'written tokens/s',
  )  # fmt: skip
  lines = []
  for row in rows:
    spread = f' ± {statistics.stdev(row["losses"]):.4f}' if len(row['losses']) > 1 else ''
    lines.append((
      row['kind'],
      f'{row["parameters"]:,}',
      str(row['mlp_width']),
      f'{statistics.fmean(row["losses"]):.4f}{spread}',
      f'{row["cache"]:,.0f}',
      f'{row["cache"] / rows[0]["cache"]:.0%}',
      f'{row["read"]:,.0f}',
      f'{row["write"]:,.0f}',
    ))  # fmt: skip
  return markdown_table(header, lines)


if __name__ == '__main__':
  cli.run(main)
