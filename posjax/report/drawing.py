"""How pictures look: colours, styles, axes, lines that are labelled where they end, files."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

INK, GREY = '#1b2733', '#8a94a0'  # INK becomes the page's text colour in the HTML, light or dark
# Okabe & Ito (2008), told apart by colour-blind readers, without their yellow, which white paper
# swallows. Of 21 lines no two share colour and dashes, nor, for who sees no colour, marker and
# dashes.
COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', INK)
MARKERS = 'osD^vPX*'
DASHES = ('-', (0, (4, 1.5)), (0, (1.2, 1.2)))
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
  'figure.figsize': (6.4, 3.6),
  'figure.dpi': 100,
  'savefig.dpi': 200,
  'svg.hashsalt': 'posjax',  # the same numbers give the same file
}
LABEL = 9.0  # points, of the names at the ends of lines
LEADING = 1.3 * LABEL  # points from one name to the next


def styled() -> contextlib.AbstractContextManager:
  """A context in which figures look like this file; matplotlib's own settings stay as they are."""
  return matplotlib.rc_context(STYLE)


def look(i: int) -> dict[str, Any]:
  """The style of line i of a picture: 7 colours, then again with dashes, then with dots."""
  return {
    'color': COLOURS[i % len(COLOURS)],
    'marker': MARKERS[i % len(MARKERS)],
    'linestyle': DASHES[i // len(COLOURS) % len(DASHES)],
  }


def frame(title: str, x: str, y: str) -> tuple[Figure, Any]:
  """A figure, which no global state of matplotlib knows, and its axes."""
  figure = Figure(layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  axes.set(xlabel=x, ylabel=y)
  axes.set_title(title)
  return figure, axes


def mark_trained(
  axes: Any, trained_length: float, ticks: Sequence[int], name: str = 'trained'
) -> None:
  """Gives a log2 axis its ticks, and a line at the length that training has seen."""
  axes.set_xscale('log', base=2)
  below = {trained_length: name}  # two lines for all, or their baselines differ
  axes.set_xticks(ticks, [f'{n:,}\n{below.get(n, " ")}' for n in ticks])
  axes.xaxis.set_minor_locator(NullLocator())
  axes.axvline(trained_length, color=GREY, linewidth=1, linestyle=':')


def label_ends(figure: Figure, axes: Any) -> Figure:
  """Names each line at its right end, where there is more than one; call it last.

  The names stand in one column beside the axes, each as near to its line's end as its neighbours
  allow, with the line's own look and a thin lead to the end. A line that ends before the others
  do, or outside the frame, has no lead, which would look like data. The figure grows with the
  names.
  """
  lines = [line for line in axes.get_lines() if not line.get_label().startswith('_')]
  if len(lines) < 2:
    return figure
  width, height = figure.get_size_inches()
  figure.draw_without_rendering()
  inches = axes.get_window_extent().height / figure.dpi
  figure.set_size_inches(width, height + max(0, len(lines) * LEADING / 72 - inches))
  figure.draw_without_rendering()  # names change the width of the axes, not their height
  gap = LEADING / 72 * figure.dpi / axes.get_window_extent().height

  to_axes = axes.transData + axes.transAxes.inverted()
  end_N2 = np.array([to_axes.transform(last_point(line)) for line in lines])
  place_N = spread(end_N2[:, 1], gap)
  right = end_N2[:, 0].max()
  for line, (x, y), place in zip(lines, end_N2, place_N, strict=True):
    style = {key: getattr(line, f'get_{key}')() for key in ('color', 'linestyle', 'marker')}
    beside = {'transform': axes.transAxes, 'clip_on': False}
    if x > right - 1e-3 and 0 <= y <= 1:
      lead = Line2D([x, 1.02], [y, place], color=style['color'], linewidth=0.7, alpha=0.6, **beside)
      axes.add_artist(lead)
    axes.add_artist(
      Line2D([1.02, 1.055, 1.09], [place] * 3, markevery=[1], linewidth=1.6, **style, **beside)
    )
    axes.text(
      1.105, place, line.get_label(), va='center_baseline', fontsize=LABEL, transform=axes.transAxes
    )
  return figure


def last_point(line: Line2D) -> np.ndarray:
  """The last point of a line that is one."""
  point_N2 = line.get_xydata()
  return point_N2[np.isfinite(point_N2).all(1)][-1]


def spread(wish_N: np.ndarray, gap: float) -> np.ndarray:
  """Places in [0, 1] at least `gap` apart, in the order of the wishes and nearest to them.

  Least squares: places less their rank's share of gaps may only rise, which neighbours that do not
  reach by pooling. Where 1 / gap places do not fit, they are as far apart as they can be.
  """
  N = len(wish_N)
  gap = min(gap, 1 / max(1, N - 1))
  order = np.argsort(wish_N, kind='stable')
  pools: list[list[float]] = []
  for wish in np.clip(wish_N[order], 0, 1) - gap * np.arange(N):
    pools.append([wish])
    while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
      pools[-2:] = [pools[-2] + pools[-1]]
  level_N = np.concatenate([[np.mean(pool)] * len(pool) for pool in pools])
  place_N = np.empty(N)
  place_N[order] = np.clip(level_N, 0, 1 - gap * (N - 1)) + gap * np.arange(N)
  return place_N


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
