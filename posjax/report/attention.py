"""The report of where attention lies: a line per layer, and maps of all heads."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posjax.report.drawing import GREY
from posjax.report.tables import refusals

HEADER = ('length', 'recipe', 'layer', 'distance', 'entropy', 'of ln keys', 'sink mass')
SHOWN = {'distance': 'mean distance (tokens)', 'spread': 'entropy / ln keys', 'sink': 'sink mass'}
MOST = 8  # recipes in a picture


def cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the lines of the table under HEADER, as text: one per length, recipe and layer."""
  by = {(row['length'], row['recipe']): row for row in results['rows']}
  lines = []
  for length in results['lengths']:
    size = f'trained {length}' if length == results['trained_length'] else str(length)
    for recipe in results['recipes']:
      row = by.get((length, recipe))
      if row is None:
        lines.append((size, recipe, 'refused', *[''] * 4))
        continue
      numbers = (row[name] for name in ('distance', 'entropy', 'spread', 'sink'))
      for layer, (distance_H, entropy_H, spread_H, sink_H) in enumerate(zip(*numbers, strict=True)):
        lines.append(
          (
            size,
            recipe,
            str(layer + 1),
            around(distance_H, 1),
            around(entropy_H, 2),
            f'{np.mean(spread_H):.2f}',
            around(sink_H, 3),
          )
        )
  return lines


def around(x_H: list[float], digits: int) -> str:
  """'mean (least–most)' of a layer's heads."""
  mean, least, most = (f'{x:.{digits}f}' for x in (np.mean(x_H), min(x_H), max(x_H)))
  return f'{mean} ({least}–{most})'


def notes(results: Mapping[str, Any]) -> list[str]:
  """Returns what a reader must know to believe the table, and why recipes were refused."""
  first = 'first token' if results['sinks'] == 1 else f'first {results["sinks"]} tokens'
  said = [
    'Of each layer the mean over its heads, and the least and the most of one. Means over the '
    'queries past the first quarter of each window, in windows side by side over the same text: '
    f'the beginnings of {results["documents"]} documents. Too short and left out: '
    f'{results["short_documents"]}.',
    'Distance: the mean over the weights, in tokens back. Entropy in nats, and divided by ln of '
    'how many keys the query sees, which is 1 where all weigh the same. Sink mass: the weight on '
    f'the {first} of the window.',
  ]
  return said + refusals((r['recipe'], r['length'], r['reason']) for r in results['refused'])


def plot_heads(results: Mapping[str, Any]) -> Figure:
  """Every layer and head at the longest length that any recipe reads: a row of maps per recipe, a
  column per number, one scale for all of a column. Of many recipes the first ones."""
  longest = max(row['length'] for row in results['rows'])
  rows = [row for row in results['rows'] if row['length'] == longest][:MOST]
  N, H = np.shape(rows[0]['distance'])
  wide, tall = 0.9 + 0.14 * max(H, 8), 0.45 + 0.16 * max(N, 5)  # inches of a map
  figure = Figure(layout='constrained', figsize=(len(SHOWN) * wide + 1, len(rows) * tall + 1))
  FigureCanvasAgg(figure)
  figure.suptitle(
    f'Attention of all heads at {longest:,} tokens', x=0.01, ha='left', fontsize=11,
    fontweight='bold',
  )  # fmt: skip
  panels = figure.subplots(len(rows), len(SHOWN), sharex=True, sharey=True, squeeze=False)
  for column, (name, title) in enumerate(SHOWN.items()):
    most = max(1.0, np.max([row[name] for row in rows]))
    for axes, row in zip(panels[:, column], rows, strict=True):
      image = draw_heads(axes, np.array(row[name]), most)
    panels[0, column].set_title(title, fontsize=9, fontweight='normal', pad=4)
    bar = figure.colorbar(image, ax=panels[:, column], location='bottom', shrink=0.9, aspect=30)
    bar.solids.set_rasterized(False)  # the page holds no images
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8)
  for axes, row in zip(panels[:, 0], rows, strict=True):
    axes.set_ylabel(f'{row["recipe"]}\nlayer', fontsize=9)
  for axes in panels[-1]:
    axes.set_xlabel('head', fontsize=9)
  return figure


def draw_heads(axes: Any, x_NH: np.ndarray, most: float) -> Any:
  """A map of cells, layers downwards; shapes, not pixels."""
  N, H = x_NH.shape
  edges = np.arange(H + 1) + 0.5, np.arange(N + 1) + 0.5
  image = axes.pcolormesh(
    *edges, x_NH, cmap='cividis', vmin=0, vmax=most, edgecolors='face', linewidth=0.5
  )
  axes.set_ylim(N + 0.5, 0.5)
  axes.grid(False)
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_major_locator(MaxNLocator(6, integer=True))
  axes.tick_params(length=0, labelsize=8)
  axes.spines[:].set_color(GREY)
  return image


PLOTS = {'heads': plot_heads}
