import dataclasses

import jax
import numpy as np

from posjax import positions
from posjax.extension import Spectrum


def test_there_is_nothing_to_learn_extend_or_set():
  scheme = positions.make('none')
  dims = positions.Dims(width=16, heads=4, kv_heads=2, head_width=4, length=8)
  assert scheme.parameters(jax.random.key(0), dims) == {}
  assert scheme.spectrum(dims) == Spectrum(temperature=1.0)
  assert dataclasses.fields(scheme) == ()
  assert scheme.capacity(scheme.spectrum(dims), dims) == np.inf


def test_no_hook_is_touched_so_that_fused_kernels_run_it():
  scheme = positions.make('none')
  hooks = {'embed', 'query', 'key', 'features', 'score', 'walk', 'read', 'columns'}
  assert vars(type(scheme)).keys().isdisjoint(hooks)
  assert not scheme.scores
