import json
import os
import pathlib
import types

# Compiling is most of the work of these tests, so nothing is optimised: neither here nor in the
# processes that tests start. `XLA_FLAGS= python -m pytest` compiles as users do.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true '
  # In one piece: cut into 32 for as many threads, a program costs a third more.
  '--xla_cpu_parallel_codegen_split_count=1 '
  # A third of the time again with jax 0.10, without optimisations only; newer ones ignore it.
  '--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters',
)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')  # JAX's own is 1

import jax
import numpy as np
import pytest

FIXTURES = pathlib.Path(__file__).parent / 'fixtures'

# Products of float32 in float32 on every platform: accelerators would round to TF32 or bfloat16.
jax.config.update('jax_default_matmul_precision', 'highest')


@pytest.fixture(scope='session', autouse=True)
def caches(tmp_path_factory):
  """Token and compilation caches of this session, away from the user's."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('POSJAX_CACHE', str(tmp_path_factory.getbasetemp() / 'cache'))
    yield


@pytest.fixture(scope='session')
def six_steps(tmp_path_factory):
  """A run of e2e.SMOKE that reports each step. To read; who writes into it makes a copy."""
  from e2e import train_here

  workdir = tmp_path_factory.mktemp('six') / 'run'
  train_here(workdir, 'log.every=1')
  return workdir


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture
def tolerance():
  """Largest error of a sum of `terms` products of values around 1, as a function of its type.

  Rounding errors add up like a random walk; 8 is the largest of some ten thousand such walks
  (4 deviations), for a few roundings at each step (2).
  """
  return lambda terms, dtype=np.float32: 8 * terms**0.5 * float(jax.numpy.finfo(dtype).eps)


@pytest.fixture
def published():
  """Numbers of a reference implementation, by name of the file: published('t5-bias').cases.

  Lists become arrays, floats of the type in which the reference computed.
  """

  def load(name):
    content = json.loads((FIXTURES / f'{name}.json').read_text())
    dtype = content['about']['dtype']

    def array(value):
      if not isinstance(value, list):
        return value
      value_X = np.asarray(value)
      return value_X.astype(dtype) if value_X.dtype.kind == 'f' else value_X

    cases = [
      types.SimpleNamespace(**{key: array(value) for key, value in case.items()})
      for case in content['cases']
    ]
    return types.SimpleNamespace(about=content['about'], cases=cases)

  return load
