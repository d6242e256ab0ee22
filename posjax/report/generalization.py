"""The report of schemes on tasks: exact match by size, and who generalises best over all of them.

What is compared comes as plain data, from benchmarks/generalize.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from posjax.report.comparison import duration
from posjax.report.drawing import frame, label_ends, look, mark_trained, save, styled
from posjax.report.pages import document, fold, html_facts, html_notes, html_table
from posjax.report.plots import draw_bars, until
from posjax.report.tables import markdown_table, refusals


def write(workdir: str | Path, results: Mapping[str, Any]) -> Path:
  """Writes what a person wants to see, and returns the page's path.

  `results` goes to generalization.json, the tables to table.md, a picture of each task to
  <task>.png, and all of it to report.html.

  results holds seeds, budget and facts (plain data), seconds, and
    tasks: name, task, trained_size, sizes, lengths, examples, and `schemes`, a list of
      name; beyond: mean exact match beyond the trained size, None if no run is finished;
      rows: size, mean, low, high and deviation over seeds (None for one seed);
      refused: length, reason;  missing: seed, reason;
    ranks: the mean reciprocal rank of each scheme over the tasks `ranked`, None without any.
  """
  workdir = Path(workdir)
  workdir.joinpath('generalization.json').write_text(
    json.dumps(results, indent=1, allow_nan=False) + '\n'
  )
  workdir.joinpath('table.md').write_text(markdown(results))
  parts = [html_table(*summary(results), text='scheme'), html_notes(notes(results))]
  with styled():
    for task in results['tasks']:
      parts += [
        f'<h2>{task["name"]}</h2>',
        save(plot(task), workdir / f'{task["name"]}.png'),
        html_table(*sizes(task), text='scheme'),
        html_notes(lacking(task)),
      ]
  took = f'{duration(results["seconds"])} for training and evaluation'
  parts += [html_facts(results['facts'] | {'time': took}), fold('Budget', results['budget'])]
  path = workdir / 'report.html'
  path.write_text(document('Length generalisation', parts, width='58rem'))
  return path


def summary(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Header and lines: per scheme its mean reciprocal rank and what it solves beyond the trained
  size of each task; the best first."""
  tasks, ranks = results['tasks'], results['ranks']
  beyond = {(t['name'], s['name']): s['beyond'] for t in tasks for s in t['schemes']}
  lines = []
  for name in sorted(ranks, key=lambda name: -(ranks[name] or 0)):
    seen = [beyond[task['name'], name] for task in tasks]
    lines.append([name, number(ranks[name]), *map(number, seen)])
  return ['scheme', 'MRR', *(task['name'] for task in tasks)], lines


def sizes(task: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Header and lines: exact match of each scheme by size."""
  header = ['scheme', *(f'{n} (trained)' if n == task['trained_size'] else f'{n}'
                        for n in task['sizes'])]  # fmt: skip
  lines = []
  for scheme in task['schemes']:
    seen = {row['size']: row for row in scheme['rows']}
    lines.append([scheme['name'], *(cell(seen.get(size)) for size in task['sizes'])])
  return header, lines


def cell(row: Mapping[str, Any] | None) -> str:
  if row is None:
    return ''
  spread = '' if row['deviation'] is None else f' ±{row["deviation"]:.2f}'
  return number(row['mean']) + spread.replace('±0.', '±.')


def number(value: float | None) -> str:
  return '' if value is None else f'{value:.2f}'


def markdown(results: Mapping[str, Any]) -> str:
  """All tables and notes, in Markdown."""
  text = [markdown_table(*summary(results)), '', *(f'- {note}' for note in notes(results)), '']
  for task in results['tasks']:
    text += [f'## {task["name"]}', '', markdown_table(*sizes(task)), '']
    text += [f'- {note}' for note in lacking(task)] + ['']
  return '\n'.join(text)


def notes(results: Mapping[str, Any]) -> list[str]:
  """What a reader must know to believe the tables."""
  budget, seeds = results['budget'], results['seeds']
  over = f'{len(seeds)} seeds' if seeds[1:] else 'one seed'
  said = [
    f'Trained {budget["train.steps"]:,} steps of {budget["train.batch"]} examples in rows of '
    f'{budget["train.length"]} tokens, {budget["model.layers"]} layers of width '
    f'{budget["model.width"]}; {over}, the same examples in the same order for every scheme.',
    'Under each task: the share of answers that are right as a whole, mean over the sizes beyond '
    'the largest one trained on; a size that a scheme refuses counts as 0.',
    f'MRR: the mean over {", ".join(results["ranked"]) or "no task"} of 1 / rank by that share; '
    'equal ones share the mean of their ranks (after Kazemnejad et al. 2023, arXiv:2305.19466).',
  ]
  left_out = [task['name'] for task in results['tasks'] if task['name'] not in results['ranked']]
  return said + ([f'Left out of MRR, not finished: {", ".join(left_out)}.'] if left_out else [])


def lacking(task: Mapping[str, Any]) -> list[str]:
  """What was asked, and what is missing and why."""
  said = [f'{task["task"]}: {task["examples"]} examples of each size.']
  for scheme in task['schemes']:
    # Reasons name the length at hand: the first speaks for all.
    for row in scheme['refused'][:1]:
      lengths = [other['length'] for other in scheme['refused']]
      said += refusals((scheme['name'], length, row['reason']) for length in lengths)
    said += [f'Missing: {scheme["name"]} with seed {m["seed"]}: {m["reason"]}'
             for m in scheme['missing']]  # fmt: skip
  return said


def plot(task: Mapping[str, Any]) -> Figure:
  """Exact match at each size, one line per scheme; bars: the range over seeds."""
  figure, axes = frame(f'Exact match by size: {task["name"]}', 'size', 'share of right answers')
  mark_trained(axes, task['trained_size'], task['sizes'])
  axes.set_ylim(-0.03, 1.03)
  for i, scheme in enumerate(task['schemes']):
    if rows := scheme['rows']:
      name = until(scheme['name'], rows[-1]['size'], task['sizes'])
      draw_bars(axes, rows, 'size', 'mean', label=name, **look(i))
  return label_ends(figure, axes)
