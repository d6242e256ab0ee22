"""A run's model with the weights of its newest whole checkpoint."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posjax import phases, run, sharding
from posjax.checkpoint import Checkpoints
from posjax.decoder import Decoder, build, init_params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
  """A run: its model, and its parameters on the mesh nearest to its own.

  config: complete, of the last phase; experiment: as the run was started, phases and all.
  """

  workdir: Path
  experiment: ConfigDict
  config: ConfigDict
  model: Decoder
  params: Any
  mesh: Mesh


def load(workdir: str | Path) -> Loaded:
  """Raises ValueError where the directory holds no run, or no whole checkpoint."""
  workdir = Path(workdir).expanduser()
  experiment = run.load_config(workdir)
  config = phases.last(experiment)
  mesh = sharding.nearest_mesh(config.mesh)
  model = build(config, mesh)
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  like = jax.tree.map(
    lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
    shapes,
    sharding.place(shapes, mesh),
  )
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    params = checkpoints.restore_params(like)
  return Loaded(
    workdir=workdir, experiment=experiment, config=config, model=model, params=params, mesh=mesh
  )
