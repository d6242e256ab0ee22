"""Of what the atlas's pictures are made: a page in inches, maps, waves, kernels, colours, files.

Nothing here knows a scheme or runs JAX.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, LogNorm, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from posjax import report
from posjax.atlas.measure import REACH
from posjax.atlas.portrait import PLAIN, Portrait
from posjax.extension import METHODS
from posjax.report.drawing import COLOURS, GREY, INK

STYLE = report.drawing.STYLE | {
  'font.size': 8.5,
  'axes.titlesize': 8.5,
  'axes.titleweight': 'normal',
  'axes.titlepad': 4,
  'axes.grid': False,
  'axes.linewidth': 0.7,
  'axes.labelsize': 8.5,
  'xtick.major.width': 0.7,
  'ytick.major.width': 0.7,
  'xtick.major.size': 3,
  'ytick.major.size': 3,
  'xtick.minor.size': 0,
  'xtick.labelsize': 8,
  'ytick.labelsize': 8,
  'lines.linewidth': 1.3,
  'savefig.dpi': 130,
}
WIDTH, LEFT, RIGHT = 9.6, 0.62, 9.38  # inches; 1,248 pixels
PALE, SHADE = '#c9d0d7', 0.1  # of a line in the background; of GREY, behind a part of a plot
FLOOR = -12.0  # nats: a key so far below the query's own has e^-12 of its weight

# Perceptually uniform. Weights darken on paper; heads go from dark to light. Around 0 diverging.
MAP = matplotlib.colormaps['magma_r'].with_extremes(bad='white')
HEADS = LinearSegmentedColormap.from_list(
  'heads', matplotlib.colormaps['viridis'](np.linspace(0.05, 0.78, 64))
)
SIGNED = LinearSegmentedColormap.from_list(
  'signed', matplotlib.colormaps['RdBu_r'](np.linspace(0.08, 0.92, 65))
)


class Canvas:
  """A page of WIDTH inches on which things are placed from the top left corner."""

  def __init__(self, height: float):
    self.height = height
    self.figure = Figure(figsize=(WIDTH, height))
    FigureCanvasAgg(self.figure)

  def axes(self, left: float, top: float, width: float, height: float):
    bottom = self.height - top - height
    return self.figure.add_axes(
      (left / WIDTH, bottom / self.height, width / WIDTH, height / self.height)
    )

  def write(self, left: float, top: float, text: str, **style):
    self.figure.text(left / WIDTH, 1 - top / self.height, text, **{'va': 'baseline', **style})

  def title(self, name: str, about: str, setting: str) -> None:
    self.write(0.2, 0.36, name, size=17, weight='bold')
    self.write(0.2, 0.68, about, size=10)
    self.write(RIGHT, 0.36, setting, color=GREY, ha='right', size=8)

  def head(self, top: float, text: str, left: float) -> None:
    self.write(left - 0.42, top + 0.08, text, size=10, weight='bold')

  def bar(self, image, left: float, top: float, length: float, orientation: str = 'vertical'):
    size = (0.08, length) if orientation == 'vertical' else (length, 0.08)
    bar = self.figure.colorbar(image, cax=self.axes(left, top, *size), orientation=orientation)
    bar.outline.set_visible(False)
    bar.minorticks_off()
    bar.ax.tick_params(length=0, labelsize=7.5, pad=3)
    return bar

  def colorbar(self, image, left, top, length, orientation: str = 'vertical') -> None:
    bar = self.bar(image, left, top, length, orientation)
    decades = range(round(-math.log10(image.norm.vmin)) + 1)
    bar.set_ticks([10.0**-n for n in decades], labels=[f'{10.0**-n:.{n}f}' for n in decades])


def draw_map(axes, p_IJ: np.ndarray, length: int, end: int | None = None):
  """Weights of one head; keys ahead stay paper. Axes end at `end` tokens, or with the map."""
  size, end = len(p_IJ), end or len(p_IJ)
  hidden_IJ = np.triu(np.ones_like(p_IJ, bool), 1)
  image = axes.imshow(
    np.ma.masked_array(p_IJ, hidden_IJ),
    cmap=MAP,
    # From at most the even weight at the reach; what is less is drawn as that.
    norm=LogNorm(10.0 ** -math.ceil(math.log10(REACH * length)), 1, clip=True),
    extent=(0, size, size, 0),
    interpolation='antialiased',
  )
  axes.set(xlim=(0, end), ylim=(end, 0))
  ticks = sorted({0, min(length, end), end})
  axes.set_xticks(ticks)
  axes.set_yticks(ticks)
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0, pad=2)
  return image


def draw_wave(axes, wave_LD: np.ndarray, parity: int, largest: float, length: int, end=None):
  """Every other dimension over position. The axis ends at `end` tokens, or with them."""
  (L, D), end = wave_LD.shape, end or len(wave_LD)
  image = axes.imshow(
    wave_LD[:, parity::2].T,
    cmap=SIGNED,
    vmin=-largest,
    vmax=largest,
    aspect='auto',
    extent=(0, L, D, 0),
    interpolation='antialiased' if end > length else 'nearest',
  )
  axes.set_xlim(0, end)
  axes.set_xticks(sorted({0, min(length, end), end}))
  axes.set_yticks([0, D // 2, D])
  axes.spines[:].set_visible(False)
  axes.tick_params(length=0, pad=2)
  return image


def draw_kernels(axes, portrait: Portrait, within: Sequence[np.ndarray], **style) -> None:
  """The kernels of all heads, framed to show those `within`."""
  frame_kernel(axes, within, portrait.length)
  differ = heads_of(portrait)
  for h in differ:
    axes.plot(portrait.kernels[PLAIN][h], color=head_colour(h, len(differ)), **style)


def frame_kernel(axes, kernels: Sequence[np.ndarray], length: int) -> None:
  """Distances out to the reach; nats down to the lowest of the kernels or FLOOR, 1 at least."""
  high = max(0, *(kernel_HR.max() for kernel_HR in kernels))
  low = max(FLOOR, min(high - 1, *(kernel_HR.min() for kernel_HR in kernels)))
  edge = 0.04 * (high - low)
  axes.set(xlim=(0, REACH * length), ylim=(low - edge, high + edge))
  axes.set_xticks([0, length, 2 * length, REACH * length])
  axes.axvline(length, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)


def shown(portrait: Portrait) -> int:
  """The head that stands for all where there is room for one: neither with one key nor with all,
  but whose last trained query has an entropy nearest to two thirds of the largest."""
  p_HJ = portrait.maps[PLAIN][:, : portrait.length][:, -1]
  entropy_H = -(p_HJ * np.log(np.maximum(p_HJ, 1e-30))).sum(-1)
  return int(np.argmin(np.abs(entropy_H - 2 / 3 * np.log(portrait.length))))


def colour_of(recipe: str) -> str:
  """The colour of a recipe's extension, the same on every page; INK as trained."""
  method = recipe.split(' ')[0]
  colours = [colour for colour in COLOURS if colour != INK]
  return colours[list(METHODS).index(method) % len(colours)] if method in METHODS else INK


def heads_of(portrait: Portrait) -> list[int]:
  """The heads to draw: the first alone where the kernels of all are equal but for rounding."""
  kernel_HR = portrait.kernels[PLAIN]
  return [0] if np.allclose(kernel_HR, kernel_HR[:1], atol=1e-4) else list(range(len(kernel_HR)))


def head_colour(h: int, H: int):
  return HEADS(h / max(H - 1, 1))


def save(figure: Figure, path: Path) -> None:
  """Writes a PNG of the 256 colours that pages are drawn with: a third of the size of all."""
  memory = io.BytesIO()
  figure.savefig(memory, format='png')
  few = Image.new('P', (1, 1))
  few.putpalette(palette())
  picture = Image.open(memory).convert('RGB').quantize(palette=few, dither=Image.Dither.NONE)
  picture.save(path, optimize=True)


def palette() -> list[int]:
  """Red, green and blue of 256 colours: those in use, and for smooth edges their way to paper."""
  on_paper = lambda colour, share: 1 - share * (1 - np.array(to_rgb(colour)))
  colours = [(1, 1, 1), on_paper(GREY, SHADE), *map(to_rgb, (*COLOURS, PALE))]
  colours += [MAP(x)[:3] for x in np.linspace(0, 1, 104)]
  colours += [SIGNED(x)[:3] for x in np.linspace(0, 1, 57)]
  colours += sorted({head_colour(h, H)[:3] for H in range(1, 9) for h in range(H)})
  colours += [on_paper(HEADS(x), share) for x in np.linspace(0, 1, 8) for share in (0.35, 0.65)]
  colours += [on_paper(INK, share) for share in np.linspace(0.1, 1, 13)]
  colours += [on_paper(GREY, share) for share in np.linspace(0.15, 1, 11)]
  colours += [on_paper(colour, share) for colour in (*COLOURS, PALE) for share in (0.25, 0.5, 0.75)]
  colours += [(0, 0, 0)] * (256 - len(colours))
  return np.rint(255 * np.array(colours)).astype(int).ravel().tolist()


def some(count: int, most: int) -> list[int]:
  """At most so many of `count` indices, evenly spread, with the first and the last."""
  return sorted({round(n) for n in np.linspace(0, count - 1, min(count, most))})
