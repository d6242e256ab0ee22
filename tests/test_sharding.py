"""Arrays live where the table says, or the reason is said; any mesh trains the same model."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from e2e import (
  assert_close,
  finish,
  launch,
  stored,
  train_here,
  train_there,
  words,
)
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import eval as evaluation
import train
from posjax import metrics, positions, sharding
from posjax.config import load

MESHES = {
  'data': ('mesh.data=8',),
  'all': ('mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2'),
}
LIKE = ('train.batch=8', 'log.every=1')  # eight rows, for eight devices


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('one') / 'run'
  train_here(workdir, *LIKE)
  return workdir


@pytest.fixture(scope='module')
def eight_devices(tmp_path_factory, one_device):
  """Runs of the same experiment on each mesh, and one that began on a single device."""
  folder = tmp_path_factory.mktemp('eight')
  halfway(one_device, folder / 'from-one')
  runs = [words(folder / name, *LIKE, *mesh) for name, mesh in MESHES.items()]
  train_there(*runs, words(folder / 'from-one', *LIKE, *MESHES['all']), devices=8)
  return folder


def halfway(source, target):
  """A copy of a finished run as it was after three of its six steps."""
  shutil.copytree(source, target)
  shutil.rmtree(target / 'checkpoints' / '6')
  return target


@pytest.mark.parametrize('mesh', MESHES)
def test_eight_devices_report_the_losses_of_one(mesh, eight_devices, one_device):
  assert_close(metrics.read(eight_devices / mesh), metrics.read(one_device))


@pytest.mark.slow
def test_copies_in_parts_without_a_tensor_axis_report_the_losses_of_one(one_device, tmp_path):
  train_there(words(tmp_path / 'run', *LIKE, 'mesh.data=2', 'mesh.fsdp=4'), devices=8)
  assert_close(metrics.read(tmp_path / 'run'), metrics.read(one_device))


def test_a_run_that_moves_between_one_and_eight_devices_reports_the_same(
  eight_devices, one_device, tmp_path, capsys
):
  to_one = halfway(eight_devices / 'all', tmp_path / 'to-one')
  assert_close(train_here(to_one, *LIKE), metrics.read(one_device))
  out = capsys.readouterr().out
  assert 'mesh.tensor: 2 -> 1' in out and f'Resumed {to_one} after step 3.' in out
  assert_close(metrics.read(eight_devices / 'from-one'), metrics.read(one_device))


INSPECT = """
import json, sys
sys.path[:0] = ['.', 'tests']
import jax
from jax import numpy as jnp
import e2e, eval, train
from posjax import sharding
from posjax.checkpoint import Checkpoints
from posjax.config import load

source, target, *overrides = sys.argv[1:]
config = load(e2e.SMOKE, overrides)
train.complete(config)
job = train.prepare(config)

# The checkpoint of one device, read into shards and written again.
with Checkpoints(source) as checkpoints:
  step, params, rest, data = checkpoints.restore(
    params_like=job.like.params, state_like={'optimizer': job.like.optimizer, 'step': job.like.step}
  )
with Checkpoints(target) as checkpoints:
  checkpoints.save(step, params=params, state=rest, data=data)
shards = {}
for path, x in jax.tree_util.tree_leaves_with_path({'params': params, **rest}):
  [shape] = {shard.data.shape for shard in x.addressable_shards}
  shards[jax.tree_util.keystr(path, simple=True, separator='/')] = [x.shape, shape]

compiled = {}
row = jax.ShapeDtypeStruct((8, 256), jnp.int32)
batch = dict.fromkeys(('tokens', 'targets', 'positions', 'segments'), row)
for mesh in ({'data': 8, 'fsdp': 1, 'tensor': 1}, dict(config.mesh)):
  config.mesh, config.train.length, config.train.batch = mesh, 256, 8
  job = train.prepare(config)
  program = job.step.lower(job.like, job.spectrum, batch).compile()
  compiled[str(list(mesh.values()))] = program.as_text()

eval.main([f'--workdir={source}/..', '--eval=configs/eval/base.py:smoke', '--eval.name=on_eight'])

near = [{'data': -1, 'fsdp': 16, 'tensor': 1}, {'data': 1, 'fsdp': 3, 'tensor': 4},
        {'data': 2, 'fsdp': -1, 'tensor': 2}]
near = [list(sharding.nearest_mesh(sizes).shape.values()) for sizes in near]
print(json.dumps({'shards': shards, 'compiled': compiled, 'near': near}))
"""


@pytest.fixture(scope='module')
def inspected(one_device, tmp_path_factory):
  """What eight devices, as 2 x 2 x 2, hold and compile; and where they stored what they read."""
  copy = tmp_path_factory.mktemp('inspected') / 'run'
  shutil.copytree(one_device, copy)
  shutil.rmtree(copy / 'checkpoints')
  overrides = [f'--config.{setting}' for setting in (*LIKE, *MESHES['all'])]
  arguments = (one_device / 'checkpoints', copy / 'checkpoints', *overrides)
  out, _ = finish(launch('-c', INSPECT, *arguments, devices=8))
  return {'run': copy, **json.loads(out.splitlines()[-1])}


@pytest.mark.slow
def test_each_device_holds_a_part_of_every_matrix_and_of_its_optimizer_state(inspected):
  expected = {  # of 2 layers, width 32, 4 heads of 8, MLP 64, 256 ids: over fsdp and tensor
    'embedding_VD': [[256, 32], [128, 16]],
    'head_DV': [[32, 256], [16, 128]],
    'blocks/layer_0/attention/query_DX': [[2, 32, 32], [2, 16, 16]],
    'blocks/layer_0/attention/output_XD': [[2, 32, 32], [2, 16, 16]],
    'blocks/layer_0/mlp/up_DM': [[2, 32, 64], [2, 16, 32]],
    'blocks/layer_0/mlp/down_MD': [[2, 64, 32], [2, 32, 16]],
    'blocks/layer_0/mlp_norm/scale_D': [[2, 32], [2, 32]],
    'final_norm/scale_D': [[32], [32]],
  }
  for name, shapes in expected.items():
    for place in ('params', 'optimizer/1/0/mu', 'optimizer/1/0/nu'):
      assert inspected['shards'][f'{place}/{name}'] == shapes, name


@pytest.mark.slow
def test_a_checkpoint_of_one_device_passes_through_eight_with_equal_values(inspected, one_device):
  (step, tree, position), (step_one, tree_one, position_one) = (
    stored(inspected['run']), stored(one_device)
  )  # fmt: skip
  assert (step, position) == (step_one, position_one)
  jax.tree.map(np.testing.assert_array_equal, tree, tree_one)


def collectives(text):
  """(loops around it, operation, arrays it moves) of each collective of a compiled program."""
  body, name = {}, None
  for line in text.splitlines():
    if head := re.match(r'(ENTRY )?%?([\w.-]+) .*\{$', line):
      name = 'entry' if head[1] else head[2]
      body[name] = []
    elif name:
      body[name].append(line)
  kinds = 'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'

  def walk(name, depth):
    for line in body.get(name, ()):
      if found := re.search(rf'= (.*?) ({kinds})(-start)?\(', line):
        yield depth, found[2], re.findall(r'\w+\[[\d,]*\]', found[1])
      for key, callee in re.findall(r'(body|calls)=%?([\w.-]+)', line):
        yield from walk(callee, depth + (key == 'body'))

  return list(walk('entry', 0))


# Loops of the compiled step: over layers (depth 1), in each over tiles of queries (2) and keys (3).


@pytest.mark.slow
def test_copies_of_the_model_only_sum_gradients_and_never_inside_attention(inspected):
  found = collectives(inspected['compiled']['[8, 1, 1]'])
  assert {(depth, kind) for depth, kind, _ in found} == {(0, 'all-reduce'), (1, 'all-reduce')}


@pytest.mark.slow
def test_no_vector_crosses_devices_inside_the_loops_of_attention(inspected):
  found = collectives(inspected['compiled']['[2, 2, 2]'])
  assert [kind for depth, kind, _ in found if depth == 1].count('all-gather') >= 4  # of weights
  assert max(depth for depth, _, _ in found) == 1


@pytest.mark.slow
def test_another_machine_gets_the_nearest_mesh_that_fits_it(inspected):
  assert inspected['near'] == [[1, 8, 1], [2, 1, 4], [1, 4, 2]]
  one = {'data': 1, 'fsdp': 1, 'tensor': 1}
  assert sharding.nearest_mesh({'data': 4, 'fsdp': -1, 'tensor': 8}).shape == one


@pytest.mark.slow
def test_a_run_is_evaluated_on_any_number_of_devices(inspected, eight_devices, one_device):
  once = '--eval=configs/eval/base.py:smoke'
  for workdir in (one_device, eight_devices / 'all'):
    evaluation.main([f'--workdir={workdir}', once])
  folders = (one_device / 'evaluation', eight_devices / 'all' / 'evaluation')
  files = (folders[0] / 'base.json', folders[0] / 'on_eight.json', folders[1] / 'base.json')
  losses = [json.loads(file.read_text())['rows'][0]['loss'] for file in files]
  np.testing.assert_allclose(losses, losses[0], rtol=0, atol=1e-5)


# --- refusals -------------------------------------------------------------------------------------


def mesh(**sizes):
  sizes = dict.fromkeys(sharding.AXES, 1) | sizes
  return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def array(*shape):
  return jax.ShapeDtypeStruct(shape, 'float32')


def test_a_parameter_no_rule_names_is_an_error():
  tree = {'blocks': {'gate_DM': array(2, 8, 8), 'mixer_QR': array(3, 5)}}
  with pytest.raises(ValueError, match=r"'blocks/mixer_QR' of shape \(3, 5\).*RULES in posjax"):
    sharding.place(tree, mesh())


def test_a_size_that_devices_do_not_divide_is_an_error_with_the_way_out():
  with pytest.raises(ValueError, match=r"of 9, which 2 devices along 'tensor'.*mesh.tensor"):
    sharding.place({'up_DM': array(2, 8, 9)}, mesh(tensor=2))
  with pytest.raises(ValueError, match=r"axis of 8, which 3 devices along 'fsdp'.*mesh.fsdp"):
    sharding.place({'up_DM': array(2, 8, 9)}, mesh(fsdp=3))


def test_stacked_layers_stay_whole_and_the_first_rule_decides():
  specs = jax.tree.map(
    lambda x: x.spec,
    sharding.place(
      {'key_DX': array(4, 8, 8), 'position': {'table_VD': array(5, 7)}, 'step': array()},
      mesh(fsdp=2, tensor=2),
    ),
  )
  assert specs == {'key_DX': P(None, 'fsdp', 'tensor'), 'position': {'table_VD': P(None, None)},
                   'step': P()}  # fmt: skip


@pytest.mark.parametrize(
  'sizes',
  [{'data': 2}, {'data': 0}, {'data': -1, 'fsdp': -1}, {'tensor': -2}, {'data': -1, 'tensor': 3}],
)
def test_a_mesh_that_does_not_fit_the_devices_is_an_error_with_the_way_out(sizes):
  sizes = dict.fromkeys(sharding.AXES, 1) | sizes
  wanted = f'data={sizes["data"]} x fsdp={sizes["fsdp"]} x tensor={sizes["tensor"]}'
  with pytest.raises(ValueError, match=rf'{wanted} does not fit 1 device\. .* --config.mesh.data'):
    sharding.make_mesh(sizes)


def test_rows_that_devices_cannot_share_are_an_error_with_the_way_out():
  with pytest.raises(ValueError, match=r'6 rows cannot be spread over 4 devices.*multiple of 4'):
    sharding.of_batch(mesh(data=2, fsdp=2), 6)


@pytest.mark.parametrize('scheme', positions.names())
def test_every_parameter_of_every_scheme_is_named(scheme):
  config = load(f'configs/{scheme}.py:smoke')
  train.complete(config)
  train.prepare(config)
