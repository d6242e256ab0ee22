"""Two processes, as on two hosts, train what one does."""

import contextlib
import json
import random
import signal
import socket

import jax
import pytest
from e2e import assert_close, finish_all, launch, stored, train_here, wait_for_step, words

from posjax import metrics, sharding

LIKE = ('log.every=1', 'checkpoint.every=100')
VARIABLES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID',
             'JOB_COMPLETION_INDEX', 'SLURM_NTASKS', 'TPU_WORKER_HOSTNAMES')  # fmt: skip


def free_port(ports=(0,)):
  """One of `ports` that nobody listens on; 0 is any."""
  for port in ports:
    with socket.socket() as free, contextlib.suppress(OSError):
      free.bind(('localhost', port))
      return free.getsockname()[1]
  raise AssertionError(f'No port of {ports} is free.')


def flags(process, port):
  return [f'--coordinator=localhost:{port}', '--processes=2', f'--process={process}'], {}


def variables(process, port):
  return [], {
    'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
    'JAX_NUM_PROCESSES': '2',
    'JAX_PROCESS_ID': str(process),
  }


def kubernetes(process, port):
  told = variables(process, port)[1]
  del told['JAX_PROCESS_ID']
  return [], told | {'JOB_COMPLETION_INDEX': str(process)}


def slurm(process, port):
  # JAX listens on port 61440 + job % 4096: on that of the job's number, from 61440 on.
  return [], {
    'SLURM_JOB_ID': str(port), 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(process), 'SLURM_LOCALID': '0', 'SLURM_STEP_NUM_NODES': '2',
  }  # fmt: skip


def launch_two(workdir, *settings, told=(flags, flags), port=None, devices=1):
  port = port or free_port()
  processes = []
  for number, tell in enumerate(told):
    extra, environment = tell(number, port)
    command = words(workdir, *LIKE, *settings)
    processes.append(launch('train.py', *command, *extra, devices=devices, **environment))
  return processes


@pytest.mark.slow
def test_two_processes_report_the_losses_of_one_and_only_the_first_writes(six_steps, tmp_path):
  # One is told by flags, the other by variables: they must understand each other. Attention is a
  # matter of each row alone, and its definition compiles faster than its tiles.
  both = launch_two(tmp_path / 'run', 'model.attention=dense', told=(flags, variables))
  (_, err), (_, silent) = finish_all(both)
  assert_close(metrics.read(tmp_path / 'run'), metrics.read(six_steps))
  assert 'step 6/6' in err and 'step ' not in silent
  assert len(json.loads((tmp_path / 'run' / 'revision.json').read_text())) == 1
  assert '2 x ' in json.loads((tmp_path / 'run' / 'revision.json').read_text())[0]['devices']
  assert stored(tmp_path / 'run')[0] == 6


@pytest.mark.slow
@pytest.mark.parametrize('tell', [kubernetes, slurm])
def test_two_processes_find_each_other_through_their_launcher(tell, six_steps, tmp_path):
  port = free_port(random.sample(range(61440, 65536), 9) if tell is slurm else (0,))
  finish_all(launch_two(tmp_path / 'run', told=(tell, tell), port=port))
  assert_close(metrics.read(tmp_path / 'run'), metrics.read(six_steps))


@pytest.mark.slow
def test_two_processes_start_again_beside_the_programs_of_their_first_start(six_steps, tmp_path):
  at_once = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  cache = {'POSJAX_CACHE': str(tmp_path / 'cache')} | at_once
  cached = lambda process, port: (flags(process, port)[0], cache)
  for run in ('first', 'second'):
    finish_all(launch_two(tmp_path / run, told=(cached, cached)))
    assert_close(metrics.read(tmp_path / run), metrics.read(six_steps))


@pytest.mark.slow
@pytest.mark.parametrize(
  'mesh', [('mesh.data=1', 'mesh.fsdp=8'), ('mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2')]
)
def test_two_processes_of_four_devices_share_one_model(mesh, tmp_path):
  rows = train_here(tmp_path / 'one', *LIKE, 'train.batch=8')
  finish_all(launch_two(tmp_path / 'two', 'train.batch=8', *mesh, devices=4))
  assert_close(metrics.read(tmp_path / 'two'), rows)
  assert stored(tmp_path / 'two')[0] == 6


@pytest.mark.slow
def test_two_processes_go_through_phases_of_one_text(tmp_path):
  longer = {'train': {'length': 64, 'batch': 2, 'steps': 4, 'warmup': 1}}
  phases = f'phases={(longer, {"sampling": {"name": "pose", "range": 99, "chunks": 3}})}'
  rows = train_here(tmp_path / 'one', *LIKE, phases)
  finish_all(launch_two(tmp_path / 'two', phases))
  assert_close(metrics.read(tmp_path / 'two'), rows)
  assert stored(tmp_path / 'two')[0] == 6 + 4 + 6


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_with_a_checkpoint(tmp_path):
  first, second = launch_two(tmp_path / 'run', 'train.steps=400')
  wait_for_step(first, 10)
  second.send_signal(signal.SIGTERM)
  (out, _), (_, err) = finish_all([first, second])
  assert 'Stopped. The same command resumes' in out and 'SIGTERM: saving' in err
  step, _, position = stored(tmp_path / 'run')
  assert 10 <= step < 400 and position['step'] == step


def test_without_a_launcher_there_is_one_process(monkeypatch):
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('SLURM_NTASKS', '1')  # an allocation of one task is one process
  monkeypatch.setenv('JOB_COMPLETION_INDEX', '3')  # as is each of a job that has no coordinator
  sharding.start()
  assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
  ('told', 'missing'),
  [
    ({'coordinator': 'a:1'}, '--processes, --process is missing'),
    ({'count': 2, 'index': 0}, '--coordinator is missing'),
    ({'coordinator': 'a:1', 'index': 0}, '--processes is missing'),
  ],
)
def test_half_of_the_story_is_refused_with_what_is_missing(told, missing, monkeypatch):
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(ValueError, match=rf'{missing}\. Give all three .*JAX_PROCESS_ID'):
    sharding.start(**told)


def test_variables_complete_flags(monkeypatch):
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  with pytest.raises(ValueError, match=r', --process is missing'):
    sharding.start(coordinator='a:1')
