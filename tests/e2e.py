"""What the end-to-end tests share: experiments of seconds, in this process or in their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # train.py and eval.py are programs, not modules of the package

import train  # noqa: E402
from posjax import data, metrics, run  # noqa: E402
from posjax.checkpoint import Checkpoints  # noqa: E402

SMOKE = 'configs/rope.py:smoke'


def words(workdir, *settings, config=SMOKE, evaluate=None) -> list[str]:
  """The command line of train.py; settings are KEY=VALUE without `--config.`."""
  overrides = [f'--config.{setting}' for setting in (f'eval={evaluate}', *settings)]
  return [f'--config={config}', f'--workdir={workdir}', *overrides]


def train_here(workdir, *settings, **kwargs) -> list[dict]:
  """Trains in this process; returns the lines of metrics.jsonl."""
  train.main(words(workdir, *settings, **kwargs))
  return metrics.read(workdir)


def launch(*command, devices=1, **environment) -> subprocess.Popen:
  """A Python process that sees `devices` simulated devices, and computes as this one does."""
  settings = {
    'JAX_PLATFORMS': 'cpu',
    'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} --xla_force_host_platform_device_count={devices}',
  }
  return subprocess.Popen(
    [sys.executable, *map(str, command)],
    cwd=ROOT,
    env=os.environ | settings | environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process: subprocess.Popen, status: int = 0) -> tuple[str, str]:
  """What the process printed and what it complained of, once it has ended with `status`."""
  return finish_all([process], status)[0]


def finish_all(processes: list[subprocess.Popen], status: int = 0) -> list[tuple[str, str]]:
  """The same of each; one that does not end in time ends none of the others' tests."""
  try:
    told = [process.communicate(timeout=300) for process in processes]
  finally:
    for process in processes:
      process.kill()
      process.communicate()
  assert [process.returncode for process in processes] == [status] * len(told), told
  return told


def wait_for_step(process: subprocess.Popen, step: int) -> None:
  """Returns as soon as the process reports `step` (with log.every=1, in the middle of the next)."""
  seen = ''
  for line in process.stderr:
    seen += line
    if line.startswith(f'step {step}/'):
      return
  raise AssertionError(f'ended before step {step}:\n{seen}')


MANY = """
import json, sys
sys.path.insert(0, '.')
import train
for words in json.loads(sys.argv[1]):
  train.main(words)
"""


def train_there(*experiments: list[str], devices: int) -> tuple[str, str]:
  """Trains one experiment after the other in one process of `devices` simulated devices."""
  return finish(launch('-c', MANY, json.dumps(experiments), devices=devices))


def stored(workdir) -> tuple[int, dict, dict]:
  """(step, parameters and optimizer state, data position) of a run's newest checkpoint."""
  config = run.load_config(workdir)
  config.mesh = {'data': -1, 'fsdp': 1, 'tensor': 1}  # wherever it was trained, read it here
  like = train.prepare(config).like
  with Checkpoints(Path(workdir) / 'checkpoints') as checkpoints:
    step, params, rest, position = checkpoints.restore(
      params_like=like.params, state_like={'optimizer': like.optimizer, 'step': like.step}
    )
  return step, {'params': params, **rest}, position


def assert_same_bits(a, b) -> None:
  """Two runs ended with the same step, parameters, optimizer state and data position."""
  (step_a, tree_a, position_a), (step_b, tree_b, position_b) = stored(a), stored(b)
  assert (step_a, position_a) == (step_b, position_b)
  jax.tree.map(np.testing.assert_array_equal, tree_a, tree_b)


def losses(rows: list[dict]) -> list[tuple[int, float]]:
  return [(row['step'], row['loss']) for row in rows]


def assert_close(rows: list[dict], reference: list[dict], tolerance: float = 1e-5) -> None:
  """Two runs report the same steps, and losses within `tolerance` of each other."""
  assert [row['step'] for row in rows] == [row['step'] for row in reference]
  for key in ('loss', 'gradient_norm'):
    ours, theirs = ([row[key] for row in lines] for lines in (rows, reference))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance, err_msg=key)


def corpus():
  """The embedded corpus as train.py reads it."""
  config = train.load(SMOKE)
  return data.load(config.data, 'train', data.make_tokenizer('bytes'))
