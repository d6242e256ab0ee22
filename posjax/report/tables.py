"""An evaluation of text as text: the lines of its table, and what a reader must know of them."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
  return said + refusals((r['recipe'], r['length'], r['reason']) for r in results['refused'])


def refusals(refused: Iterable[tuple[str, int, str]]) -> list[str]:
  """Returns a sentence for each name and reason of (name, length, reason): where it was refused."""
  where = {}
  for name, length, reason in refused:
    where.setdefault((name, reason), []).append(f'{length:,}')
  return [
    f'{name} is refused at {", ".join(lengths)}: {reason}'
    for (name, reason), lengths in where.items()
  ]


def aligned(
  title: str, header: Sequence[str], lines: Sequence[Sequence[str]], notes: Iterable[str]
) -> str:
  """Returns a table for a terminal of 100 columns. The column 'recipe' is set to the left; an empty
  line parts lines that begin differently, if some begin alike."""
  lines = [header, *lines]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  several = len({line[0] for line in lines[1:]}) < len(lines) - 1
  text, begins = [title, ''], header[0]
  for line in lines:
    if line[0] != begins and (several or begins == header[0]):
      text.append('')
    begins = line[0]
    text.append(
      '  '.join(
        cell.ljust(width) if name == 'recipe' else cell.rjust(width)
        for name, cell, width in zip(header, line, widths, strict=True)
      ).rstrip()
    )
  return '\n'.join([*text, '', *(textwrap.fill(note, 100) for note in notes), ''])
