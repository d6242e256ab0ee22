"""The report of a comparison of schemes: a table, two pictures, one page.

What is compared comes as plain data, from benchmarks/compare.py.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from posjax.report.drawing import frame, label_ends, look, mark_trained, save, styled
from posjax.report.pages import document, fold, html_facts, html_notes, html_table
from posjax.report.plots import draw_band, draw_bars, position_ticks, until, visible
from posjax.report.tables import markdown_table, refusals

SIZE = {'figure.figsize': (7.2, 4.4)}  # inches: as wide as a README, so that names are as its text


def write(workdir: str | Path, results: Mapping[str, Any]) -> Path:
  """Writes what a person wants to see of a comparison, and returns the page's path.

  `results` goes to comparison.json, the table to table.md, the pictures to lengths.png and
  positions.png, and all of it to report.html.

  results holds trained_length, lengths, overlap, documents, targets (of each document), tokens (of
  all), seeds, budget and facts (plain data), seconds, and `schemes`, a list of
    name, position (its hyperparameters);
    losses: length, mean, low, high and deviation over seeds (None for one seed), best;
    positions: length and bins (posjax.evaluation.position, `low` and `high` over seeds);
    refused: length, reason;  missing: seed, reason;
    costs: parameters, time_over_baseline, memory_bytes, cache_bytes_per_token, or None.
  """
  workdir = Path(workdir)
  text = json.dumps(results, indent=1, allow_nan=False) + '\n'
  (workdir / 'comparison.json').write_text(text)
  (workdir / 'table.md').write_text(markdown(results))
  with styled(), matplotlib.rc_context(SIZE):
    pictures = [
      save(plot(results), workdir / f'{name}.png')
      for name, plot in (('lengths', plot_lengths), ('positions', plot_positions))
      if any(scheme['losses'] for scheme in results['schemes'])
    ]
  took = f'{duration(results["seconds"])} for training, evaluation and costs'
  parts = [
    html_table(header(results), cells(results), text='scheme'),
    html_notes(notes(results)),
    *pictures,
    html_facts(results['facts'] | {'time': took}),
    fold('Schemes', {scheme['name']: scheme['position'] for scheme in results['schemes']}),
    fold('Budget', results['budget']),
  ]
  path = workdir / 'report.html'
  path.write_text(document('Position schemes compared', parts, width='58rem'))
  return path


# --- table ----------------------------------------------------------------------------------------


def header(results: Mapping[str, Any]) -> list[str]:
  """Names of the table's columns."""
  lengths = [f'{length:,}' for length in results['lengths']]
  return ['scheme', *lengths, 'parameters', 'step', 'MiB', 'cache']


def cells(results: Mapping[str, Any]) -> list[list[str]]:
  """The table's lines under `header`, as Markdown, the best at the longest length first."""
  return [line(scheme, results['lengths']) for scheme in ranked(results)]


def line(scheme: Mapping[str, Any], lengths: Sequence[int]) -> list[str]:
  """One scheme's losses and costs, as Markdown."""
  losses = {row['length']: row for row in scheme['losses']}
  refused = {row['length'] for row in scheme['refused']}
  words = [scheme['name']]
  for length in lengths:
    if row := losses.get(length):
      text = f'{row["mean"]:.3f}'
      if row['deviation'] is not None:
        text += f' ±{row["deviation"]:.3f}'.replace('±0.', '±.')
      words.append(f'**{text}**' if row['best'] else text)
    else:
      words.append('refused' if length in refused else '')
  costs = scheme['costs']
  if costs is None:
    return [*words, '', '', '', '']
  return [
    *words,
    f'{costs["parameters"]:,}',
    f'{costs["time_over_baseline"]:.2f}',
    f'{costs["memory_bytes"] / 2**20:,.0f}',
    f'{costs["cache_bytes_per_token"]:,.0f}',
  ]


def ranked(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The schemes by loss at the longest length; those that do not reach it come after, the farther
  first."""

  def rank(scheme):
    last = scheme['losses'][-1] if scheme['losses'] else {'length': 0, 'mean': 0.0}
    return -last['length'], last['mean']

  return sorted(results['schemes'], key=rank)


def markdown(results: Mapping[str, Any]) -> str:
  """The table in Markdown, aligned, so that a terminal can show it, too; notes below it."""
  table = markdown_table(header(results), cells(results))
  return '\n'.join([table, '', *(f'- {note}' for note in notes(results)), ''])


def notes(results: Mapping[str, Any]) -> list[str]:
  """What a reader must know to believe the table, and what is missing in it, and why."""
  budget, seeds, baseline = results['budget'], results['seeds'], results['baseline']
  over = f'mean ± standard deviation over {len(seeds)} seeds' if seeds[1:] else 'one seed'
  reach = ', and those whose range over seeds reaches its range' if seeds[1:] else ''
  said = [
    f'Trained on {results["trained_length"]} tokens: {budget["train.steps"]:,} steps of '
    f'{budget["train.batch"]} rows, {budget["model.layers"]} layers of width '
    f'{budget["model.width"]}; for every scheme the same rows in the same order.',
    f'Loss in nats per token, {over}, of {results["tokens"]:,} targets: the first '
    f'{results["targets"]:,} of each of {results["documents"]} held-out documents, the same for '
    f'every scheme, seed and length. Windows slide by 1/{results["overlap"]} of the length. '
    f'Bold: the lowest of its length{reach}.',
    f'Step: time of a training step over that of {baseline}, medians of steps in turn in one '
    'process. MiB: what the compiled step allots, state and batch included. Cache: bytes that '
    f'decoding keeps of a token, over all layers, in {results["dtype"]}.',
  ]
  lacking = {}
  for scheme in results['schemes']:
    # Reasons name the length at hand: the first speaks for all.
    for row in scheme['refused'][:1]:
      lengths = [other['length'] for other in scheme['refused']]
      said += refusals((scheme['name'], length, row['reason']) for length in lengths)
    for row in scheme['missing']:
      lacking.setdefault(row['reason'], []).append(f'{scheme["name"]} with seed {row["seed"]}')
  return said + [f'Missing: {", ".join(runs)}: {reason}' for reason, runs in lacking.items()]


def duration(seconds: float) -> str:
  """Seconds as a person says them."""
  if seconds < 120:
    return f'{seconds:.0f} s'
  hours, minutes = divmod(round(seconds / 60), 60)
  return f'{hours} h {minutes} min' if hours else f'{minutes} min'


# --- pictures -------------------------------------------------------------------------------------


def plot_lengths(results: Mapping[str, Any]) -> Figure:
  """Loss at each length, one line per scheme, on the same targets; bars: the range over seeds."""
  figure, axes = frame('Loss by context length', 'context length (tokens)', 'nats per token')
  mark_trained(axes, results['trained_length'], results['lengths'])
  for i, scheme in enumerate(results['schemes']):
    if losses := scheme['losses']:
      name = until(scheme['name'], losses[-1]['length'], results['lengths'])
      draw_bars(axes, losses, 'length', 'mean', label=name, **look(i))
  return label_ends(figure, axes)


def plot_positions(results: Mapping[str, Any]) -> Figure:
  """Loss by tokens of context, at each scheme's longest length; bands: the range over seeds."""
  trained = results['trained_length']
  figure, axes = frame('Loss by position in the context', 'tokens of context', 'nats per token')
  mark_trained(axes, trained, position_ticks(trained, results['lengths']))
  for i, scheme in enumerate(results['schemes']):
    if curve := scheme['positions']:
      name = until(scheme['name'], curve['length'], results['lengths'])
      shown = visible(curve['bins'], trained)
      draw_band(axes, shown, label=name, among=len(results['schemes']), **look(i))
  return label_ends(figure, axes)
