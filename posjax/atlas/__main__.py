"""Draws position schemes: attention weights, kernels over distance, spectra, inputs, extensions.

  python -m posjax.atlas                                          # every scheme, to docs/atlas
  python -m posjax.atlas --schemes=rope,alibi --length=256 --out=/tmp/atlas
  python -m posjax.atlas --workdir=runs/quickstart                # what a run has learned

Writes one PNG per scheme, an overview, and README.md, which shows them.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib

from posjax import cli, positions
from posjax.atlas import drawing, measure, pictures, trained
from posjax.atlas.portrait import Portrait, portray, recipes_of
from posjax.config import load
from posjax.positions import Dims, Scheme


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m posjax.atlas', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--out', help='folder of the pictures; docs/atlas, or atlas in the workdir')
  parser.add_argument('--schemes', help='names, with commas between them; all by default')
  parser.add_argument('--length', type=int, help='tokens a scheme is trained on; 128 by default')
  parser.add_argument('--workdir', help='a run that train.py made, in place of fresh schemes')
  flags = parser.parse_args(words)
  if flags.workdir and (flags.schemes or flags.length):
    raise ValueError('A run has one scheme and one length. Leave out --schemes and --length.')
  length = 128 if flags.length is None else flags.length
  if length < 2:
    raise ValueError(f'--length={length} leaves no distance to draw. Use at least 2 tokens.')
  cli.cache_compilations()
  command = shlex.join(['python', '-m', 'posjax.atlas', *words])
  with matplotlib.rc_context(drawing.STYLE):
    if flags.workdir:
      out = Path(flags.out or Path(flags.workdir) / 'atlas').expanduser()
      draw_run(flags.workdir, out, command)
    else:
      names = flags.schemes.split(',') if flags.schemes else positions.names()
      draw_schemes(names, length, Path(flags.out or 'docs/atlas').expanduser(), command)


# --- fresh schemes --------------------------------------------------------------------------------


def draw_schemes(names: Sequence[str], length: int, out: Path, command: str) -> None:
  """A page for each scheme as initialised, in a model of the sizes in configs/base.py."""
  model = load('configs/base.py').model
  dims = Dims(
    width=model.width,
    heads=model.heads,
    kv_heads=model.heads,
    head_width=model.head_width,
    length=length,
  )
  schemes = {name: positions.make(name) for name in names}
  schemes = dict(sorted(schemes.items(), key=lambda item: place(item[1])))
  sizes = f'{dims.heads} heads of {dims.head_width}, trained length {length:,}'
  portraits = []
  for name, scheme in schemes.items():
    params, spectrum = scheme.parameters(jax.random.key(0), dims), scheme.spectrum(dims)
    fresh = ['as initialised'] if jax.tree.leaves(params) else []
    setting = [*settings(scheme), sizes, *fresh]
    recipes, further = recipes_of(spectrum, length), measure.extended(spectrum, length, 4, 8)
    portraits.append(
      portray(name, scheme, params, recipes, further, dims, length, ', '.join(setting))
    )
    draw(out / f'{name}.png', pictures.page(portraits[-1]))
  draw(out / 'overview.png', pictures.overview(portraits, f'{sizes}, as initialised'))
  entries = [describe(portrait, schemes[portrait.name], dims) for portrait in portraits]
  write_index(out, INDEX.format(command=command, length=length, entries='\n'.join(entries)))


def place(scheme: Scheme) -> list[int]:
  """Sorts schemes by where they act."""
  return [list(measure.WORDS.values()).index(word) for word in measure.acts_on(scheme)]


def settings(scheme: Scheme) -> list[str]:
  """Hyperparameters in words: ['theta 10,000']."""
  values = {field.name: getattr(scheme, field.name) for field in dataclasses.fields(scheme)}
  say = lambda value: f'{value:,g}' if type(value) in (int, float) else str(value)
  return [f'{name} {say(value)}' for name, value in values.items() if value is not None]


def describe(portrait: Portrait, scheme: Scheme, dims: Dims) -> str:
  """A scheme's entry in the index."""
  content = ', by content' if 'content' in portrait.acts else ''
  acts = listed([word for word in portrait.acts if word != 'content']) or 'nothing'
  methods = measure.stretching(scheme.spectrum(dims))
  extends = f'stretched by {listed(methods)}' if methods else 'nothing stretches it'
  return ENTRY.format(
    name=portrait.name,
    about=portrait.about,
    facts=f'Acts on {acts}{content}; {learned_by(scheme, dims)}; {extends}.',
  )


def learned_by(scheme: Scheme, dims: Dims) -> str:
  """How many numbers a scheme learns, in words."""

  def count(init):
    shapes = jax.eval_shape(lambda key: init(key, dims), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))

  shared, own = count(scheme.init), count(scheme.init_layer)
  said = [f'{shared:,} learned numbers'] if shared else []
  said += [f'{own:,} learned numbers in each layer'] if own else []
  return listed(said) or 'nothing learned'


def listed(names: Sequence[str]) -> str:
  """'', 'a', 'a and b', 'a, b and c'."""
  return ' and '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)


# --- a run ----------------------------------------------------------------------------------------


def draw_run(workdir: str, out: Path, command: str) -> None:
  """Attention on text, and the scheme's page with what was learned."""
  run = trained.load(workdir)
  attention = trained.attention(run)
  draw(out / 'attention.png', pictures.attention(attention))
  entries = []
  for layer, portrait in enumerate(pages := trained.portraits(run)):
    file = f'position-{layer + 1}.png' if len(pages) > 1 else 'position.png'
    draw(out / file, pictures.page(portrait))
    entries.append(f'![{portrait.setting}: {portrait.about}]({file})\n')
  text = RUN.format(
    name=run.name, command=command, beyond=beyond(attention), entries='\n'.join(entries)
  )
  write_index(out, text)


def beyond(attention: trained.Attention) -> str:
  """Per recipe the weight on keys farther off than training has met, as Markdown lines."""
  said = []
  for recipe, weight_NHR in attention.over_distance.items():
    if weight_NHR.shape[-1] > attention.length:
      share_N = measure.share_beyond(weight_NHR, attention.length).mean(-1)
      said.append(f'- {recipe}: {", ".join(f"{share:.1%}" for share in share_N)}\n')
  if not said:
    return ''
  return BEYOND.format(length=attention.length, lines=''.join(said))


# --- files ----------------------------------------------------------------------------------------


def draw(path: Path, figure) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  drawing.save(figure, path)
  print(path)


def write_index(out: Path, text: str) -> None:
  (out / 'README.md').write_text(text)
  print(f'Atlas: {out / "README.md"}')


HOW_TO_READ = """
- **Attention weight**: queries down, keys across, on a logarithmic scale.
- **Kernel**: how far the logit of a key lies above that of the query's own, in nats, over their
  distance in tokens; the mean over queries.
- **Spectrum**: the tokens in which each wave turns once, or in which a head's slope costs one nat.
  What lies in the shade never comes round within the trained length.
- **Added to the input**: what tokens without content become. Red is positive, blue negative.
- **Extended**: the same after each extension that applies, out to four trained lengths; pale, the
  kernel without it.
"""

INDEX = (
  """# Atlas of position schemes

```
{command}
```

Each picture is computed from the scheme's own hooks, on a probe in which nothing speaks but
position: all queries and keys are ones, or, where the scheme acts on the input, what it adds there,
cut into heads. Gates are given noise to read, and keys are noise where only content tells them
apart. The trained length is {length} tokens.
Learned parameters are as initialised, so a scheme that learns everything shows little; the command
with `--workdir=DIR` draws what a run has made of it.
"""
  + HOW_TO_READ
  + """
![All schemes: attention weights beside kernels over distance](overview.png)

{entries}"""
)

ENTRY = """## {name}

{about} {facts}

![{name}: attention weights, kernel, spectrum and extensions]({name}.png)
"""

RUN = (
  """# Atlas of {name}

```
{command}
```

What the checkpoint attends to on validation text, and on the probe of position alone.
"""
  + HOW_TO_READ
  + """- **Mean weight over distance**: over all queries with a key so far back. The broad line is
  attention to all keys alike.

![Attention of each layer and head, and its weight over distance](attention.png)
{beyond}
{entries}"""
)

BEYOND = """
Of the weight of queries past {length:,} tokens, what goes {length:,} tokens back or more, farther
than training has met; by layer, mean of heads:

{lines}"""


if __name__ == '__main__':
  cli.run(main)
