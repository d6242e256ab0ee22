"""Where arrays live: hosts, a mesh of devices, and a (regex -> PartitionSpec) table.

  data    copies of the model, each with its part of the batch
  fsdp    parts of the batch too, and parts of every matrix (fully sharded data parallelism)
  tensor  parts of every matrix: heads, MLP units, experts, vocabulary
"""

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')

# A parameter's name ends with its axes. Specs are for its last axes: weights of all layers are
# stacked along a first one, which stays whole. The first pattern found in the path decides.
RULES = (
  (r'position\b', P()),  # of the scheme: small, and needed whole
  (r'_DV$|_DX$|_DM$', P('fsdp', 'tensor')),  # head; query, key, value; gate, up
  (r'_VD$|_XD$|_MD$', P('tensor', 'fsdp')),  # embedding; attention output; down
  (r'(scale|bias)_D$', P()),  # of norms; biases of what is added to the residual stream
  (r'null_H$', P()),  # a number for each head
  (r'cluster_bias_C$', P()),
  (r'bias_(X|M|V)$', P('tensor')),
  (r'_CX$', P('fsdp', 'tensor')),  # of latent attention: heads from a latent
  (r'_DC$|_DR$', P('fsdp', None)),  # and what all heads share
  (r'_EDM$', P('tensor', 'fsdp', None)),  # experts, each whole along tensor: gate, up
  (r'_EMD$', P('tensor', None, 'fsdp')),  # down
  (r'bias_(EM|ED)$', P('tensor', None)),  # theirs
  (r'router_DE$|bias_E$', P()),  # small, and every device chooses for its tokens
  (r'\b(count|step)$', P()),  # of the optimizer
)


def start(coordinator: str | None = None, count: int | None = None, index: int | None = None):
  """Connects the processes of a run over several hosts; does nothing where there is one.

  Told by arguments, or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or the
  JOB_COMPLETION_INDEX of a Kubernetes job), or by the variables of SLURM or of a TPU pod, which JAX
  reads by itself. Call it before anything else touches a device.

  Args:
    coordinator: host:port that process 0 listens on.
    count: processes; index: this one's number, from 0.

  Raises ValueError if only some of the three are known.
  """
  env = os.environ
  coordinator = coordinator or env.get('JAX_COORDINATOR_ADDRESS')
  count = _number(count, 'JAX_NUM_PROCESSES')
  index = _number(index, 'JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX' if coordinator else '')
  told = {'--coordinator': coordinator, '--processes': count, '--process': index}
  missing = [flag for flag, value in told.items() if value is None]
  slurm = int(env.get('SLURM_NTASKS', 1)) > 1 and 'SLURM_STEP_NODELIST' in env
  pod = ',' in env.get('TPU_WORKER_HOSTNAMES', '')
  if len(missing) == 3 and not slurm and not pod:
    return
  if 0 < len(missing) < 3:
    raise ValueError(
      f'Of {", ".join(told)}, {", ".join(missing)} is missing. Give all three (or their variables '
      'JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID), or none on a single host.'
    )
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(coordinator, count, index)
  if jax.default_backend() == 'cpu':
    # Where one process reads a program from the cache and another compiles it, gloo mistakes one
    # reduction for another, and both die (jax 0.10.2): every process compiles its own.
    jax.config.update('jax_enable_compilation_cache', False)


def _number(value: int | None, *names: str) -> int | None:
  known = [value, *(os.environ.get(name) for name in names)]
  return next((int(v) for v in known if v is not None), None)


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
  """The mesh of all devices, `sizes` along each of AXES; one of them may be -1, what is left.

  Raises ValueError if the product is not the number of devices.
  """
  devices = jax.device_count()
  shape = [sizes[axis] for axis in AXES]
  known = int(np.prod([size for size in shape if size != -1]))
  wrong = shape.count(-1) > 1 or min(shape) < -1 or 0 in shape or devices % known
  if wrong or (-1 not in shape and known != devices):
    wanted = ' x '.join(f'{axis}={size}' for axis, size in zip(AXES, shape, strict=True))
    raise ValueError(
      f'A mesh of {wanted} does not fit {devices} device{"s" * (devices > 1)}. '
      'Make the product equal to it, or leave one axis at -1: --config.mesh.data=-1.'
    )
  shape = [devices // known if size == -1 else size for size in shape]
  return jax.make_mesh(tuple(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def nearest_mesh(sizes: Mapping[str, int]) -> Mesh:
  """The mesh of `sizes` where it fits, and else with smaller axes; `data` takes what is left.

  For reading a run on another number of devices: a smaller axis divides what the larger one did.
  """
  left, shape = jax.device_count(), {}
  for axis in reversed(AXES[1:]):
    shape[axis] = left if sizes[axis] == -1 else math.gcd(left, sizes[axis])
    left //= shape[axis]
  return make_mesh(shape | {'data': left})


def place(tree: Any, mesh: Mesh, rules=RULES) -> Any:
  """The NamedSharding of each array of `tree` (arrays or ShapeDtypeStructs), by its path.

  Raises ValueError for an array no rule names, or one that a mesh axis does not divide: JAX would
  silently keep a whole copy on each device.
  """

  def one(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
    if spec is None:
      raise ValueError(
        f"No sharding rule names '{name}' of shape {leaf.shape}. "
        'Add a (regex, PartitionSpec) to RULES in posjax/sharding.py.'
      )
    spec = P(*[None] * (leaf.ndim - len(spec)), *spec)
    for size, axis in zip(leaf.shape, spec, strict=True):
      if axis is not None and size % mesh.shape[axis]:
        raise ValueError(
          f"'{name}' of shape {leaf.shape} has an axis of {size}, which {mesh.shape[axis]} devices "
          f"along '{axis}' do not divide. Change --config.mesh.{axis} or the model's sizes."
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(one, tree)


def like(shapes: Any, mesh: Mesh) -> Any:
  """`shapes`, each with its place, as Orbax restores and `jit` lowers them. Raises ValueError as
  `place` does."""
  one = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  return jax.tree.map(one, shapes, place(shapes, mesh))


def of_batch(mesh: Mesh, rows: int) -> NamedSharding:
  """Rows spread over the data and fsdp axes, sequences whole.

  Raises ValueError if the rows cannot be spread evenly.
  """
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if rows % parts:
    raise ValueError(
      f'A batch of {rows} rows cannot be spread over {parts} devices (mesh.data x mesh.fsdp). '
      f'Make --config.train.batch / --config.train.accumulate a multiple of {parts}.'
    )
  return NamedSharding(mesh, P(('data', 'fsdp')))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on each device."""
  return NamedSharding(mesh, P())


def host_share(sharding: NamedSharding, rows: int) -> tuple[int, int]:
  """(index, count): this process reads the index-th of `count` equal parts of a batch's rows.

  Processes that hold the same rows (a tensor axis across hosts) read the same part.
  """
  parts = sharding.addressable_devices_indices_map((rows,)).values()
  spans = {part[0].indices(rows)[:2] for part in parts}
  first, last = min(a for a, _ in spans), max(b for _, b in spans)
  size = last - first
  if sum(b - a for a, b in spans) != size or first % size:
    raise ValueError(
      f'The mesh {dict(sharding.mesh.shape)} gives process {jax.process_index()} rows {spans}, no '
      'contiguous part of the batch. Make --config.mesh.data a multiple of the number of hosts.'
    )
  return first // size, rows // size


def put(batch: Any, sharding: NamedSharding) -> Any:
  """Global arrays from each process's own rows."""
  put_one = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
  return jax.tree.map(put_one, batch)
