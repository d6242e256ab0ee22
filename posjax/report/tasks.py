"""The report of a task: exact match as a table and as pictures."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from posjax.report.drawing import GREY, frame, label_ends, look, mark_trained
from posjax.report.plots import draw_bars, until
from posjax.report.tables import refusals


def header(results: Mapping[str, Any]) -> tuple[str, ...]:
  """Names of the table's columns."""
  depths = (f'at {depth:g}' for depth in results['depths'])
  return ('size', 'length', 'recipe', 'exact', '95 % interval', 'tokens', *depths)


def cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the lines of the table under `header`, as text: one per size and recipe."""
  by = {(row['size'], row['recipe']): row for row in results['rows']}
  exact = {(row['size'], row['recipe'], row['depth']): row['exact'] for row in results['grid']}
  lines = []
  for size, length in zip(results['sizes'], results['lengths'], strict=True):
    shown = f'trained {size}' if size == results['trained_size'] else str(size)
    for recipe in results['recipes']:
      row = by.get((size, recipe))
      if row is None:
        lines.append((shown, str(length), recipe, 'refused', *[''] * (2 + len(results['depths']))))
        continue
      lines.append(
        (
          shown,
          str(length),
          recipe,
          f'{row["exact"]:.3f}',
          f'{row["low"]:.3f} to {row["high"]:.3f}',
          f'{row["tokens"]:.3f}',
          *(f'{exact[size, recipe, depth]:.2f}' for depth in results['depths']),
        )
      )
  return lines


def notes(results: Mapping[str, Any]) -> list[str]:
  """Returns what a reader must know to believe the table, and why recipes were refused."""
  depths = f', at each of {len(results["depths"])} depths' if results['depths'] else ''
  said = [
    f'{results["task"]}: {results["examples"]} examples of each size{depths}, the same for every '
    'recipe, drawn apart from those that were learned.',
    'Exact: the share of examples whose whole answer is right, by greedy decoding; interval: '
    "Wilson's. Tokens: the mean share of an answer's tokens that are right after true ones. "
    'Length: tokens read.',
  ]
  return said + refusals((r['recipe'], r['length'], r['reason']) for r in results['refused'])


def plot_sizes(results: Mapping[str, Any]) -> Figure:
  """Exact match at each size, one line per recipe; bars are the intervals."""
  figure, axes = frame(f'{called(results)}: exact match by size', 'size', 'share of right answers')
  mark_trained(axes, results['trained_size'], results['sizes'])
  axes.set_ylim(-0.03, 1.03)
  for i, recipe in enumerate(results['recipes']):
    if rows := [row for row in results['rows'] if row['recipe'] == recipe]:
      name = until(recipe, rows[-1]['size'], results['sizes'])
      draw_bars(axes, rows, 'size', 'exact', label=name, **look(i))
  return label_ends(figure, axes)


def plot_grid(results: Mapping[str, Any]) -> Figure | None:
  """Exact match in per cent, depth of the needle by length, one panel per recipe; None without
  depths."""
  if not results['grid']:
    return None
  recipes, depths = results['recipes'], results['depths']
  cell = {(r['recipe'], r['depth'], r['length']): r['exact'] for r in results['grid']}
  across = min(2, len(recipes))
  down = -(-len(recipes) // across)
  width = 0.6 + across * (0.5 + 0.55 * len(results['lengths']))  # inches
  height = 0.9 + down * (0.5 + 0.3 * len(depths))
  figure = Figure(layout='constrained', figsize=(max(4.6, width), height))
  FigureCanvasAgg(figure)
  title = f'{called(results)}: exact match by depth and length, in per cent'
  figure.suptitle(title, x=0.01, ha='left', fontsize=11, fontweight='bold')
  panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
  names = [f'{length:,}\n{"trained" if size == results["trained_size"] else " "}'
           for size, length in zip(results['sizes'], results['lengths'], strict=True)]  # fmt: skip
  for axes, recipe in zip(panels, recipes, strict=False):
    share_DL = [[cell.get((recipe, d, n), np.nan) for n in results['lengths']] for d in depths]
    draw_cells(axes, np.array(share_DL))
    axes.set_title(recipe, fontweight='normal')
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(depths)), [f'{depth:g}' for depth in depths])
  for axes in panels[len(recipes) :]:
    axes.set_axis_off()
  figure.supxlabel('length (tokens)', fontsize=10)
  figure.supylabel('depth of the needle', fontsize=10)
  return figure


def called(results: Mapping[str, Any]) -> str:
  """The task without its settings."""
  return results['task'].partition('(')[0]


def draw_cells(axes: Any, share_DL: np.ndarray) -> None:
  """Shares as coloured cells with their per cents; what is not a number stays empty, with a dash.

  Cells are shapes, not pixels: the page holds no images.
  """
  down, across = share_DL.shape
  axes.pcolormesh(
    np.arange(across + 1) - 0.5, np.arange(down + 1) - 0.5, share_DL, cmap='cividis', vmin=0,
    vmax=1, edgecolors='face', linewidth=0.5,
  )  # fmt: skip
  axes.set_ylim(down - 0.5, -0.5)  # the first token is above
  axes.grid(False)
  axes.tick_params(length=0)
  for d, l in np.ndindex(down, across):
    share = share_DL[d, l]
    text, ink = (f'{100 * share:.0f}', '#ffffff' if share < 0.5 else '#000000')
    if np.isnan(share):
      text, ink = '–', GREY
    axes.text(l, d, text, ha='center', va='center', fontsize=8, color=ink)


PLOTS = {'sizes': plot_sizes, 'grid': plot_grid}
