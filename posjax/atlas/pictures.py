"""The pictures of the atlas: a page per scheme, an overview of all, and the attention of a run.

Places are in inches from the top left of the page, so that every picture has the same margins.
"""

import functools
import itertools
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from posjax.atlas.drawing import (
  LEFT,
  PALE,
  RIGHT,
  SHADE,
  STYLE,
  Canvas,
  colour_of,
  draw_kernels,
  draw_map,
  draw_wave,
  frame_kernel,
  head_colour,
  heads_of,
  shown,
  some,
)  # fmt: skip
from posjax.atlas.measure import REACH
from posjax.atlas.portrait import PLAIN, Portrait
from posjax.atlas.trained import Attention
from posjax.report.drawing import GREY

# --- pages ----------------------------------------------------------------------------------------


def page(portrait: Portrait) -> Figure:
  """One scheme: maps and kernels, spectrum, input, extensions; what it has not is left out."""
  recipes = list(portrait.maps)
  parts = [(draw_heads, 3.05)]
  if portrait.waves:
    parts.append((draw_waves, 1.05 + 0.19 * len(portrait.waves)))
  if portrait.inputs:
    parts.append((draw_input, 2.95))
  for first in range(0, len(recipes) if len(recipes) > 1 else 0, 4):
    band = functools.partial(draw_extensions, recipes=recipes[first : first + 4])
    parts.append((band, 4.1 + (1.05 if portrait.inputs else 0)))
  canvas = Canvas(0.95 + sum(height for _, height in parts))
  canvas.title(portrait.name, portrait.about, portrait.setting)
  top = 0.95
  for draw, height in parts:
    draw(canvas, top, portrait)
    top += height
  return canvas.figure


def draw_heads(canvas: Canvas, top: float, portrait: Portrait) -> None:
  """The weights of each head over the trained length, and the kernels of all beside them."""
  length, differ = portrait.length, heads_of(portrait)
  p_HIJ, kernel_HR = portrait.maps[PLAIN][:, :length, :length], portrait.kernels[PLAIN]
  here, height = top + 0.38, 2.15
  canvas.head(top, 'Attention weight', LEFT)
  if len(differ) == 1:
    axes = canvas.axes(LEFT, here, height, height)
    image = draw_map(axes, p_HIJ[0], length)
    axes.set(xlabel='key', ylabel='query')
    axes.set_title('all heads', color=head_colour(0, 1))
    bar, left = LEFT + height + 0.13, LEFT + height + 1.4
  else:
    chosen = [differ[n] for n in some(len(differ), 8)]
    side, step, across = 0.95, 1.09, -(-len(chosen) // 2)
    for n, h in enumerate(chosen):
      row, column = divmod(n, across)
      axes = canvas.axes(LEFT + step * column, here + 1.2 * row, side, side)
      image = draw_map(axes, p_HIJ[h], length)
      axes.set_title(f'head {h + 1}', color=head_colour(h, len(differ)))
      if row == 1 and column == 0:
        axes.set(xlabel='key', ylabel='query')
      else:
        axes.set_xticks([])
        axes.set_yticks([])
    bar = LEFT + step * across - 0.02
    left = bar + 1.15
  canvas.colorbar(image, bar, here, height)

  canvas.head(top, 'Kernel', left)
  axes = canvas.axes(left, here, RIGHT - left, height)
  draw_kernels(axes, portrait, [kernel_HR])
  axes.set(xlabel='distance (tokens)', ylabel="logit above the own key's (nats)")
  edge = axes.get_ylim()[1]
  axes.text(length, edge, 'trained', color=GREY, fontsize=7.5, ha='center', va='bottom')


def draw_waves(canvas: Canvas, top: float, portrait: Portrait) -> None:
  """The wavelength of each pair on a log axis, one row of lines per recipe."""
  canvas.head(top, 'Spectrum', LEFT)
  rows = list(portrait.waves)
  height = 0.19 * len(rows) + 0.1
  axes = canvas.axes(LEFT + 0.55, top + 0.36, RIGHT - LEFT - 0.55, height)
  for y, name in enumerate(rows):
    wave_F = portrait.waves[name]
    axes.vlines(wave_F, y - 0.33, y + 0.33, color=colour_of(name), linewidth=1.5)
  axes.set_xscale('log')
  every = np.concatenate(list(portrait.waves.values()))
  low, high = every.min(), every.max()
  axes.set(xlim=(low / 1.3, high * 1.3), ylim=(len(rows) - 0.4, -0.6))
  axes.axvspan(portrait.length, high * 1.3, color=GREY, alpha=SHADE, linewidth=0, zorder=0)
  axes.set_yticks(range(len(rows)), rows)
  axes.spines['left'].set_visible(False)
  axes.tick_params(axis='y', length=0)
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:,.0f}'))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.set_xlabel(portrait.wave_unit)
  axes.text(
    portrait.length, -0.7, f' longer than the {portrait.length:,} trained tokens', color=GREY,
    fontsize=7.5, va='bottom',
  )  # fmt: skip


def draw_input(canvas: Canvas, top: float, portrait: Portrait) -> None:
  """Position by dimension: even dimensions and odd ones, which a scheme may use differently."""
  canvas.head(top, 'Added to the input', LEFT)
  wave_LD = portrait.inputs[PLAIN][: portrait.length]
  # 512 x 256 pixels: whole ones for each number of the usual sizes.
  width, height = 512 / STYLE['savefig.dpi'], 256 / STYLE['savefig.dpi']
  for parity, name in enumerate(('even', 'odd')):
    axes = canvas.axes(LEFT + parity * (width + 0.2), top + 0.38, width, height)
    image = draw_wave(axes, wave_LD, parity, np.abs(wave_LD).max(), portrait.length)
    axes.set_title(f'{name} dimensions')
    axes.set_xlabel('position (tokens)')
    if parity:
      axes.set_yticks([])
    else:
      axes.set_ylabel('dimension')
  canvas.bar(image, LEFT + 2 * width + 0.28, top + 0.38, height)


def draw_extensions(
  canvas: Canvas, top: float, portrait: Portrait, recipes: Sequence[str]
) -> None:
  """A column per recipe: kernel and weights of one head, out to the reach; and the input."""
  h = shown(portrait)
  canvas.head(top, 'Extended' + (f', head {h + 1}' if len(heads_of(portrait)) > 1 else ''), LEFT)
  side, step = 1.92, 2.13
  kernels = [kernel_HR[h : h + 1] for kernel_HR in portrait.kernels.values()]
  for column, recipe in enumerate(recipes):
    left = LEFT + step * column
    axes = canvas.axes(left, top + 0.38, side, 1.05)
    frame_kernel(axes, kernels, portrait.length)
    if recipe != PLAIN:
      axes.plot(portrait.kernels[PLAIN][h], color=PALE, linewidth=1)
    axes.plot(portrait.kernels[recipe][h], color=colour_of(recipe), linewidth=1)
    axes.set_title(recipe, color=colour_of(recipe), weight='bold')
    below = canvas.axes(left, top + 1.72, side, side)
    image = draw_map(below, portrait.maps[recipe][h], portrait.length, REACH * portrait.length)
    if portrait.inputs:
      wave = canvas.axes(left, top + 4.0, side, 0.7)
      largest = np.abs(portrait.inputs[PLAIN]).max()
      draw_wave(wave, portrait.inputs[recipe], 0, largest, portrait.length, REACH * portrait.length)
    if column:
      for each in (axes, below, *([wave] if portrait.inputs else [])):
        each.tick_params(labelleft=False)
    else:
      axes.set_ylabel('nats')
      below.set_ylabel('query')
      if portrait.inputs:
        wave.set_ylabel('even dimension')
  canvas.colorbar(image, LEFT + step * len(recipes) - 0.12, top + 1.72, side)


# --- overview -------------------------------------------------------------------------------------


def overview(portraits: Sequence[Portrait], setting: str) -> Figure:
  """All schemes: for each the weights of one head, and beside them the kernels of all heads."""
  across, side, gap, step, rise = 4, 0.95, 0.24, 2.27, 1.36
  top, width, length = 1.12, 0.9, portraits[0].length
  down = -(-len(portraits) // across)
  canvas = Canvas(top + rise * down + 0.55)
  about = 'Left, the attention of one head: queries down, keys across. Right, the kernels of all.'
  canvas.title('Position schemes', about, setting)
  for n, portrait in enumerate(portraits):
    left, here = 0.42 + step * (n % across), top + rise * (n // across)
    acts = ', '.join(portrait.acts)
    canvas.write(left, here - 0.09, portrait.name, size=10, weight='bold')
    canvas.write(
      left + side + gap + width, here - 0.09, acts, size=7.5, color=GREY, ha='right'
    )
    axes = canvas.axes(left, here, side, side)
    image = draw_map(axes, portrait.maps[PLAIN][shown(portrait), :length, :length], length)
    axes.set_xticks([])
    axes.set_yticks([])
    axes = canvas.axes(left + side + gap, here, width, side)
    draw_kernels(axes, portrait, [np.array([[-8.0]])], linewidth=1)
    axes.set_yticks([0, -8], ['0', '−8'])
    ends = [0, length, REACH * length]
    axes.set_xticks(ends, [f'{end:,}' if n + across >= len(portraits) else '' for end in ends])
    axes.tick_params(length=2, pad=1.5, labelsize=7)
  bottom = top + rise * down + 0.18
  canvas.colorbar(image, 0.42, bottom, side, 'horizontal')
  canvas.write(0.42 + side + 0.12, bottom + 0.08, 'attention weight', size=7.5)
  canvas.write(
    RIGHT, bottom + 0.08,
    f'Kernels: nats above the own key\'s logit, over {REACH * length:,} tokens of distance; '
    f'dotted, the trained {length:,}.',
    size=7.5, ha='right',
  )  # fmt: skip
  return canvas.figure


# --- a run ----------------------------------------------------------------------------------------


def attention(run: Attention) -> Figure:
  """A run, a row per layer: weights of its heads on text, and how far they reach, extended too."""
  N, H = run.p_NHIJ.shape[:2]
  layers, heads = some(N, 8), some(H, 8)
  height, gap, between = 1.08, 0.08, 0.18
  down = 1 if len(heads) <= 4 else 2
  across, side = -(-len(heads) // down), (height - gap * (down - 1)) / down
  bar = LEFT + across * (side + gap)
  left = bar + 0.95
  width = (RIGHT - left - between) / 2
  top, step = 1.42, height + 0.2
  canvas = Canvas(top + step * len(layers) + 0.55)
  about = 'What each head attends to (queries down, keys across), and how far.'
  canvas.title(run.name, about, run.setting)
  part = f', {len(heads)} of {H} heads' if len(heads) < H else f', heads 1 to {H} row by row'
  canvas.head(0.95, 'Attention weight' + (part if down > 1 else ''), LEFT)
  canvas.head(0.95, 'Mean weight over distance', left)
  for row, n in enumerate(layers):
    here = top + step * row
    for m, h in enumerate(heads):
      axes = canvas.axes(
        LEFT + (side + gap) * (m % across), here + (side + gap) * (m // across), side, side
      )
      image = draw_map(axes, run.p_NHIJ[n, h], run.length)
      axes.set_xticks([])
      axes.set_yticks([])
      if row == 0 and down == 1:
        axes.set_title(f'head {h + 1}', color=head_colour(h, H))
    style = {'rotation': 90, 'ha': 'right', 'va': 'center'}
    canvas.write(LEFT - 0.12, here + height / 2, f'layer {n + 1}', **style)
    for column, name in enumerate(('each head', 'mean of heads')):
      axes = canvas.axes(left + column * (width + between), here, width, height)
      frame_reach(axes, run.over_distance[PLAIN].shape[-1], run.length)
      if column:
        axes.tick_params(labelleft=False)
        for recipe, weight_NHR in run.over_distance.items():
          draw_reach(axes, weight_NHR[n].mean(0), colour_of(recipe))
      else:
        for h, weight_R in enumerate(run.over_distance[PLAIN][n]):
          draw_reach(axes, weight_R, head_colour(h, H))
      if not row:
        axes.set_title(name)
      if row == len(layers) - 1:
        axes.set_xlabel('distance (tokens)')
      else:
        axes.tick_params(labelbottom=False)
    if not row:
      for line, recipe in enumerate(reversed(run.over_distance)):
        axes.text(
          0.04, 0.05 + 0.11 * line, recipe, color=colour_of(recipe), fontsize=7,
          transform=axes.transAxes,
        )  # fmt: skip
  canvas.colorbar(image, bar + 0.02, top, height)
  return canvas.figure


def frame_reach(axes, R: int, length: int) -> None:
  """Logarithmic axes of weight over distance; the broad line is attention to all keys alike."""
  share_I = 1 / np.arange(1, R + 1)
  draw_reach(axes, np.array([share_I[r:].mean() for r in range(R)]), PALE, linewidth=3)
  axes.set(xscale='log', yscale='log', xlim=(1, REACH * length), ylim=(2e-5, 1))
  ticks = sorted({1, 10, length, REACH * length})
  axes.set_xticks(ticks, [f'{tick:,}' for tick in ticks])
  axes.set_yticks([1, 1e-2, 1e-4], ['1', '0.01', '0.0001'])
  axes.xaxis.set_minor_locator(NullLocator())
  axes.yaxis.set_minor_locator(NullLocator())
  axes.axvline(length, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def draw_reach(axes, weight_R: np.ndarray, colour, **style) -> None:
  """Weight over distance, averaged within steps of about a tenth."""
  edge_P = np.unique(np.geomspace(1, len(weight_R), 48).astype(int))
  x_P = np.sqrt(edge_P[:-1] * (edge_P[1:] - 1.0))
  mean_P = [weight_R[a:b].mean() for a, b in itertools.pairwise(edge_P)]
  axes.plot(x_P, mean_P, color=colour, **{'linewidth': 1.1, **style})
