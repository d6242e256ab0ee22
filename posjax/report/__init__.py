"""A run's report: a table, JSON, pictures, and one HTML page that needs nothing but itself."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posjax.report import attention, generation, plots, tables, tasks
from posjax.report.drawing import save, styled
from posjax.report.pages import page

__all__ = ['table', 'write']

MEASURES = {'attention': attention, 'generation': generation}  # others are losses, or of tasks


def table(results: Mapping[str, Any]) -> str:
  """Returns the evaluation as aligned text for a terminal of 100 columns."""
  return tables.aligned(f'Evaluation {results["name"]}', *words(results))


def words(results: Mapping[str, Any]) -> tuple:
  """Returns header, lines and notes of an evaluation's table."""
  if 'task' in results:
    return tasks.header(results), tasks.cells(results), tasks.notes(results)
  if kind := MEASURES.get(results.get('measure')):
    return kind.HEADER, kind.cells(results), kind.notes(results)
  return tables.HEADER, tables.cells(results), tables.notes(results)


def plots_of(results: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns what draws an evaluation, by kind of picture."""
  if 'task' in results:
    return tasks.PLOTS
  kind = MEASURES.get(results.get('measure'))
  return kind.PLOTS if kind else plots.PLOTS


def write(
  workdir: str | Path,
  results: Mapping[str, Any] | None,
  metrics: list[Mapping[str, Any]],
  config: Any,
) -> Path:
  """Writes everything a person wants to see of a run, and returns the page's path.

  `results` of posjax.evaluation (what one of its `evaluate` returns) goes to
  evaluation/<name>.json, each picture to a PNG beside it; None only renews the page. The page shows
  every evaluation that lies in the directory, the training curve from `metrics` (dicts with `step`
  and `loss`) and `config`.
  """
  workdir = Path(workdir)
  folder = workdir / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  if results is not None:
    text = json.dumps(results, indent=1, allow_nan=False)
    partial = folder / f'{results["name"]}.json.partial'  # whole or not there at all
    partial.write_text(text + '\n')
    partial.replace(partial.with_suffix(''))
  evaluations = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]

  pictures = {}
  with styled():
    for evaluation in evaluations:
      name = evaluation['name']
      kinds = plots_of(evaluation)
      for kind, plot in kinds.items():
        if figure := plot(evaluation):
          pictures[name, kind] = save(figure, folder / f'{name}-{kind}.png')
    if figure := plots.plot_training(metrics):
      pictures['training'] = save(figure, workdir / 'training.png')
  told = [(evaluation, words(evaluation)) for evaluation in evaluations]
  path = workdir / 'report.html'
  path.write_text(page(workdir.resolve().name, told, pictures, config))
  return path
