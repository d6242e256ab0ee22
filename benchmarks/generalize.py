"""Trains schemes on tasks of short size, asks them for long ones, and writes one report.

  python -m benchmarks.generalize --workdir=runs/generalize --seeds=0,1,2 \
      --tasks=copy,reverse,addition --configs=configs/none.py,configs/rope.py,configs/alibi.py
  ... --config.train.steps=2000    # any key of configs/base.py but the scheme, seed and task
  ... --report_only                # of what lies in the directory; trains nothing

Of each listed config only the scheme is taken, all else from configs/copy.py: model, training and
evaluation. Each run is one of train.py, in <workdir>/<task>/runs/<config>-<seed>. The same command
goes on where it was stopped, and leaves alone what is finished; longer lists train what is new.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import train
from benchmarks import compare, measure
from posjax import cli, data, run
from posjax.data.tasks import TASKS
from posjax.report import generalization

BUDGET = 'configs/copy.py'


def main(words: Sequence[str]) -> None:
  parser = compare.make_parser(__doc__)
  parser.add_argument('--tasks', required=True, metavar='NAME,NAME', help=', '.join(TASKS))
  flags, overrides = parser.parse_known_args(words)

  workdir, seeds = Path(flags.workdir).expanduser(), compare.read_seeds(flags.seeds)
  entries_of, budgets = {}, {}
  for word in overrides:
    if word.startswith('--config.data.name='):
      raise ValueError(f"'{word}' is a single task. Use --tasks=copy,reverse.")
  for task in flags.tasks.split(','):
    chosen = [f'--config.data.name=task:{task}', *overrides]
    budgets[task] = compare.load_budget(f'{BUDGET}:smoke' if flags.smoke else BUDGET, chosen)
    entries_of[task] = compare.plan(flags.configs.split(','), seeds, budgets[task], workdir / task)
  if not flags.report_only and not work(entries_of, budgets, workdir):
    print('Stopped. The same command goes on from here.')
    return
  results = gather(entries_of, budgets, workdir)
  path = generalization.write(workdir, results)
  print(generalization.markdown(results))
  print(f'Report: {path}')


def work(
  entries_of: Mapping[str, Sequence[compare.Entry]], budgets: Mapping[str, Any], workdir: Path
) -> bool:
  """Trains and evaluates what is not done yet; False if asked to stop before the end."""
  cli.cache_compilations()
  for task, entries in entries_of.items():  # what makes no sense is refused before any training
    budget = budgets[task]
    examples = data.load(budget.data, 'train', data.make_tokenizer(budget.data.tokenizer))
    examples.largest(budget.train.length)
    for entry in {entry.name: entry for entry in entries}.values():
      train.prepare(entry.config)
  for task, entries in entries_of.items():
    print(f'\n=== {task} ===', flush=True)
    if not compare.finish_all(entries, workdir / task):
      return False
  return True


def gather(
  entries_of: Mapping[str, Sequence[compare.Entry]], budgets: Mapping[str, Any], workdir: Path
) -> dict[str, Any]:
  """The results of posjax.report.generalization, from what lies in the run directories.

  Raises ValueError if nothing does, or if runs of a task were asked other examples.
  """
  tasks = [t for task, entries in entries_of.items() if (t := gather_task(task, entries, workdir))]
  if not tasks:
    raise ValueError(f"No run in '{workdir}' is finished. Leave out --report_only.")
  names = [scheme['name'] for scheme in tasks[0]['schemes']]
  whole = [task for task in tasks if all(s['beyond'] is not None for s in task['schemes'])]
  ranks = [reciprocal_ranks([s['beyond'] for s in task['schemes']]) for task in whole]
  mean = [statistics.fmean(column) for column in zip(*ranks, strict=True)] or [None] * len(names)
  first = next(iter(entries_of.values()))
  _, shared = compare.parts(next(iter(budgets.values())))
  return {
    'tasks': tasks,
    'ranks': dict(zip(names, mean, strict=True)),
    'ranked': [task['name'] for task in whole],
    'seeds': list(dict.fromkeys(entry.seed for entry in first)),
    'budget': {key: value for key, value in shared.items() if key not in ('seed', 'data.name')},
    'seconds': sum(
      line['seconds'] for task in entries_of for line in compare.read_log(workdir / task)
    ),
    'facts': measure.where() | {'git': run.revision()['git']},
  }


def gather_task(
  task: str, entries: Sequence[compare.Entry], workdir: Path
) -> dict[str, Any] | None:
  """One task's schemes, with exact match over seeds by size; None where no run is finished."""
  found = [(e, json.loads(e.evaluation.read_text())) for e in entries if e.evaluation.exists()]
  if not found:
    return None
  asked = ('task', 'trained_size', 'sizes', 'lengths', 'examples')
  first = {key: found[0][1][key] for key in asked}
  for entry, evaluation in found:
    if {key: evaluation[key] for key in asked} != first:
      raise ValueError(
        f"'{entry.evaluation}' asks other examples than '{found[0][0].evaluation}'. "
        'Remove one of the two; the same command without --report_only evaluates again.'
      )
  errors = {line['what']: line['error'] for line in compare.read_log(workdir / task)}
  schemes = []
  for name in dict.fromkeys(entry.name for entry in entries):
    evaluations = [evaluation for entry, evaluation in found if entry.name == name]
    rows = [by_seed for size in first['sizes'] if (by_seed := over_seeds(evaluations, size))]
    schemes.append(
      {
        'name': name,
        'rows': rows,
        'beyond': beyond(rows, first['sizes'], first['trained_size']) if evaluations else None,
        'refused': compare.refused(evaluations),
        'missing': [
          {'seed': e.seed, 'reason': errors.get(e.folder.name) or 'not finished.'}
          for e in entries
          if e.name == name and not e.evaluation.exists()
        ],
      }
    )
  return {'name': task, **first, 'schemes': schemes}


def over_seeds(evaluations: Sequence[Mapping], size: int) -> dict[str, Any] | None:
  """Exact match over seeds at a size; None where a seed has none."""
  seen = [
    row['exact']
    for evaluation in evaluations
    for row in evaluation['rows']
    if (row['size'], row['recipe']) == (size, compare.RECIPE)
  ]
  whole = seen and len(seen) == len(evaluations)
  return {'size': size, **compare.over_seeds(seen)} if whole else None


def beyond(rows: Sequence[Mapping], sizes: Sequence[int], trained_size: int) -> float | None:
  """Mean exact match over the sizes beyond the trained one; 0 at those that were refused."""
  longer = [size for size in sizes if size > trained_size]
  seen = {row['size']: row['mean'] for row in rows}
  return statistics.fmean(seen.get(size, 0.0) for size in longer) if longer else None


def reciprocal_ranks(scores: Sequence[float]) -> list[float]:
  """1 / rank of each score, the highest being first; equal ones share the mean of their ranks."""
  ranks = [
    sum(other > score for other in scores) + (1 + sum(other == score for other in scores)) / 2
    for score in scores
  ]
  return [1 / rank for rank in ranks]


if __name__ == '__main__':
  cli.run(main)
