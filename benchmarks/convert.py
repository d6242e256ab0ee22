"""Turns a run's heads into latents: what a token costs and what that loses, rank by rank.

  python -m benchmarks.convert --run=runs/quickstart --workdir=runs/convert

Each rank is converted by every method of posjax/conversion.py and read as it is; the best method's
is then trained on for a few steps, and so is the run itself, unconverted, to compare with. A
picture and a table go to the workdir. The same command goes on where it was stopped.
"""

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import eval as evaluation
import train
from benchmarks import measure
from posjax import cli, cost, phases, run
from posjax.config import flatten, load
from posjax.conversion import METHODS, latent_config
from posjax.conversion.runs import convert_run
from posjax.experiment import build
from posjax.report.drawing import GREY, frame, label_ends, look, save, styled

BEST = METHODS[-1]
RATE = 0.3  # of the run's learning rate
EVALUATION = 'configs/eval/lengths.py'


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--run', required=True, help='directory of a run whose heads are converted')
  parser.add_argument('--workdir', required=True, help='where runs, picture and table go')
  parser.add_argument('--ranks', default='16,32,64,128', metavar='C,C', help='widths of the latent')
  parser.add_argument('--slice', type=int, help='its width; that of a head unless told')
  parser.add_argument('--steps', type=int, default=50, help='of training after conversion; 50')
  parser.add_argument('--tokens', type=int, default=32768, help='targets of every evaluation')
  flags = parser.parse_args(words)
  if flags.steps < 2:
    raise ValueError(f'--steps={flags.steps} train nothing. Use 2 or more.')
  cli.cache_compilations()
  workdir, began = Path(flags.workdir).expanduser(), time.monotonic()
  source = phases.last(run.load_config(flags.run))
  slice = source.model.head_width if flags.slice is None else flags.slice
  ranks = [int(rank) for rank in flags.ranks.split(',')]
  # Before anything runs: one that cannot be refuses them all.
  configs = {rank: latent_config(source, rank=rank, slice=slice) for rank in ranks}

  whole = cost.cache_bytes_per_token(build(source))
  before = loss_of(Path(flags.run), flags.tokens)
  after = trained_on(Path(flags.run), workdir / f'trained-{flags.steps}', flags)
  rows = []
  for rank, config in configs.items():
    row = {'rank': rank, 'bytes': cost.cache_bytes_per_token(build(config))}
    for method in METHODS:
      folder = workdir / f'{method}-{rank}-{slice}'
      if not (folder / 'evaluation').is_dir():
        shutil.rmtree(folder, ignore_errors=True)  # what a kill has left half converted
        convert_run(flags.run, folder, rank=rank, slice=slice, method=method)
      row[method] = loss_of(folder, flags.tokens)
    folder = workdir / f'{BEST}-{rank}-{slice}'
    row['after'] = trained_on(folder, Path(f'{folder}-{flags.steps}'), flags)
    rows.append(row)
  found = {'slice': slice, 'steps': flags.steps, 'bytes': whole, 'before': before, 'after': after}
  print(write(workdir, found, rows, time.monotonic() - began))


def loss_of(folder: Path, tokens: int) -> float:
  """Nats per token at the trained length: as measured before, or now."""
  settings = load(EVALUATION, [], flag='eval', base='configs/eval/base.py')
  settings.name, settings.tokens, settings.multiples = f'converted-{tokens}', tokens, (1,)
  path = folder / 'evaluation' / f'{settings.name}.json'
  results = json.loads(path.read_text()) if path.exists() else None
  rows = (results or evaluation.evaluate_run(folder, settings))['rows']
  return next(row['loss'] for row in rows if row['estimator'] == 'sliding')


def trained_on(source: Path, folder: Path, flags) -> float:
  """The loss after a few more steps from the parameters of `source`, by its own config."""
  config = phases.last(run.load_config(source))
  words = flatten(config) | {
    'init_from': source,
    'eval': None,
    'train.steps': flags.steps,
    'train.warmup': max(1, flags.steps // 10),
    'train.learning_rate': config.train.learning_rate * RATE,
    'checkpoint.every': flags.steps,
  }
  train.main([
    '--config=configs/base.py', f'--workdir={folder}',
    *(f'--config.{key}={value}' for key, value in words.items()),
  ])  # fmt: skip
  return loss_of(folder, flags.tokens)


def write(workdir: Path, found: dict, rows: Sequence[dict], seconds: float) -> str:
  """Draws the curves, and returns the table as Markdown."""
  kinds = {method: f'{method}, as it is' for method in METHODS} | {
    'after': f'{BEST}, after {found["steps"]} steps'
  }
  with styled():
    figure, axes = frame(
      f'Heads turned into latents, with a slice of {found["slice"]}',
      'cache (bytes per token)', 'nats per token',
    )  # fmt: skip
    axes.xaxis.set_major_formatter('{x:,.0f}')
    ends = [rows[0]['bytes'], found['bytes']]
    axes.plot(ends, [found['before']] * 2, color=GREY, linewidth=1, label='heads, as they were')
    for n, (kind, name) in enumerate(kinds.items()):
      points = [row['bytes'] for row in rows], [row[kind] for row in rows]
      axes.plot(*points, label=name, **look(n))
    save(label_ends(figure, axes), workdir / 'convert.png')
  whole = {'bytes': found['bytes'], 'after': found['after']}
  whole |= dict.fromkeys(METHODS, found['before'])
  names = ' | '.join([*METHODS, f'after {found["steps"]} steps'])
  lines = [f'| rank | cache | {names} |', '|---' * (2 + len(kinds)) + '|']
  for row in [whole, *rows]:
    share = row['bytes'] / found['bytes']
    losses = ' | '.join(f'{row[kind]:.3f}' for kind in kinds)
    lines.append(f'| {row.get("rank", "heads")} | {row["bytes"]:,.0f} ({share:.0%}) | {losses} |')
  facts = f'{seconds:.0f} s in this call; {json.dumps(measure.where())}'
  text = '\n'.join([*lines, '', facts, ''])
  (workdir / 'table.md').write_text(text)
  (workdir / 'table.json').write_text(json.dumps(found | {'rows': list(rows)}, indent=1) + '\n')
  return text


if __name__ == '__main__':
  cli.run(main)
