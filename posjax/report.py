"""A run's report: a table, JSON, pictures, and one HTML page that needs nothing but itself."""

import html
import io
import json
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

INK, GREY = '#1b2733', '#8a94a0'  # INK becomes the page's text colour in the HTML, light or dark
# Okabe & Ito (2008), told apart by colour-blind readers; the markers say the same without colour.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
MARKERS = 'osD^vP'
STYLE = {
  'font.size': 10,
  'axes.titlesize': 11,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.titlepad': 10,
  'text.color': INK,
  'axes.labelcolor': INK,
  'axes.edgecolor': GREY,
  'xtick.color': GREY,
  'ytick.color': GREY,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.grid.axis': 'y',
  'axes.axisbelow': True,
  'grid.color': GREY,
  'grid.alpha': 0.25,
  'grid.linewidth': 0.8,
  'lines.linewidth': 1.8,
  'lines.markersize': 5,
  'legend.frameon': False,
  'legend.fontsize': 9,
  'figure.figsize': (5.6, 3.5),
  'figure.dpi': 100,
  'savefig.dpi': 200,
  'svg.hashsalt': 'posjax',  # the same numbers give the same file
}


def write(
  workdir: str | Path,
  results: Mapping[str, Any] | None,
  metrics: list[Mapping[str, Any]],
  config: Any,
) -> Path:
  """Writes everything a person wants to see of a run, and returns the page's path.

  `results` of posjax.evaluation.evaluate goes to evaluation/<name>.json, each picture to a PNG
  beside it; None only renews the page. The page shows every evaluation that lies in the directory,
  the training curve from `metrics` (dicts with `step` and `loss`) and `config`.
  """
  workdir = Path(workdir)
  folder = workdir / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  if results is not None:
    text = json.dumps(results, indent=1, allow_nan=False)
    (folder / f'{results["name"]}.json').write_text(text + '\n')
  evaluations = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]

  pictures = {}
  with matplotlib.rc_context(STYLE):
    for evaluation in evaluations:
      name = evaluation['name']
      for kind, plot in PLOTS.items():
        if figure := plot(evaluation):
          pictures[name, kind] = save(figure, folder / f'{name}-{kind}.png')
    if figure := plot_training(metrics):
      pictures['training'] = save(figure, workdir / 'training.png')
  path = workdir / 'report.html'
  path.write_text(page(workdir.resolve().name, evaluations, pictures, config))
  return path


# --- table ----------------------------------------------------------------------------------------

HEADER = (
  'length', 'recipe', 'loss', '95 % interval', 'perplexity', 'bits/byte', 'gain', 'no overlap'
)  # fmt: skip


def cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the lines of the table under HEADER, as text: one per length and recipe."""
  by = {(r['estimator'], r['length'], r['recipe']): r for r in results['rows']}
  gains = {(g['length'], g['recipe']): f'{g["mean"]:+.4f}' for g in results['gains']}
  lines = []
  for length in results['lengths']:
    size = f'trained {length}' if length == results['trained_length'] else str(length)
    for recipe in results['recipes']:
      row = by.get(('sliding', length, recipe))
      if row is None:
        lines.append((size, recipe, 'refused', *[''] * 5))
        continue
      star = '*' if row['best'] and len(results['recipes']) > 1 else ''
      around = '' if row['low'] is None else f'{row["low"]:.3f} to {row["high"]:.3f}'
      lines.append(
        (
          size,
          recipe,
          f'{star}{row["loss"]:.4f}',
          around,
          f'{row["perplexity"]:.3f}',
          f'{row["bits_per_byte"]:.4f}',
          gains.get((length, recipe), ''),
          f'{by["non-overlapping", length, recipe]["loss"]:.4f}',
        )
      )
  return lines


def notes(results: Mapping[str, Any]) -> list[str]:
  """Returns what a reader must know to believe the table, and why recipes were refused."""
  said = [
    f'Loss in nats per token over {results["tokens"]:,} targets: the first '
    f'{results["targets"]:,} of each of {results["documents"]} documents, the same for every '
    f'length and recipe. Too short and left out: {results["short_documents"]}.',
    f'Windows slide by 1/{results["overlap"]} of the length; no overlap: the loss of the same '
    'targets in windows side by side. Intervals: bootstrap over documents.',
  ]
  if results['gains']:
    said.append(
      'Gain: nats per token that the length saves against the trained length, on the targets '
      'that the longest windows show with full context.'
    )
  if len(results['recipes']) > 1:
    said.append('* The best recipe of its length, and those whose paired interval reaches it.')
  where = {}
  for r in results['refused']:
    where.setdefault((r['recipe'], r['reason']), []).append(str(r['length']))
  return said + [
    f'{recipe} is refused at {", ".join(lengths)}: {reason}'
    for (recipe, reason), lengths in where.items()
  ]


def table(results: Mapping[str, Any]) -> str:
  """Returns the evaluation as aligned text for a terminal of 100 columns."""
  lines = [HEADER, *cells(results)]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text, size = [f'Evaluation {results["name"]}', ''], HEADER[0]
  for line in lines:
    if line[0] != size and (len(results['recipes']) > 1 or size == HEADER[0]):
      text.append('')  # between lengths
    size = line[0]
    text.append(
      '  '.join(
        cell.ljust(width) if name == 'recipe' else cell.rjust(width)
        for name, cell, width in zip(HEADER, line, widths, strict=True)
      ).rstrip()
    )
  return '\n'.join([*text, '', *(textwrap.fill(note, 100) for note in notes(results)), ''])


# --- pictures -------------------------------------------------------------------------------------


def plot_lengths(results: Mapping[str, Any]) -> Figure:
  """Loss at each length, one line per recipe, on the same targets."""
  figure, axes = frame('Loss by context length', 'context length (tokens)', 'nats per token')
  mark_trained(axes, results['trained_length'], results['lengths'])
  estimators = ('sliding', 'non-overlapping') if len(results['recipes']) == 1 else ('sliding',)
  for estimator in estimators:
    for recipe in results['recipes']:
      rows = [r for r in results['rows'] if r['recipe'] == recipe and r['estimator'] == estimator]
      if rows:
        name = recipe if len(estimators) == 1 else f'{estimator} windows'
        draw(axes, rows, 'length', 'loss', look(results, recipe, name, estimator))
  return finish(figure, axes)


def plot_gains(results: Mapping[str, Any]) -> Figure | None:
  """What each length saves against the trained one, on the same targets; None without a gain."""
  if not results['gains']:
    return None
  figure, axes = frame(
    'Gain of long context, on the same targets', 'context length (tokens)', 'nats saved per token'
  )
  axes.axhline(0, color=GREY, linewidth=1)
  start = [{'length': results['trained_length'], 'mean': 0.0, 'low': 0.0, 'high': 0.0}]
  mark_trained(axes, results['trained_length'], results['lengths'])
  for recipe in results['recipes']:
    gains = [g for g in results['gains'] if g['recipe'] == recipe]
    if gains:
      draw(axes, start + gains, 'length', 'mean', look(results, recipe, recipe))
  # A recipe that breaks loses a hundred times what others gain, and may leave the frame below.
  if any(g['mean'] > 0 for g in results['gains']):
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom=max(bottom, -2 * max(top, 0.02)))
  return finish(figure, axes)


def plot_positions(results: Mapping[str, Any]) -> Figure:
  """Loss by tokens of context, in windows of the longest length; bands are the intervals."""
  trained = results['trained_length']
  figure, axes = frame('Loss by position in the context', 'tokens of context', 'nats per token')
  ticks = {n for n in (trained // 8, trained // 2) if n}
  mark_trained(axes, trained, sorted(ticks | set(results['lengths'])))
  for curve in results['positions']:
    # The first tokens of a window lose several nats in any model and would flatten the rest.
    bins = [b for b in curve['bins'] if b['above'] >= trained / 16]
    x_P = [math.sqrt(b['context'] * (b['above'] + 1)) for b in bins]  # the middle on a log axis
    mean_P, low_P, high_P = (
      np.array([b[key] for b in bins], float) for key in ('mean', 'low', 'high')
    )
    style = look(results, curve['recipe'], curve['recipe'])
    axes.fill_between(x_P, low_P, high_P, color=style['color'], alpha=0.12, linewidth=0)
    axes.plot(x_P, mean_P, **{**style, 'marker': ''})
  return finish(figure, axes)


PLOTS = {'lengths': plot_lengths, 'positions': plot_positions, 'gains': plot_gains}


def plot_training(metrics: list[Mapping[str, Any]]) -> Figure | None:
  """Training loss by step, and validation loss where there is one; None without a loss."""
  if not any('loss' in m for m in metrics):
    return None
  figure, axes = frame('Loss in training', 'step', 'nats per token')
  for key, name, colour in (
    ('loss', 'training', COLOURS[0]),
    ('validation_loss', 'validation', COLOURS[1]),
  ):
    if points := [(m['step'], m[key]) for m in metrics if key in m]:
      axes.plot(*np.array(points, float).T, color=colour, label=name)  # null becomes a gap
  axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
  return finish(figure, axes)


def frame(title: str, x: str, y: str) -> tuple[Figure, Any]:
  """Returns a figure, which no global state of matplotlib knows, and its axes."""
  figure = Figure(layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set(xlabel=x, ylabel=y)
  axes.set_title(title)
  return figure, axes


def look(results: Mapping[str, Any], recipe: str, name: str, estimator: str = 'sliding') -> dict:
  """Returns a line's style: a recipe looks the same in all pictures of an evaluation."""
  i = results['recipes'].index(recipe)
  return {
    'label': name,
    'color': COLOURS[i % len(COLOURS)],
    'marker': MARKERS[i % len(MARKERS)],
    'linestyle': '-' if estimator == 'sliding' else '--',
  }


def draw(axes: Any, rows: list[Mapping], x: str, y: str, style: Mapping) -> None:
  """Draws a line through the rows, with their intervals as bars."""
  x_P, y_P, low_P, high_P = (
    np.array([r[key] for r in rows], float) for key in (x, y, 'low', 'high')
  )
  axes.plot(x_P, y_P, **style)
  axes.vlines(x_P, low_P, high_P, color=style['color'], linewidth=1, alpha=0.6)


def mark_trained(axes: Any, trained_length: int, ticks: list[int]) -> None:
  """Gives a log2 axis its ticks, and a line at the length that training has seen."""
  axes.set_xscale('log', base=2)
  below = {trained_length: 'trained'}  # two lines for all, or their baselines differ
  axes.set_xticks(ticks, [f'{n:,}\n{below.get(n, " ")}' for n in ticks])
  axes.xaxis.set_minor_locator(NullLocator())
  axes.axvline(trained_length, color=GREY, linewidth=1, linestyle=':')


def finish(figure: Figure, axes: Any) -> Figure:
  """Puts the legend between title and axes where there is more than one line to tell apart."""
  handles, _ = axes.get_legend_handles_labels()
  if len(handles) > 1:
    axes.legend(
      loc='lower left',
      bbox_to_anchor=(-0.01, 0.99),
      ncols=min(len(handles), 4),
      borderaxespad=0,
      handlelength=1.8,
      columnspacing=1.4,
    )
    axes.set_title(axes.get_title(loc='left'), pad=10 + 14 * -(-len(handles) // 4))
  return figure


def save(figure: Figure, path: Path) -> str:
  """Writes the PNG and returns the same picture as SVG in the page's own ink."""
  figure.savefig(path)
  text = io.StringIO()
  figure.savefig(
    text,
    format='svg',
    transparent=True,
    metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None},
  )
  svg = text.getvalue()
  return svg[svg.index('<svg') :].replace(INK, 'currentColor')


# --- page -----------------------------------------------------------------------------------------

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
  :root {{ --ink: #1b2733; --soft: #66717d; --line: #8a94a044; --paper: #fff; --best: #0072b214; }}
  @media (prefers-color-scheme: dark) {{
    :root {{ --ink: #e3e8ee; --soft: #9aa5b1; --paper: #14191f; --best: #56b4e926; }}
  }}
  body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
         max-width: 46rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
  h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1.5rem; }}
  h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .75rem; }}
  .wide {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
          width: 100%; }}
  th, td {{ padding: .25rem .5rem; text-align: right; white-space: nowrap; }}
  th {{ font-weight: 600; border-bottom: 1px solid var(--soft); }}
  th:nth-child(2), td:nth-child(2) {{ text-align: left; }}
  tr.new td {{ border-top: 1px solid var(--line); }}
  td.best {{ font-weight: 600; background: var(--best); }}
  p, li, dl {{ font-size: .875rem; }}
  .notes {{ color: var(--soft); padding-left: 1.1rem; }}
  svg {{ display: block; width: 100%; max-width: 40rem; height: auto; margin: 1.5rem auto; }}
  dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }}
  dt {{ color: var(--soft); }}
  dd {{ margin: 0; overflow-wrap: anywhere; }}
  summary {{ cursor: pointer; }}
  pre {{ font-size: .8rem; overflow-x: auto; }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def page(title: str, evaluations: list[Mapping], pictures: Mapping, config: Any) -> str:
  """Returns the page: per evaluation its table, pictures and facts, then training and config."""
  parts = []
  for evaluation in evaluations:
    facts = {**evaluation['facts'], 'seconds': f'{evaluation["seconds"]:.1f}, evaluation alone'}
    parts += [
      f'<h2>Evaluation: {html.escape(evaluation["name"])}</h2>',
      html_table(evaluation),
      *(svg for key, svg in pictures.items() if key[0] == evaluation['name']),
      '<dl>',
      *(
        f'<dt>{html.escape(key)}</dt><dd>{html.escape(say(value))}</dd>'
        for key, value in facts.items()
      ),
      '</dl>',
    ]
  if 'training' in pictures:
    parts += ['<h2>Training</h2>', pictures['training']]
  text = json.dumps(config, indent=2, default=lambda x: x.to_dict())
  parts.append(f'<details><summary>Config</summary><pre>{html.escape(text)}</pre></details>')
  return PAGE.format(title=html.escape(title), body='\n'.join(parts))


def say(value: Any) -> str:
  """Returns a fact as a person writes it: {'jax': '0.10', 'numpy': '2'} is 'jax 0.10, numpy 2'."""
  if isinstance(value, Mapping):
    return ', '.join(f'{key} {say(part)}' for key, part in value.items())
  return str(value)


def html_table(results: Mapping[str, Any]) -> str:
  """Returns the table and its notes as HTML."""
  rows, size = [], None
  for line in cells(results):
    tag, size = ('<tr class="new">' if line[0] != size else '<tr>'), line[0]
    rows.append(
      tag
      + ''.join(
        f'<td class="best">{html.escape(cell)}</td>'
        if cell.startswith('*')
        else f'<td>{html.escape(cell)}</td>'
        for cell in line
      )
    )
  return '\n'.join(
    [
      '<div class="wide"><table>',
      '<tr>' + ''.join(f'<th>{name}</th>' for name in HEADER),
      *rows,
      '</table></div>',
      '<ul class="notes">',
      *(f'<li>{html.escape(note)}</li>' for note in notes(results)),
      '</ul>',
    ]
  )
