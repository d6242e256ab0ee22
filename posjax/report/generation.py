"""What a model wrote: how fast, in how much memory, and the texts themselves."""

from collections.abc import Mapping
from typing import Any

from posjax.report.tables import refusals

HEADER = ('recipe', 'rows', 'read tokens/s', 'written tokens/s', 'cache MiB')
PLOTS: dict[str, Any] = {}


def cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
  """Returns the lines of the table under HEADER, as text: one per recipe."""
  rows = len({one['prompt'] for one in results['texts']})
  return [
    (
      speed['recipe'],
      str(rows),
      f'{speed["read"]:,.0f}',
      '' if speed['write'] is None else f'{speed["write"]:,.0f}',
      f'{speed["cache"] / 2**20:,.2f}',
    )
    for speed in results['speeds']
  ]


def notes(results: Mapping[str, Any]) -> list[str]:
  """Returns how the texts came about, the texts, and why recipes were refused."""
  how = ', '.join(f'{key} {value}' for key, value in results['sampler'].items())
  said = [
    f'Up to {results["new"]} tokens after each prompt ({how}). Speeds are of all rows together, '
    'after compilation; the cache is theirs.'
  ]
  said += [f'{one["recipe"]}: {one["prompt"]} | {one["text"]}' for one in results['texts']]
  return said + refusals((r['recipe'], r['length'], r['reason']) for r in results['refused'])
