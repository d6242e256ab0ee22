"""Pages: HTML files that need nothing but themselves."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
         max-width: {width}; margin: 0 auto; padding: 1.5rem 1rem 4rem; }}
  h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 1.5rem; }}
  h2 {{ font-size: 1.2rem; margin: 2.5rem 0 .75rem; }}
  .wide {{ overflow-x: auto; }}
  table {{ border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums;
          width: 100%; }}
  th, td {{ padding: .25rem .5rem; text-align: right; white-space: nowrap; }}
  th {{ font-weight: 600; border-bottom: 1px solid var(--soft); }}
  th.text, td.text {{ text-align: left; }}
  tr.new td {{ border-top: 1px solid var(--line); }}
  td.best {{ font-weight: 600; background: var(--best); }}
  p, li, dl {{ font-size: .875rem; }}
  .notes {{ color: var(--soft); padding-left: 1.1rem; }}
  svg {{ display: block; width: 100%; max-width: 44rem; height: auto; margin: 1.5rem auto; }}
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


def page(title: str, evaluations: Sequence[tuple], pictures: Mapping, config: Any) -> str:
  """The page of a run: per evaluation its table, pictures and facts, then training and config.

  evaluations: pairs of results and their words: header, lines and notes.
  """
  parts = []
  for evaluation, (header, lines, notes) in evaluations:
    facts = {**evaluation['facts'], 'seconds': f'{evaluation["seconds"]:.1f}, evaluation alone'}
    parts += [
      f'<h2>Evaluation: {html.escape(evaluation["name"])}</h2>',
      html_table(header, lines, text='recipe'),
      html_notes(notes),
      *(svg for key, svg in pictures.items() if key[0] == evaluation['name']),
      html_facts(facts),
    ]
  if 'training' in pictures:
    parts += ['<h2>Training</h2>', pictures['training']]
  return document(title, [*parts, fold('Config', config)])


def document(title: str, parts: Sequence[str], width: str = '46rem') -> str:
  """A whole page of parts in HTML."""
  return PAGE.format(title=html.escape(title), body='\n'.join(parts), width=width)


def html_table(header: Sequence[str], lines: Iterable[Sequence[str]], *, text: str) -> str:
  """A table; the column named `text` is set to the left. A rule parts lines that begin differently.
  A star before a cell marks it as best; two on both sides do so in Markdown, and are not shown."""
  column = list(header).index(text)

  def cell(tag: str, i: int, value: str) -> str:
    kind = 'text' if i == column else 'best' if value.startswith('*') else ''
    shown = html.escape(value.replace('**', ''))
    return f'<{tag} class="{kind}">{shown}</{tag}>'.replace(' class=""', '')

  rows, begins = [], None
  for line in lines:
    tag, begins = ('<tr class="new">' if line[0] != begins else '<tr>'), line[0]
    rows.append(tag + ''.join(cell('td', i, value) for i, value in enumerate(line)))
  head = ''.join(cell('th', i, name) for i, name in enumerate(header))
  return '\n'.join(['<div class="wide"><table>', f'<tr>{head}', *rows, '</table></div>'])


def html_notes(notes: Iterable[str]) -> str:
  """Notes below a table."""
  items = ''.join(f'<li>{html.escape(note)}</li>\n' for note in notes)
  return f'<ul class="notes">\n{items}</ul>'


def html_facts(facts: Mapping[str, Any]) -> str:
  """Facts, one a line."""
  items = (f'<dt>{html.escape(k)}</dt><dd>{html.escape(say(v))}</dd>\n' for k, v in facts.items())
  return f'<dl>\n{"".join(items)}</dl>'


def fold(title: str, data: Any) -> str:
  """Data as JSON that opens at a click."""
  text = json.dumps(data, indent=2, default=lambda x: x.to_dict())
  summary = f'<summary>{html.escape(title)}</summary>'
  return f'<details>{summary}<pre>{html.escape(text)}</pre></details>'


def say(value: Any) -> str:
  """A fact as a person writes it: {'jax': '0.10', 'numpy': '2'} is 'jax 0.10, numpy 2'."""
  if isinstance(value, Mapping):
    return ', '.join(f'{key} {say(part)}' for key, part in value.items())
  return str(value)
