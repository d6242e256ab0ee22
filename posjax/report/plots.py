"""The pictures of an evaluation, and of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posjax.report.drawing import COLOURS, GREY, frame, label_ends, look, mark_trained


def plot_lengths(results: Mapping[str, Any]) -> Figure:
  """Loss at each length, one line per recipe, on the same targets; bars are the intervals."""
  figure, axes = frame('Loss by context length', 'context length (tokens)', 'nats per token')
  mark_trained(axes, results['trained_length'], results['lengths'])
  estimators = ('sliding', 'non-overlapping') if len(results['recipes']) == 1 else ('sliding',)
  for n, estimator in enumerate(estimators):
    for i, recipe in enumerate(results['recipes']):
      rows = [r for r in results['rows'] if r['recipe'] == recipe and r['estimator'] == estimator]
      if rows:
        name = until(recipe, rows[-1]['length'], results['lengths'])
        name = name if len(estimators) == 1 else f'{estimator}\nwindows'
        draw_bars(axes, rows, 'length', 'loss', label=name, **look(i + n))
  return label_ends(figure, axes)


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
  for i, recipe in enumerate(results['recipes']):
    gains = [g for g in results['gains'] if g['recipe'] == recipe]
    if gains:
      draw_bars(axes, start + gains, 'length', 'mean', label=recipe, **look(i))
  # A recipe that breaks loses a hundred times what others gain, and may leave the frame below.
  if any(g['mean'] > 0 for g in results['gains']):
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom=max(bottom, -2 * max(top, 0.02)))
  return label_ends(figure, axes)


def plot_positions(results: Mapping[str, Any]) -> Figure:
  """Loss by tokens of context, in windows of the longest length; bands are the intervals."""
  trained = results['trained_length']
  figure, axes = frame('Loss by position in the context', 'tokens of context', 'nats per token')
  mark_trained(axes, trained, position_ticks(trained, results['lengths']))
  for curve in results['positions']:
    i = results['recipes'].index(curve['recipe'])
    name = until(curve['recipe'], curve['length'], results['lengths'])
    shown = visible(curve['bins'], trained)
    draw_band(axes, shown, among=len(results['positions']), label=name, **look(i))
  return label_ends(figure, axes)


def plot_distances(results: Mapping[str, Any]) -> Figure | None:
  """Loss by tokens back to where the text last said the same, in windows of the longest length, and
  at the end that of targets which repeat nothing; bars are the intervals. None without repeats.
  """
  if not any(curve['bins'] for curve in results['distances']):
    return None
  figure, axes = frame(
    f'Loss by distance of what is repeated ({results["repeat"]} tokens and the target)',
    'tokens back to the last time', 'nats per token',
  )  # fmt: skip
  farthest = max(b['distance'] for curve in results['distances'] for b in curve['bins'])
  ticks = [n for n in (1, 4, 16, 64, *results['lengths']) if n <= farthest]
  mark_trained(axes, results['trained_length'], ticks)
  new = 4 * farthest  # a place of its own, behind the distances
  axes.set_xticks([*axes.get_xticks(), new], [*axes.get_xticklabels(), 'never\n '])
  for curve in results['distances']:
    i = results['recipes'].index(curve['recipe'])
    if curve['new'] is not None:
      draw_bars(axes, [{'distance': new, **curve['new']}], 'distance', 'mean', **look(i))
    name = until(curve['recipe'], curve['length'], results['lengths'])
    if curve['bins']:
      draw_bars(axes, curve['bins'], 'distance', 'mean', label=name, **look(i))
  return label_ends(figure, axes)


def plot_sweep(results: Mapping[str, Any]) -> Figure | None:
  """Loss at the longest length against the factor, one line per method and its other settings;
  None where no method has several factors."""
  longest, lines = results['lengths'][-1], {}
  rows = [r for r in results['rows'] if (r['length'], r['estimator']) == (longest, 'sliding')]
  for row in rows:
    if row['factor'] is not None:
      words = [word for word in row['recipe'].split() if not word.startswith('factor=')]
      lines.setdefault(' '.join(words), []).append(row)
  lines = {name: line for name, line in lines.items() if len(line) > 1}
  if not lines:
    return None
  figure, axes = frame(
    f'Loss at {longest:,} tokens by the factor of the extension', 'factor', 'nats per token'
  )
  ticks = [2**n for n in range(6) if any(row['factor'] >= 2**n for row in rows if row['factor'])]
  mark_trained(axes, longest / results['trained_length'], ticks, 'asked for')
  for i, (name, line) in enumerate(lines.items()):
    line = sorted(line, key=lambda row: row['factor'])
    draw_bars(axes, line, 'factor', 'loss', label=name, **look(i))
  return label_ends(figure, axes)


def best(results: Mapping[str, Any], most: int = 20) -> Mapping[str, Any]:
  """The results with no more recipes than a picture can hold: the first, and the best at the
  longest length."""
  if len(results['recipes']) <= most:
    return results
  last = [
    r
    for r in results['rows']
    if (r['length'], r['estimator']) == (results['lengths'][-1], 'sliding')
  ]
  names = [r['recipe'] for r in sorted(last, key=lambda r: r['loss'])]
  kept = {results['recipes'][0], *names[: most - 1]}
  return {
    **results,
    'recipes': [name for name in results['recipes'] if name in kept],
    **{
      key: [row for row in results[key] if row['recipe'] in kept]
      for key in ('rows', 'positions', 'distances', 'gains')
    },
  }


PLOTS = {
  'lengths': lambda results: plot_lengths(best(results)) if len(results['lengths']) > 1 else None,
  'sweep': plot_sweep,
  'positions': lambda results: plot_positions(best(results)),
  'distances': lambda results: plot_distances(best(results)),
  'gains': lambda results: plot_gains(best(results)),
}


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
  return label_ends(figure, axes)


def draw_bars(axes: Any, rows: Sequence[Mapping], x: str, y: str, **style: Any) -> None:
  """Draws a line through the rows, with their `low` to `high` as bars."""
  x_P, y_P, low_P, high_P = columns(rows, x, y, 'low', 'high')
  axes.plot(x_P, y_P, **style)
  axes.vlines(x_P, low_P, high_P, color=style['color'], linewidth=1, alpha=0.6)


def draw_band(
  axes: Any, bins: Sequence[Mapping], *, label: str, among: int = 1, **style: Any
) -> None:
  """Draws a line through the bins of posjax.evaluation.position, `low` to `high` as a band.

  among: how many bands the picture has; many on top of each other would hide the lines.
  """
  above_P, context_P, mean_P, low_P, high_P = columns(
    bins, 'above', 'context', 'mean', 'low', 'high'
  )
  x_P = np.sqrt(context_P * (above_P + 1))  # the middle on a log axis
  alpha = min(0.12, 0.6 / among)
  axes.fill_between(x_P, low_P, high_P, color=style['color'], alpha=alpha, linewidth=0)
  axes.plot(x_P, mean_P, label=label, **style | {'marker': ''})


def until(name: str, length: int, lengths: Sequence[int]) -> str:
  """What a picture calls a line that ends at `length`: where, if others go on."""
  return name if length == lengths[-1] else f'{name}, to {length:,}'


def columns(rows: Sequence[Mapping], *keys: str) -> tuple[np.ndarray, ...]:
  """The rows' values by key, None as not a number."""
  return tuple(np.array([row[key] for row in rows], float) for key in keys)


def visible(bins: Sequence[Mapping], trained_length: int) -> list[Mapping]:
  """The bins a picture shows: the first tokens of a window lose several nats in any model and would
  flatten the rest."""
  return [b for b in bins if b['above'] >= trained_length / 16]


def position_ticks(trained_length: int, lengths: Sequence[int]) -> list[int]:
  """Ticks of an axis of context: the lengths, the trained one, and two below it."""
  below = {n for n in (trained_length // 8, trained_length // 2) if n}
  return sorted(below | {trained_length, *lengths})
