"""Trains the experiment of a config, then evaluates it and writes its report.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart
  python train.py --config=configs/rope.py:smoke --workdir=/tmp/smoke --config.train.steps=20
  python train.py --config=configs/rope.py --dry_run

Called again with the same --workdir it resumes, exactly. On several hosts start it once on each.
"""

import argparse
import bisect
import collections
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from eval import evaluate_run
from posjax import cli, cost, data, interop, loading, phases, sampling, sharding
from posjax.checkpoint import Checkpoints
from posjax.config import difference, flatten, load
from posjax.decoder import Decoder, check_length, describe_attention
from posjax.experiment import as_trained, build, trained_length
from posjax.extension import Spectrum
from posjax.meter import Meter, finite
from posjax.metrics import Metrics
from posjax.run import Run, Stop, check_continues, load_config
from posjax.training import State, init_state, make_optimizer, make_step


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument('--config', required=True, metavar='FILE[:smoke]', help='an experiment')
  parser.add_argument('--workdir', help='run directory: checkpoints, metrics, tokenizer, report')
  parser.add_argument('--dry_run', action='store_true', help='say what would run, and run nothing')
  parser.add_argument('--coordinator', metavar='HOST:PORT', help='of process 0, with several hosts')
  parser.add_argument('--processes', type=int, help='how many, where the launcher does not say')
  parser.add_argument('--process', type=int, help='number of this one, from 0')
  parser.epilog = '--config.KEY=VALUE sets any key of configs/base.py: --config.train.steps=500'
  flags, overrides = parser.parse_known_args(words)
  if not flags.workdir and not flags.dry_run:
    raise ValueError('No run directory was given. Add --workdir=DIR, or --dry_run to run nothing.')

  began = time.monotonic()
  config = load(flags.config, overrides)
  sharding.start(flags.coordinator, flags.processes, flags.process)
  cli.cache_compilations()
  tokenizer = complete(config)
  jobs = plan(config)
  if flags.dry_run:
    describe(jobs)
    return

  documents = data.load(config.data, config.data.split, tokenizer)
  streams = read(jobs, documents)
  evaluation = load(config.eval, flag='eval', base='configs/eval/base.py') if config.eval else None
  with Run(flags.workdir, config) as run, Stop() as stop:
    if jax.process_index() == 0:
      tokenizer.save(run.workdir)
    stopped = train(jobs, documents, streams, run.workdir, stop, began)
  if stopped:
    print(f'Stopped. The same command resumes from {run.workdir}.')
  elif evaluation:
    evaluate_run(run.workdir, evaluation)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A phase's config and what follows from it, found to fit before a run directory holds it."""

  config: ConfigDict
  begin: int  # steps of the phases before
  model: Decoder
  spectrum: tuple[Spectrum, ...]  # of the pattern's layers, float32: an argument of the step
  like: State  # shapes, types and places of its arrays
  step: Callable  # jitted; donates the state it is given
  place: NamedSharding  # of a batch

  @property
  def end(self) -> int:
    return self.begin + self.config.train.steps


def complete(config: ConfigDict):
  """Fills in what the config leaves to the tokenizer and to `init_from`; returns the tokenizer."""
  if interop.is_foreign(config.init_from):
    return adopt(config)
  tokenizer = data.make_tokenizer(config.data.tokenizer)
  if config.model.vocabulary is None:
    config.model.vocabulary = tokenizer.vocabulary
  if tokenizer.vocabulary > config.model.vocabulary:
    raise ValueError(
      f'The tokenizer has {tokenizer.vocabulary} ids, the model {config.model.vocabulary}. '
      f'Set --config.model.vocabulary to {tokenizer.vocabulary} or more, or to None.'
    )
  if config.init_from is not None:
    source = phases.last(load_config(config.init_from))
    check_continues(source, config)
    if data.load_tokenizer(config.init_from).fingerprint != tokenizer.fingerprint:
      raise ValueError(
        f"The run '{config.init_from}' used another tokenizer than '{config.data.tokenizer}'. "
        f'Set --config.data.tokenizer={source.data.tokenizer}.'
      )
    if config.extension.trained_length is None:
      config.extension.trained_length = trained_length(source)
  return tokenizer


def adopt(config: ConfigDict):
  """Takes the model, its scheme and its tokenizer from the checkpoint of another library; what is
  not part of the model, and an extension, if there is one, stay as the config has them."""
  opened = interop.open_named(config.init_from)
  source = opened.config
  kept = {key: config.model[key] for key in ('dtype', 'remat', 'attention')}
  with config.ignore_type():
    config.model, config.position, config.layers = source.model, source.position, source.layers
    config.model.update(kept)
    if config.extension.name == 'none':
      config.extension = source.extension
    elif config.extension.trained_length is None:
      config.extension.trained_length = trained_length(source)
    config.data.tokenizer = source.data.tokenizer
  print(f'The model, its positions and its tokenizer are those of {config.init_from}.')
  return opened.tokenizer


def plan(config: ConfigDict) -> tuple[Job, ...]:
  """The job of each phase. Raises ValueError where one cannot run, or not after the others."""
  jobs = []
  for number, one in enumerate(phases.unroll(config), 1):
    try:
      job = prepare(one, begin=jobs[-1].end if jobs else 0)
      if jobs:
        phases.check_parameters(jobs[0].config, jobs[0].like.params, one, job.like.params)
    except ValueError as error:
      raise ValueError(f'Phase {number}: {error}' if config.phases else str(error)) from error
    jobs.append(job)
  return tuple(jobs)


def prepare(config: ConfigDict, begin: int = 0) -> Job:
  """Raises ValueError where the config contradicts itself, its scheme or the devices."""
  flat = flatten(config)
  for key in (
    'train.length', 'train.batch', 'train.accumulate', 'train.steps',
    'checkpoint.every', 'checkpoint.keep', 'log.every',
  ):  # fmt: skip
    if flat[key] is None or flat[key] < 1:
      raise ValueError(f'{key} = {flat[key]}. Set --config.{key} to a whole number >= 1.')
  mesh = sharding.make_mesh(config.mesh)
  model = build(config, mesh)
  spectrum = as_trained(model, config)
  # Refuses a form that cannot be.
  describe_attention(model, spectrum, config.train.length, packed=True)
  if config.sampling.name != 'none' and config.data.positions != 'context':
    raise ValueError(
      f"Sampling '{config.sampling.name}' renumbers positions below the row's length, but "
      f"data.positions = '{config.data.positions}' has others. Set --config.data.positions=context."
    )
  check_length(model, spectrum, sampling.make(**config.sampling).reach(config.train.length))
  rows = config.train.batch // config.train.accumulate
  if rows * config.train.accumulate != config.train.batch:
    raise ValueError(
      f'A batch of {config.train.batch} rows cannot be cut into {config.train.accumulate} equal '
      'parts. Make --config.train.batch a multiple of --config.train.accumulate.'
    )
  sharding.of_batch(mesh, rows)  # each part must fit the devices, too
  place = sharding.of_batch(mesh, config.train.batch)

  optimizer = make_optimizer(config.train, begin)
  shapes = jax.eval_shape(lambda key: init_state(model, optimizer, key), jax.random.key(0))
  places, whole = sharding.place(shapes, mesh), sharding.replicated(mesh)
  step = jax.jit(
    make_step(
      model,
      optimizer,
      config.train,
      sampler=sampling.make(**config.sampling),
      seed=config.seed,
    ),
    in_shardings=(places, whole, place),
    out_shardings=(places, whole),
    donate_argnums=0,
  )
  spectrum = jax.tree.map(jnp.float32, spectrum)
  return Job(
    config=config,
    begin=begin,
    model=model,
    spectrum=spectrum,
    like=sharding.like(shapes, mesh),
    step=step,
    place=place,
  )


def read(jobs: Sequence[Job], documents: data.Documents) -> list[data.Stream]:
  """This process's part of each phase's batches: one text, which the next phase goes on with."""
  streams = []
  for job in jobs:
    config = job.config
    host, hosts = sharding.host_share(job.place, config.train.batch)
    streams.append(
      data.Stream(
        documents,
        length=config.train.length,
        batch=config.train.batch,
        seed=config.seed,
        positions=config.data.positions,
        host=host,
        hosts=hosts,
        threads=config.data.threads,
        begin=streams[-1].end() if streams else (0, 0),
        steps=None if job is jobs[-1] else config.train.steps,
      )
    )
  return streams


def train(jobs: Sequence[Job], documents, streams, workdir: Path, stop: Stop, began: float) -> bool:
  """From the newest checkpoint, or from the start, to the last step, or until asked to stop."""
  config, like, total = jobs[0].config, jobs[0].like, jobs[-1].end
  keep, ends = config.checkpoint, [job.end for job in jobs]
  with Checkpoints(
    workdir / 'checkpoints', every=keep.every, keep=keep.keep, lasting=ends
  ) as checkpoints:
    if checkpoints.latest() is not None:
      done, params, rest, position = checkpoints.restore(
        params_like=like.params, state_like={'optimizer': like.optimizer, 'step': like.step}
      )
      state = State(params=params, **rest)
      # A phase's last step is its own, and so is the position in the data saved after it.
      phase = min(bisect.bisect_left(ends, done), len(jobs) - 1)
      streams[phase].restore(position)
      print(f'Resumed {workdir} after step {done}.')
      saved = done
    else:
      done, saved, phase = 0, None, 0
      init = functools.partial(init_state, jobs[0].model, make_optimizer(config.train))
      places = jax.tree.map(lambda x: x.sharding, like)
      state = jax.jit(init, out_shardings=places)(jax.random.key(config.seed))
      if config.init_from is not None:
        params = read_params(config.init_from, jobs[0].model, like.params, workdir)
        state = dataclasses.replace(state, params=params)
        print(f'Started from the parameters of {config.init_from}.')

    def save():
      nonlocal saved
      saved = done
      checkpoints.save(
        done,
        params=state.params,
        state={'optimizer': state.optimizer, 'step': state.step},
        data=streams[phase].state(),
      )

    resumed, meter = done, None
    with Metrics(workdir, total_steps=total, resumed=done) as metrics:
      while done < total and not stopping(stop, done, config.log.every):
        if done == ends[phase]:
          phase, meter = phase + 1, None
        job = jobs[phase]
        if first := meter is None:
          meter = Meter(
            job.config.train, job.model, job.like.params, begin=job.begin, done=done,
            bytes_per_token=documents.bytes_per_token,
          )  # fmt: skip
          if len(jobs) > 1:
            print(headline(jobs, phase))
        batch = sharding.put(next(streams[phase]), job.place)
        state, measured = job.step(state, job.spectrum, batch)
        done += 1
        saving = checkpoints.due(done) or done == job.end
        if first or saving or done % config.log.every == 0:
          values = meter.read(measured, done)
          if len(jobs) > 1:
            values['phase'] = phase + 1
          if done == resumed + 1:
            print(f'First step {time.monotonic() - began:.1f} s after the imports.')
          metrics.write(done, values)
          if saving:
            save()
          meter.start(done)
      if done < total and saved != done:
        if done > resumed:
          finite(measured, done)
        save()
  return agree(stop)


def read_params(source: str, model: Decoder, like, workdir: Path):
  """The parameters of a run, or of a checkpoint of another library, whose config.json the run then
  keeps: exports begin with it."""
  if interop.is_foreign(source):
    opened = interop.open_named(source)
    if jax.process_index() == 0:
      (workdir / loading.SOURCE).write_text(json.dumps(opened.source, indent=2) + '\n')
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    return interop.read_params(opened, model, mesh)
  with Checkpoints(Path(source) / 'checkpoints') as checkpoints:
    return checkpoints.restore_params(like)


def headline(jobs: Sequence[Job], phase: int) -> str:
  """A phase's steps, and what it sets."""
  job = jobs[phase]
  changed, has = difference(jobs[0].config, job.config), flatten(job.config)
  changes = [f'{key}={new}' for key, _, new in changed if key in has]
  steps = f'Phase {phase + 1} of {len(jobs)}: steps {job.begin + 1:,} to {job.end:,}'
  return ', '.join([steps, *changes])


def describe(jobs: Sequence[Job]) -> None:
  """Prints what would run: parameters, FLOPs, memory, mesh, attention. Compiles, runs nothing."""
  print(cost.describe_parameters(jobs[0].like.params))
  for phase, job in enumerate(jobs):
    if len(jobs) > 1:
      print(headline(jobs, phase))
    describe_job(job)


def describe_job(job: Job) -> None:
  config, model, like, mesh = job.config, job.model, job.like, job.place.mesh
  tokens = config.train.batch * config.train.length
  print(f'Training     {config.train.steps:,} steps of {tokens:,} tokens')
  flops = cost.flops_per_token(model, like.params, config.train.length)
  print(f'FLOPs        {flops:.3g} per token (forward + backward, causal attention counted half)')
  print(f'Memory       {cost.describe_memory(compile_step(job).memory_analysis())}')
  sizes = ' x '.join(f'{axis}={size}' for axis, size in mesh.shape.items())
  print(f'Mesh         {sizes} on {jax.device_count()} x {jax.devices()[0].device_kind}')
  print(f'Activations  {model.compute_dtype}')
  try:
    kept = f'{cost.cache_bytes_per_token(model):,.0f} bytes per token in decoding'
  except ValueError as error:
    kept = f'none: {error}'
  print(f'Cache        {kept}')
  choices = describe_attention(model, job.spectrum, config.train.length, packed=True)
  for choice, count in collections.Counter(choices).items():
    share = '' if len(choices) == count else f', {count} of {len(choices)} layers of the pattern'
    print(f'Attention    {choice.form} ({choice.why}){share}')


def compile_step(job: Job) -> jax.stages.Compiled:
  """The program of a training step, which nothing runs."""
  row = jax.ShapeDtypeStruct((job.config.train.batch, job.config.train.length), jnp.int32)
  batch = dict.fromkeys(('tokens', 'targets', 'positions', 'segments'), row)
  return job.step.lower(job.like, job.spectrum, batch).compile()


def stopping(stop: Stop, done: int, every: int) -> bool:
  """Whether to stop now; several processes agree on it, every `every` steps."""
  return (jax.process_count() == 1 or done % every == 0) and agree(stop)


def agree(stop: Stop) -> bool:
  """Whether any process was asked to stop: all of them save, or all of them evaluate."""
  if jax.process_count() == 1:
    return stop.asked
  return bool(multihost_utils.process_allgather(np.array(stop.asked)).any())


if __name__ == '__main__':
  cli.run(main)
