"""Extends one checkpoint by every method: without training, and after 5 % of its steps.

  python -m benchmarks.extend --run=runs/quickstart --workdir=runs/extend
  python -m benchmarks.extend --run=runs/passkey --workdir=runs/extend-passkey

The run's own checkpoint is read with each method at one factor, and at lengths up to four times the
one that the factor makes: so the table shows what a method costs within the trained length, and
what it is worth beyond, in the loss of text or in right answers to a task. Then each method trains
on, with as many tokens a step as the run had, on rows `factor` times longer; DroPE recalibrates on
rows as they were. Two pictures and a table go to the workdir. The same command goes on where it was
stopped.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from ml_collections import ConfigDict

import eval as evaluation
import train
from benchmarks import measure
from posjax import cli, data, run
from posjax.config import flatten, load
from posjax.evaluation import label
from posjax.report.drawing import save, styled
from posjax.report.plots import plot_lengths
from posjax.report.tasks import called, plot_grid, plot_sizes

# Settings of each method beside the factor; `length`: of the rows it trains on, where not longer.
METHODS = {
  'none': {},
  'linear': {},
  'ntk': {},
  'by_parts': {},
  'yarn': {},
  'rebase': {'theta': 500_000.0},  # the base of Llama 3's
  'drop': {},
}
SAME_LENGTH = ('drop',)
SHARE = 0.05  # of the run's steps
RATE = 0.3  # of its learning rate
CONFIG = 'configs/extend_yarn.py'
EVALUATIONS = {'text': 'configs/eval/extend.py', 'task': 'configs/eval/passkey.py'}


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--run', required=True, help='directory of a run that rotates')
  parser.add_argument('--workdir', required=True, help='where runs, pictures and the table go')
  parser.add_argument('--factor', type=int, default=8, help='of every method; 8 unless told')
  parser.add_argument('--tokens', type=int, default=32768, help='targets of every length')
  parser.add_argument('--methods', default=','.join(METHODS), metavar='NAME,NAME')
  flags = parser.parse_args(words)
  names = flags.methods.split(',')
  for name in names:
    if name not in METHODS:
      raise ValueError(f"No method '{name}' is compared. There are: {', '.join(METHODS)}.")
  if flags.factor < 2:
    raise ValueError(f'--factor={flags.factor} makes no text longer. Use 2 or more.')
  cli.cache_compilations()
  workdir, began = Path(flags.workdir).expanduser(), time.monotonic()
  source = run.load_config(flags.run)
  lengths = [source.train.length * 2**n for n in range((4 * flags.factor).bit_length())]
  before = zero_shot(Path(flags.run), source, names, lengths, flags)
  after = {name: trained_on(name, source, workdir, lengths, flags) for name in names}
  seconds = time.monotonic() - began
  print(write(workdir, source, before, together(after), seconds))


def recipe_of(name: str, source: ConfigDict, factor: int) -> dict:
  """The extension, complete."""
  if name == 'none':
    return {'name': 'none'}
  recipe = {'name': name, 'label': name, **METHODS[name]}
  if name == 'rebase':
    return recipe | {'trained_theta': source.position.theta}
  return recipe if name == 'drop' else recipe | {'factor': float(factor)}


def kind_of(source: ConfigDict) -> str:
  return 'task' if source.data.name.startswith('task:') else 'text'


def settings_of(
  kind: str, name: str, lengths: Sequence[int], unit: int, recipes, tokens: int
) -> ConfigDict:
  settings = load(EVALUATIONS[kind], [], flag='eval', base='configs/eval/base.py')
  settings.name, settings.tokens, settings.trained = name, tokens, False
  settings.multiples = tuple(length / unit for length in lengths)
  settings.recipes = tuple(recipes)
  return settings


def zero_shot(folder: Path, source: ConfigDict, names, lengths, flags) -> dict:
  """The evaluation of the run's own checkpoint under every method."""
  recipes = [recipe_of(name, source, flags.factor) for name in names]
  name = f'zero-shot-{flags.factor}-{flags.tokens}'
  kind, unit = kind_of(source), source.train.length
  settings = settings_of(kind, name, lengths, unit, recipes, flags.tokens)
  return evaluated(folder, settings)


def trained_on(name: str, source: ConfigDict, workdir: Path, lengths, flags) -> dict:
  """The evaluation of the run after training on with the method."""
  folder = workdir / 'runs' / name
  stretch = 1 if name in SAME_LENGTH else flags.factor
  recipe = recipe_of(name, source, flags.factor)
  steps = max(2, round(SHARE * source.train.steps))
  words = {
    'init_from': flags.run,
    'eval': None,
    'train.length': source.train.length * stretch,
    'train.batch': max(1, source.train.batch // stretch),
    'train.steps': steps,
    'train.warmup': max(1, steps // 10),
    'train.learning_rate': source.train.learning_rate * RATE,
    'checkpoint.every': steps,
    'extension.factor': 1.0,
    **{f'extension.{key}': value for key, value in recipe.items() if key != 'label'},
    **{f'model.{key}': value for key, value in flatten(source.model).items()},
    **{f'position.{key}': value for key, value in flatten(source.position).items()},
    **{f'data.{key}': value for key, value in flatten(source.data).items() if value is not None},
  }
  if kind_of(source) == 'task':  # else it would be what the longer rows hold
    words['data.size'] = stretch * trained_size(source)
  train.main([
    f'--config={CONFIG}', f'--workdir={folder}',
    *(f'--config.{key}={value}' for key, value in words.items()),
  ])  # fmt: skip
  unit = source.train.length * stretch
  name, recipes = f'after-{flags.tokens}', [{'name': 'none'}]
  settings = settings_of(kind_of(source), name, lengths, unit, recipes, flags.tokens)
  return evaluated(folder, settings)


def trained_size(source: ConfigDict) -> int:
  """The largest examples of its task that a run learned from."""
  examples = data.load(source.data, 'train', data.make_tokenizer(source.data.tokenizer))
  return examples.largest(source.train.length)


def evaluated(folder: Path, settings: ConfigDict) -> dict:
  """What was measured before with these settings, or is now. Their name says the factor and the
  tokens, which what was measured does not."""
  path = folder / 'evaluation' / f'{settings.name}.json'
  if path.exists():
    stored = json.loads(path.read_text())
    if stored['recipes'] == [label(dict(recipe)) for recipe in settings.recipes]:
      return stored
  return evaluation.evaluate_run(folder, settings)


def together(after: dict[str, dict]) -> dict:
  """One evaluation of them all, each under its method's name."""
  first = next(iter(after.values()))
  named = {
    key: [row | {'recipe': name} for name, results in after.items() for row in results[key]]
    for key in ('rows', 'grid', 'refused')
    if key in first
  }
  return first | named | {'recipes': list(after)}


def write(workdir: Path, source: ConfigDict, before: dict, after: dict, seconds: float) -> str:
  """Draws both, and returns the table as Markdown."""
  parts = {'Without training': before, 'After 5 % more steps': after}
  with styled():
    for (title, results), name in zip(parts.items(), ('before', 'after'), strict=True):
      save(draw(title, source, results), workdir / f'{name}.png')
  lines = []
  for title, results in parts.items():
    by = {
      (r['recipe'], r['length']): r['exact' if 'task' in results else 'loss']
      for r in results['rows']
      if r.get('estimator', 'sliding') == 'sliding'
    }
    cell = lambda name, n, by=by: f'{by[name, n]:.3f}' if (name, n) in by else 'refused'
    lines += [
      f'| {title} | ' + ' | '.join(f'{n:,}' for n in results['lengths']) + ' |',
      '|---' * (len(results['lengths']) + 1) + '|',
      *(
        f'| `{name}` | ' + ' | '.join(cell(name, n) for n in results['lengths']) + ' |'
        for name in results['recipes']
      ),
      '',
    ]
  where = measure.where()
  facts = f'{seconds:.0f} s in this call; {json.dumps(where)}'
  text = '\n'.join([*lines, facts, ''])
  (workdir / 'table.md').write_text(text)
  return text


def draw(title: str, source: ConfigDict, results: dict) -> Figure:
  if 'task' not in results:
    figure = plot_lengths(results | {'trained_length': source.train.length})
    figure.axes[0].set_title(f'{title}: loss by context length')
    return figure
  named = {'task': f'{title}: {called(results)}', 'trained_size': trained_size(source)}
  return plot_grid(results | named) or plot_sizes(results | named)


if __name__ == '__main__':
  cli.run(main)
