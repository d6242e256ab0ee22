"""Checkpoints are restored bit for bit, or the reason is said."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from posjax.checkpoint import Checkpoints


def parameters(seed=0, shape=(16, 8)):
  key = jax.random.key(seed)
  return {'layer': {'w': jax.random.normal(key, shape), 'b': jnp.ones(3, jnp.bfloat16)}}


def abstract(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def save(directory, steps, keep=3, lasting=()):
  with Checkpoints(directory, keep=keep, lasting=lasting) as checkpoints:
    for step in steps:
      params = parameters(step)
      state = {'optimizer': optax.adamw(1e-3).init(params), 'step': jnp.int32(step)}
      checkpoints.save(step, params=params, state=state, data={'row': 4 * step})
  return abstract(params), abstract(state)


def restore(directory, likes, step=None):
  with Checkpoints(directory) as checkpoints:
    return checkpoints.restore(step, params_like=likes[0], state_like=likes[1])


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def largest_file(directory):
  return max((p for p in directory.rglob('d/*') if p.is_file()), key=lambda p: p.stat().st_size)


def flip_a_bit(directory):
  file = largest_file(directory)
  content = bytearray(file.read_bytes())
  content[len(content) // 2] ^= 1
  file.write_bytes(content)


def cut_short(directory):
  file = largest_file(directory)
  file.write_bytes(file.read_bytes()[:-1])


def lose_a_file(directory):
  largest_file(directory).unlink()


def lose_the_manifest(directory):
  (directory / 'manifest.json').unlink()


def halve_the_manifest(directory):
  text = (directory / 'manifest.json').read_text()
  (directory / 'manifest.json').write_text(text[: len(text) // 2])


def empty_the_manifest(directory):
  (directory / 'manifest.json').write_text('{}')


DAMAGES = {
  flip_a_bit: 'has changed since it was written',
  cut_short: 'has changed since it was written',
  lose_a_file: 'is missing',
  lose_the_manifest: 'the save did not finish',
  halve_the_manifest: 'is not what was written',
  empty_the_manifest: 'is not what was written',
}


def test_what_was_saved_is_restored_bit_for_bit(tmp_path):
  likes = save(tmp_path, [1, 2])
  step, params, state, data = restore(tmp_path, likes)
  assert (step, data) == (2, {'row': 8})
  assert_equal(params, parameters(2))
  assert params['layer']['b'].dtype == jnp.bfloat16
  assert_equal(state, {'optimizer': optax.adamw(1e-3).init(params), 'step': jnp.int32(2)})
  assert restore(tmp_path, likes, step=1)[3] == {'row': 4}


def test_arrays_donated_right_after_a_save_are_saved_as_they_were(tmp_path):
  negate = jax.jit(lambda tree: jax.tree.map(jnp.negative, tree), donate_argnums=0)
  params = parameters(shape=(512, 512))
  before = jax.tree.map(np.array, params)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, params=params, state={'step': jnp.int32(1)}, data={})
    negate(params)
    checkpoints.wait()
    assert_equal(checkpoints.restore_params(abstract(before)), before)


def test_only_the_newest_are_kept(tmp_path):
  save(tmp_path, [1, 2, 3], keep=2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['2', '3']


def test_lasting_steps_are_kept_beyond_the_newest(tmp_path):
  save(tmp_path, [1, 2, 3, 4, 5], keep=1, lasting=(1, 3))
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '3', '5']


def test_a_step_is_due_at_every_multiple_and_not_before_the_first():
  with Checkpoints('/nowhere', every=3) as checkpoints:
    assert [step for step in range(8) if checkpoints.due(step)] == [3, 6]


def test_the_latest_is_none_before_the_first_save(tmp_path):
  with Checkpoints(tmp_path / 'new') as checkpoints:
    assert checkpoints.latest() is None
    with pytest.raises(ValueError, match=r'No checkpoint in .*new. Train there first'):
      checkpoints.restore_params({})


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
  likes = save(tmp_path, [1, 2])
  damage(tmp_path / '2')
  step, params, _, data = restore(tmp_path, likes)
  assert (step, data) == (1, {'row': 4})
  assert_equal(params, parameters(1))
  [message] = caplog.messages
  assert 'Checkpoint 2 is not whole' in message and DAMAGES[damage] in message
  assert message.endswith('kept as 2.damaged, continuing from step 1.')
  assert (tmp_path / '2.damaged').is_dir()
  save(tmp_path, [2])
  assert restore(tmp_path, likes)[0] == 2


def test_the_same_step_can_be_damaged_twice(tmp_path):
  likes = save(tmp_path, [1, 2])
  for name in ('2.damaged', '2.damaged1'):
    cut_short(tmp_path / '2')
    assert restore(tmp_path, likes)[0] == 1
    assert (tmp_path / name).is_dir()
    save(tmp_path, [2])


def test_evaluation_passes_over_a_damaged_checkpoint_and_leaves_it_in_place(tmp_path, caplog):
  likes = save(tmp_path, [1, 2])
  flip_a_bit(tmp_path / '2')
  with Checkpoints(tmp_path) as checkpoints:
    assert_equal(checkpoints.restore_params(likes[0]), parameters(1))
  assert 'using step 1' in caplog.text
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


def test_when_none_is_whole_each_is_listed_with_its_reason_and_nothing_is_renamed(tmp_path):
  likes = save(tmp_path, [1, 2])
  lose_a_file(tmp_path / '1')
  lose_the_manifest(tmp_path / '2')
  with pytest.raises(ValueError, match=r'(?s)2: no manifest.json.*1: \S+ is missing.*train anew'):
    restore(tmp_path, likes)
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


def test_a_first_save_that_did_not_finish_is_put_aside_by_the_next(tmp_path, caplog):
  save(tmp_path, [1])
  lose_the_manifest(tmp_path / '1')
  (tmp_path / '1.orbax-checkpoint-tmp').mkdir()
  likes = save(tmp_path, [1])
  assert 'An earlier save of step 1 did not finish: kept as 1.damaged' in caplog.text
  assert restore(tmp_path, likes)[0] == 1
  assert not (tmp_path / '1.orbax-checkpoint-tmp').exists()


def test_an_old_step_is_refused(tmp_path):
  save(tmp_path, [3])
  for step in (2, 3):
    with pytest.raises(ValueError, match=f'Step {step} is not newer than .* step 3 in'):
      save(tmp_path, [step])


def test_a_step_that_is_not_there_is_refused_with_those_that_are(tmp_path):
  likes = save(tmp_path, [1, 2])
  with pytest.raises(ValueError, match=r'No checkpoint of step 7 in .* There are: \[2, 1\]'):
    restore(tmp_path, likes, step=7)


@pytest.mark.parametrize(
  ('wrong', 'message'),
  [
    ({'w': ((8, 16), 'float32')}, r'layer.w: stored float32\[16,8\], wanted float32\[8,16\]'),
    ({'w': ((16, 9), 'float32')}, r'layer.w: stored float32\[16,8\], wanted float32\[16,9\]'),
    ({'w': ((16, 8), 'float16')}, r'layer.w: stored float32\[16,8\], wanted float16\[16,8\]'),
    ({'v': ((2,), 'float32')}, r'layer.v: stored None, wanted float32\[2\]'),
  ],
)
def test_a_leaf_of_another_shape_dtype_or_name_is_refused_by_name(tmp_path, wrong, message):
  save(tmp_path, [1])
  right = {'w': ((16, 8), 'float32'), 'b': ((3,), 'bfloat16')}
  layer = {n: jax.ShapeDtypeStruct(s, d) for n, (s, d) in (right | wrong).items()}
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='params.' + message):
    checkpoints.restore_params({'layer': layer})


def test_a_leaf_that_the_model_lacks_is_refused(tmp_path):
  save(tmp_path, [1])
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=r'layer\.w: stored'):
    checkpoints.restore_params({'layer': {'b': jax.ShapeDtypeStruct((3,), 'bfloat16')}})


def test_a_directory_that_cannot_be_made_is_one_clear_error(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(OSError, match=r'step 1 could not be written to .*: Not a directory. Earlier'):
    save(tmp_path / 'file' / 'checkpoints', [1])


def test_data_that_is_not_json_is_refused_at_once(tmp_path):
  with Checkpoints(tmp_path) as checkpoints, pytest.raises(TypeError, match='not JSON'):
    checkpoints.save(1, params=parameters(), state=parameters(), data={'row': np.int64(3)})


@pytest.mark.parametrize('sizes', [{'every': 0}, {'keep': 0}])
def test_a_frequency_or_number_below_one_is_refused(tmp_path, sizes):
  with pytest.raises(ValueError, match='Both must be at least 1'):
    Checkpoints(tmp_path, **sizes)


# The tests below need processes of their own. The writer saves a sharded matrix full of its step.
WRITER = """
import resource, signal, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from posjax.checkpoint import Checkpoints

directory, steps, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
mesh = jax.make_mesh((len(jax.devices()),), ('data',))
rows = NamedSharding(mesh, P('data'))
with Checkpoints(directory, keep=2) as checkpoints:
  for step in range((checkpoints.latest() or 0) + 1, steps + 1):
    if limit and step == steps:
      checkpoints.wait()
      signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then writes fail with EFBIG, an OSError
      resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    w = jax.device_put(jax.random.normal(jax.random.key(step), (256, 256)), rows)
    checkpoints.save(step, params={'w': w}, state={'step': jnp.int32(step)}, data={'step': step})
    print(step, flush=True)
"""
LIKES = (
  {'w': jax.ShapeDtypeStruct((256, 256), 'float32')},
  {'step': jax.ShapeDtypeStruct((), 'int32')},
)


def writer(directory, steps, limit=0, devices=1):
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
  }
  command = [sys.executable, '-c', WRITER, str(directory), str(steps), str(limit)]
  return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)


def assert_whole(directory):
  step, params, state, data = restore(directory, LIKES)
  np.testing.assert_array_equal(params['w'], jax.random.normal(jax.random.key(step), (256, 256)))
  assert state['step'] == data['step'] == step
  return step


@pytest.mark.slow
def test_four_devices_save_and_one_restores(tmp_path):
  process = writer(tmp_path, steps=1, devices=4)
  _, errors = process.communicate()
  assert process.returncode == 0 and not errors, errors
  assert_whole(tmp_path)


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_leaves_earlier_checkpoints_whole(tmp_path):
  process = writer(tmp_path, steps=3, limit=20_000)  # bytes; the matrix takes 256 kB
  _, errors = process.communicate()
  assert process.returncode == 1
  last = errors.strip().splitlines()[-1]
  assert last.startswith('OSError: The checkpoint of step 3 could not be written'), errors
  assert 'File too large' in last and 'untouched (1, 2)' in last
  assert 'absl' not in errors and 'ERROR' not in errors  # Orbax's own log stays silent
  assert assert_whole(tmp_path) == 2


def kill_in_the_middle_of_a_save(directory, after, delay):
  """Kills the writer `delay` seconds after it began save number `after`."""
  process = writer(directory, steps=1000)
  for _ in range(after):
    process.stdout.readline()
  time.sleep(delay)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def test_a_kill_in_the_middle_of_a_save_loses_at_most_that_save(tmp_path):
  kill_in_the_middle_of_a_save(tmp_path, after=4, delay=0.005)
  assert assert_whole(tmp_path) >= 3


@pytest.mark.slow
def test_twenty_kills_at_random_moments_lose_at_most_one_save_each(tmp_path):
  reached = 0
  for delay in np.random.default_rng(0).uniform(0, 0.05, size=20):
    kill_in_the_middle_of_a_save(tmp_path, after=3, delay=delay)
    now = assert_whole(tmp_path)
    assert now >= reached + 2  # three began; the last may be lost
    reached = now


HOST = """
import sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from posjax.checkpoint import Checkpoints

directory, process, port = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
mesh = jax.make_mesh((2,), ('data',))
place = {'w': NamedSharding(mesh, P('data'))}, {'step': NamedSharding(mesh, P())}
make = jax.jit(
  lambda step: ({'w': jax.random.normal(jax.random.key(step), (256, 256))}, {'step': step}),
  out_shardings=place,
)
with Checkpoints(directory, keep=2) as checkpoints:
  start = 0
  if checkpoints.latest():
    params, state = make(0)
    start, params, state, data = checkpoints.restore(params_like=params, state_like=state)
    assert start == data['step'] == int(state['step'])
    assert jax.jit(lambda a, b: (a == b).all())(params['w'], make(start)[0]['w'])
  for step in range(start + 1, start + 4):
    params, state = make(step)
    checkpoints.save(step, params=params, state=state, data={'step': step})
"""


@pytest.mark.slow
def test_two_hosts_save_together_and_agree_on_the_checkpoint_to_restore(tmp_path):
  for start in (0, 2):  # the second time, step 3 is damaged
    with socket.socket() as free:
      free.bind(('localhost', 0))
      port = str(free.getsockname()[1])
    hosts = [
      subprocess.Popen([sys.executable, '-c', HOST, str(tmp_path), host, port], stderr=-1)
      for host in '01'
    ]
    errors = [host.communicate()[1].decode() for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors
    assert assert_whole(tmp_path) == start + 3
    if start == 0:
      cut_short(tmp_path / '3')
  assert (tmp_path / '3.damaged').is_dir() and 'Checkpoint 3 is not whole' in errors[0]


def test_the_manifest_names_every_file_and_leaf(tmp_path):
  save(tmp_path, [1])
  manifest = json.loads((tmp_path / '1' / 'manifest.json').read_text())
  files = {p.relative_to(tmp_path / '1').as_posix() for p in (tmp_path / '1').rglob('*')
           if p.is_file()}  # fmt: skip
  assert manifest['files'].keys() == files - {'manifest.json'}
  assert manifest['params'] == {'layer.w': 'float32[16,8]', 'layer.b': 'bfloat16[3]'}
  assert manifest['state']['optimizer.0.mu.layer.w'] == 'float32[16,8]'
