"""Trains schemes with the same data, seeds and budget, and writes one report that compares them.

  python -m benchmarks.compare --workdir=runs/compare --seeds=0,1,2 \
      --configs=configs/rope.py,configs/alibi.py,configs/learned.py
  ... --config.train.steps=1000    # any key of configs/base.py but the scheme and the seed
  ... --report_only                # of what lies in the directory; trains and measures nothing

Of each listed config only the scheme is taken, all else from configs/compare.py: data, model and
training. Each run is one of train.py, in <workdir>/runs/<config>-<seed>. The same command goes on
where it was stopped, and leaves alone what is finished; a longer list trains what is new.
"""

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

import train
from benchmarks import measure
from benchmarks.training import random_batch, repeat
from posjax import cli, cost, run
from posjax.config import difference, flatten, load
from posjax.report import comparison
from posjax.training import init_state, make_optimizer

BUDGET = 'configs/compare.py'
# What is compared: how tokens know where they are, and which keys they see. All else is shared.
SCHEME = ('position', 'layers', 'sampling')  # sections
SCHEME += ('model.window', 'model.sinks', 'model.chunk', 'model.segment', 'model.memory')
RECIPE = 'none'  # of the evaluation: schemes as they were trained
ROUNDS = 21  # timed steps of each scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
  """A run to compare: one scheme, one seed."""

  name: str
  seed: int
  words: list[str]  # the command line of train.py
  config: ConfigDict  # complete
  folder: Path
  evaluation: Path  # the file that a finished run has


def main(words: Sequence[str]) -> None:
  flags, overrides = make_parser(__doc__).parse_known_args(words)

  workdir = Path(flags.workdir).expanduser()
  budget = load_budget(f'{BUDGET}:smoke' if flags.smoke else BUDGET, overrides)
  if budget.data.name.startswith('task:'):
    raise ValueError(
      f"Losses on text are compared here, and '{budget.data.name}' has none. Use python -m "
      f'benchmarks.generalize --tasks={budget.data.name.removeprefix("task:")}.'
    )
  entries = plan(flags.configs.split(','), read_seeds(flags.seeds), budget, workdir)
  if not flags.report_only and not work(entries, budget, workdir):
    print('Stopped. The same command goes on from here.')
    return
  results = gather(entries, budget, workdir)
  path = comparison.write(workdir, results)
  print(comparison.markdown(results))
  print(f'Report: {path}')


def make_parser(description: str) -> argparse.ArgumentParser:
  """The flags of every comparison of schemes."""
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )  # fmt: skip
  parser.add_argument('--configs', required=True, metavar='FILE,FILE', help='a scheme each')
  parser.add_argument('--workdir', required=True, help='where the runs and the report go')
  parser.add_argument('--seeds', default='0,1,2', metavar='N,N', help='0,1,2 unless told')
  parser.add_argument('--smoke', action='store_true', help='the code path in seconds')
  parser.add_argument('--report_only', action='store_true', help='of what is there already')
  return parser


# --- what is compared -----------------------------------------------------------------------------


def load_budget(path: str, overrides: Sequence[str]) -> ConfigDict:
  """The config that all runs share. Raises ValueError where one would not."""
  for word in overrides:
    key = word.removeprefix('--config.').partition('=')[0]
    if compared(key):
      raise ValueError(
        f"'{word}' would change every scheme. Write it into a config file of its own, and add that "
        'to --configs.'
      )
    if key == 'seed':
      raise ValueError(f"'{word}' is a single seed. Use --seeds=0,1,2.")
  budget = load(path, overrides)
  if budget.eval is None:
    raise ValueError('Nothing would be compared without an evaluation. Leave out --config.eval.')
  train.complete(budget)
  return budget


def read_seeds(text: str) -> list[int]:
  """Whole numbers, each once."""
  try:
    seeds = [int(word) for word in text.split(',')]
  except ValueError:
    raise ValueError(f'--seeds={text}: not whole numbers. Write --seeds=0,1,2.') from None
  if len(set(seeds)) < len(seeds):
    raise ValueError(f'--seeds={text}: a seed is named twice. Name each once.')
  return seeds


def plan(
  paths: Sequence[str], seeds: Sequence[int], budget: ConfigDict, workdir: Path
) -> list[Entry]:
  """A run per scheme and seed; all schemes have one before any has two.

  Raises ValueError if two configs have one name, or if a run is there that has another config.
  """
  names = [Path(path.partition(':')[0]).stem for path in paths]
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f"Two of the configs are called '{name}'. Rename one of the files.")
  evaluation = load(budget.eval, flag='eval', base='configs/eval/base.py').name
  entries = []
  for seed in seeds:
    _, shared = parts(budget)
    shared['seed'] = seed
    for name, path in zip(names, paths, strict=True):
      _, listed = parts(load(path))
      words = [f'--config.{k}={value}' for k, value in shared.items() if listed.get(k) != value]
      config = load(path, words)
      train.complete(config)
      folder = workdir / 'runs' / f'{name}-{seed}'
      if (folder / 'config.json').exists():
        for key, old, new in difference(run.load_config(folder), config):
          raise ValueError(
            f"The run in '{folder}' has {key} = {old!r}, not {new!r}: they do not compare. "
            'Use another --workdir, or put the key back.'
          )
      entries.append(
        Entry(
          name=name,
          seed=seed,
          words=[f'--config={path}', f'--workdir={folder}', *words],
          config=config,
          folder=folder,
          evaluation=folder / 'evaluation' / f'{evaluation}.json',
        )
      )
  return entries


def compared(key: str) -> bool:
  return key in SCHEME or key.split('.')[0] in SCHEME


def parts(config: ConfigDict) -> tuple[dict[str, Any], dict[str, Any]]:
  """The values of a config by dotted key: those of its scheme, and all others."""
  flat = flatten(config)
  scheme = {key: value for key, value in flat.items() if compared(key)}
  return scheme, {key: value for key, value in flat.items() if key not in scheme}


# --- work -----------------------------------------------------------------------------------------


def work(entries: Sequence[Entry], budget: ConfigDict, workdir: Path) -> bool:
  """Does what is not done yet; False if asked to stop before the end."""
  cli.cache_compilations()
  jobs = {entry.name: train.prepare(entry.config) for entry in entries}  # refuses before it trains
  if not finish_all(entries, workdir):
    return False
  if read_costs(entries, workdir) is None:
    print('\n--- time and memory of a step ---', flush=True)
    with timed(workdir, 'costs'):
      costs = measure_costs(jobs, train.prepare(budget))
      write_costs(costs, entries, workdir)
  return True


def finish_all(entries: Sequence[Entry], workdir: Path) -> bool:
  """Trains and evaluates what is not done yet; False if asked to stop before the end."""
  workdir.mkdir(parents=True, exist_ok=True)
  for number, entry in enumerate(entries, start=1):
    print(f'\n--- {entry.folder.name}: run {number} of {len(entries)} ---', flush=True)
    if not finish(entry, workdir):
      return False
  return True


def finish(entry: Entry, workdir: Path) -> bool:
  """Trains and evaluates, unless that is done; False if asked to stop before the end.

  A run that fails, its loss being beyond all numbers, is noted; the others do not stop for it.
  """
  if entry.evaluation.exists():
    print('Finished before.')
    return True
  with timed(workdir, entry.folder.name) as note:
    try:
      train.main(entry.words)
    except ValueError as error:
      print(f'Failed: {error}')
      note['error'] = str(error)
  return entry.evaluation.exists() or note['error'] is not None


@contextlib.contextmanager
def timed(workdir: Path, what: str) -> Iterator[dict]:
  """Adds a line to log.jsonl: what was done, its seconds, and the `error` that it may have had."""
  note, began = {'what': what, 'error': None}, time.monotonic()
  try:
    yield note
  finally:
    note['seconds'] = time.monotonic() - began
    with open(workdir / 'log.jsonl', 'a') as file:
      file.write(json.dumps(note) + '\n')


def read_log(workdir: Path) -> list[dict]:
  path = workdir / 'log.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- costs ----------------------------------------------------------------------------------------


def measure_costs(jobs: Mapping[str, train.Job], baseline: train.Job) -> dict[str, dict]:
  """Costs by name. A step is timed against the baseline's, the budget's own, in turn with all."""
  key = lambda job: str(parts(job.config)[0])
  steppers = {key(job): stepper(job) for job in [baseline, *jobs.values()]}
  seconds = measure.alternate(steppers, rounds=ROUNDS)
  return {
    name: {
      'parameters': sum(cost.count_parameters(job.like.params).values()),
      'step_seconds': seconds[key(job)],
      'time_over_baseline': seconds[key(job)] / seconds[key(baseline)],
      'memory_bytes': sum(cost.memory_bytes(train.compile_step(job).memory_analysis())),
      'cache_bytes_per_token': cost.cache_bytes_per_token(job.model),
    }
    for name, job in jobs.items()
  }


def stepper(job: train.Job):
  """A function that runs one more step of training on random tokens."""
  init = lambda key: init_state(job.model, make_optimizer(job.config.train), key)
  places = jax.tree.map(lambda x: x.sharding, job.like)
  state = jax.jit(init, out_shardings=places)(jax.random.key(0))
  batch = random_batch(job.config.train.batch, job.config.train.length, job.model.vocabulary)
  return repeat(job.step, state, job.spectrum, batch)


def write_costs(costs: Mapping[str, dict], entries: Sequence[Entry], workdir: Path) -> None:
  facts = measure.where() | {'git': run.revision()['git']}
  text = json.dumps({'of': measured(entries), 'facts': facts, 'costs': costs}, indent=1)
  (workdir / 'costs.json').write_text(text + '\n')


def read_costs(entries: Sequence[Entry], workdir: Path) -> dict[str, Any] | None:
  """What `write_costs` wrote, if it was of these schemes and of this budget: ratios are only fair
  within one measurement."""
  path = workdir / 'costs.json'
  stored = json.loads(path.read_text()) if path.exists() else {'of': None}
  return stored if stored['of'] == measured(entries) else None


def measured(entries: Sequence[Entry]) -> dict[str, dict]:
  """What costs depend on, by name, as JSON gives it back."""
  configs = {entry.name: flatten(entry.config) | {'seed': None} for entry in entries}
  return json.loads(json.dumps(configs))


# --- results --------------------------------------------------------------------------------------


def gather(entries: Sequence[Entry], budget: ConfigDict, workdir: Path) -> dict[str, Any]:
  """The results of posjax.report.comparison, from what lies in the run directories.

  Raises ValueError if nothing does, or if runs were evaluated on different targets.
  """
  found = [(e, json.loads(e.evaluation.read_text())) for e in entries if e.evaluation.exists()]
  if not found:
    raise ValueError(f"No run in '{workdir}' is finished. Leave out --report_only.")
  targets = (
    'trained_length', 'lengths', 'overlap', 'documents', 'targets', 'tokens', 'bytes_per_token'
  )  # fmt: skip
  first = {key: found[0][1][key] for key in targets}
  for entry, evaluation in found:
    if {key: evaluation[key] for key in targets} != first:
      raise ValueError(
        f"'{entry.evaluation}' scores other targets than '{found[0][0].evaluation}'. "
        'Remove one of the two; the same command without --report_only evaluates again.'
      )
  log, costs = read_log(workdir), read_costs(entries, workdir)
  errors = {line['what']: line['error'] for line in log}
  schemes = []
  for name in dict.fromkeys(entry.name for entry in entries):
    own = [entry for entry in entries if entry.name == name]
    evaluations = [evaluation for entry, evaluation in found if entry.name == name]
    scheme, _ = parts(own[0].config)
    schemes.append(
      {
        'name': name,
        'position': scheme,
        'losses': losses(evaluations, first['lengths']),
        'positions': positions(evaluations),
        'refused': refused(evaluations),
        'missing': [
          {'seed': e.seed, 'reason': errors.get(e.folder.name) or 'not finished.'}
          for e in own
          if not e.evaluation.exists()
        ],
        'costs': costs and costs['costs'][name],
      }
    )
  for length in first['lengths']:
    mark_best([row for scheme in schemes for row in scheme['losses'] if row['length'] == length])
  _, shared = parts(budget)
  return first | {
    'schemes': schemes,
    'seeds': list(dict.fromkeys(entry.seed for entry in entries)),
    'baseline': budget.position.name,
    'dtype': str(train.build(budget).compute_dtype),
    'budget': {key: value for key, value in shared.items() if key != 'seed'},
    'seconds': sum(line['seconds'] for line in log),
    'facts': costs['facts'] if costs else measure.where(),
  }


def losses(evaluations: Sequence[Mapping], lengths: Sequence[int]) -> list[dict]:
  """Loss over seeds at each length that none of them refused."""
  rows = []
  for length in lengths:
    seen = [
      row['loss']
      for evaluation in evaluations
      for row in evaluation['rows']
      if (row['length'], row['recipe'], row['estimator']) == (length, RECIPE, 'sliding')
    ]
    if seen and len(seen) == len(evaluations):
      rows.append({'length': length, **over_seeds(seen)})
  return rows


def positions(evaluations: Sequence[Mapping]) -> dict[str, Any] | None:
  """Loss by position over seeds, at the longest length that all of them accept."""
  curves = [
    curve
    for evaluation in evaluations
    for curve in evaluation['positions']
    if curve['recipe'] == RECIPE
  ]
  if len({curve['length'] for curve in curves}) != 1:
    return None
  bins = [
    {'above': same[0]['above'], 'context': same[0]['context']}
    | over_seeds([one['mean'] for one in same])
    for same in zip(*(curve['bins'] for curve in curves), strict=True)
  ]
  return {'length': curves[0]['length'], 'bins': bins}


def refused(evaluations: Sequence[Mapping]) -> list[dict]:
  """Lengths and reasons, each once."""
  rows = [
    {'length': row['length'], 'reason': row['reason']}
    for evaluation in evaluations
    for row in evaluation['refused']
    if row['recipe'] == RECIPE
  ]
  return [row for i, row in enumerate(rows) if row not in rows[:i]]


def over_seeds(values: Sequence[float]) -> dict[str, float | None]:
  """Mean, range and sample standard deviation; one seed has none."""
  return {
    'mean': statistics.fmean(values),
    'low': min(values),
    'high': max(values),
    'deviation': statistics.stdev(values) if len(values) > 1 else None,
  }


def mark_best(rows: Sequence[dict]) -> None:
  """Marks the lowest mean, and those whose range over seeds reaches its range."""
  best = min(rows, key=lambda row: row['mean'], default=None)
  for row in rows:
    row['best'] = row is best or row['low'] <= best['high']


if __name__ == '__main__':
  cli.run(main)
