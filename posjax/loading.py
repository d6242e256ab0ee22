"""A run's model with the weights of a whole checkpoint, or one of another library."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posjax import data, interop, phases, run, sharding
from posjax.checkpoint import Checkpoints
from posjax.decoder import Decoder, init_params
from posjax.experiment import build

SOURCE = 'source.json'  # in a run that began with a checkpoint of another library


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """A run: its model, and its parameters on the mesh nearest to its own.

  workdir: of the run; where results go.
  config: complete, of the last phase or of the step's; experiment: as the run was started, with all
    phases.
  trained: whether the weights are those of the run in `workdir`.
  source: config.json of the checkpoint of another library that the weights came from, or None.
  """

  workdir: Path
  experiment: ConfigDict
  config: ConfigDict
  model: Decoder
  params: Any
  mesh: Mesh
  tokenizer: Any
  trained: bool = True
  source: dict[str, Any] | None = None


def load(
  workdir: str | Path,
  checkpoint: str | None = None,
  mesh: Mapping[str, int] | None = None,
  step: int | None = None,
) -> Loaded:
  """The run in `workdir`, or 'hf:DIR'; or `checkpoint`, either, whose results go to `workdir`.

  mesh: devices along axes that another library's checkpoint is spread over as it is read.
  step: of a run's checkpoint; None: the newest. The config is that of the step's phase.

  Raises ValueError where a directory holds no run, no whole checkpoint, not that of `step`, or no
  checkpoint that posjax computes exactly (posjax/interop/).
  """
  if step is not None and interop.is_foreign(checkpoint or str(workdir)):
    raise ValueError(f'{checkpoint or workdir} has no steps. Leave out step {step}.')
  if checkpoint is None and interop.is_foreign(workdir):
    return load_foreign(str(workdir), mesh)
  workdir = Path(workdir).expanduser()
  if checkpoint is not None:
    if (workdir / 'config.json').exists():
      raise ValueError(
        f"'{workdir}' holds a run of its own. Give a new directory as --workdir for what is found "
        f'of {checkpoint}.'
      )
    foreign = interop.is_foreign(checkpoint)
    loaded = load_foreign(checkpoint, mesh) if foreign else load(checkpoint, step=step)
    return dataclasses.replace(loaded, workdir=workdir, trained=False)
  experiment = run.load_config(workdir)
  config = phases.last(experiment) if step is None else phases.at_step(experiment, step)
  mesh = sharding.nearest_mesh(config.mesh)
  model = build(config, mesh)
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  source = workdir / SOURCE
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    params = checkpoints.restore_params(sharding.like(shapes, mesh), step)
  return Loaded(
    workdir=workdir,
    experiment=experiment,
    config=config,
    model=model,
    params=params,
    mesh=mesh,
    tokenizer=data.load_tokenizer(workdir),
    source=json.loads(source.read_text()) if source.is_file() else None,
  )


def load_foreign(name: str, mesh: Mapping[str, int] | None = None) -> Loaded:
  opened = interop.open_named(name)
  model, params, devices = interop.build_on(opened, mesh)
  return Loaded(
    workdir=Path(name.partition(':')[2]),
    experiment=opened.config,
    config=opened.config,
    model=model,
    params=params,
    mesh=devices,
    tokenizer=opened.tokenizer,
    source=opened.source,
  )
