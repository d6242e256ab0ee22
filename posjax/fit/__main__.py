"""Fits an extension to a run's checkpoint, whose weights stay as they are.

  python -m posjax.fit --workdir=runs/quickstart --factor=8 --method=gradient
  python eval.py --workdir=runs/quickstart --eval=configs/eval/fitted.py

Reads windows of factor x trained length from the run's training texts. What is found goes to
<workdir>/fits/<method>.json, and is there for evaluations as the extension 'fitted'.
"""

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from posjax import cli, data
from posjax.decoder import check_length
from posjax.evaluation import choose
from posjax.evaluation.windows import batches
from posjax.extension import Spectrum, each
from posjax.fit import METHODS, Budget, save
from posjax.fit.budget import fits, waves
from posjax.loading import Loaded, load
from posjax.loss import token_losses


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m posjax.fit', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--workdir', required=True, help='directory of a run that train.py made')
  parser.add_argument('--checkpoint', help='hf:DIR to fit, or another run; the fit goes to workdir')
  parser.add_argument('--factor', type=float, required=True, help='how many times longer texts get')
  parser.add_argument('--method', required=True, choices=METHODS, help='how to look')
  parser.add_argument('--windows', type=int, default=8, help='texts to fit to, one window each; 8')
  parser.add_argument('--passes', type=int, default=600, help='windows that may be read; 600')
  parser.add_argument('--seed', type=int, default=0, help='of what is drawn at random')
  flags = parser.parse_args(words)
  if not flags.factor > 1:
    raise ValueError(f'--factor={flags.factor} makes no text longer. Use one above 1.')
  cli.cache_compilations()
  loaded = load(flags.workdir, flags.checkpoint)
  budget = make_budget(loaded, flags.factor, windows=flags.windows, passes=flags.passes)
  for name in ('linear', 'ntk', 'yarn'):  # to compare with: not part of the search
    print(f'{name:10} {budget.look({"name": name}):.4f} nats')
  found = METHODS[flags.method](budget, flags.seed)
  print(f'{flags.method:10} {found.loss:.4f} nats after {found.passes} windows')
  print(f'Fitted: {save(loaded.workdir, flags.method, found, budget)}')


def make_budget(loaded: Loaded, factor: float, *, windows: int, passes: int) -> Budget:
  """What a fit of this run may read: the beginnings of training texts that are long enough, evenly
  spaced among them."""
  config, model = loaded.config, loaded.model
  if windows < 1:
    raise ValueError(f'--windows={windows} leaves nothing to fit to. Use 1 or more; 8 is usual.')
  if config.extension.name != 'none':
    raise ValueError(
      f"The run was trained with extension '{config.extension.name}', whose waves are no longer "
      "the scheme's own. Fit the run it started from."
    )
  if config.sampling.name != 'none':
    raise ValueError(
      f"The run was trained with sampling '{config.sampling.name}', so that no length is new to "
      'it. Fit a run that was trained without.'
    )
  if config.data.name.startswith('task:'):
    raise ValueError(
      f"The run was trained on '{config.data.name}', whose examples have no long texts to fit to. "
      'Fit a run that was trained on text.'
    )
  # Windows are long. With weights frozen, a second forward pass costs what their slopes would have.
  model = model.clone(remat='block')
  spectrum = model.spectrum()
  waves(spectrum)
  length = round(factor * config.train.length)
  check_length(model, spectrum, length)
  documents = data.load(config.data, config.data.split, loaded.tokenizer)
  token_DT, _ = choose(documents, targets=length, tokens=windows * length)
  rows = list(batches(token_DT[:windows], [0], length, 1))

  def mean(spectrum, batch):
    return token_losses(
      model, loaded.params, spectrum, batch, chunk=config.train.loss_chunk
    )[0].mean()

  def fitted(log_divisor_F, log_temperature, batch):
    def change(one: Spectrum) -> Spectrum:
      if not fits(one):
        return one
      return one.rescaled(jnp.exp(log_divisor_F), jnp.exp(log_temperature))

    return mean(each(change, jax.tree.map(jnp.float32, spectrum)), batch)

  loss = jax.jit(mean)
  slope = jax.jit(jax.value_and_grad(fitted, argnums=(0, 1)))
  return Budget(
    spectrum=spectrum,
    factor=factor,
    trained_length=config.train.length,
    length=length,
    loss=lambda spectrum, n: loss(jax.tree.map(jnp.float32, spectrum), rows[n]),
    slope=lambda divisors, temperature, n: slope(divisors, temperature, rows[n]),
    windows=len(rows),
    passes=passes,
  )


if __name__ == '__main__':
  cli.run(main)
