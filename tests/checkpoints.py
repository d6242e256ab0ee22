"""Tiny checkpoints that a name and a shape are enough to make: the same numbers everywhere."""

import json
import math
import zlib

import numpy as np


def numbers(name, shape):
  """float32 numbers of a tensor: multiples of 1/128 within 1/2 of 0, or of 1 for what scales.

  Exact in bfloat16 and float16, and the same with any version of NumPy: a hash (splitmix64).
  """
  x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
  with np.errstate(over='ignore'):
    x *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
      x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
  steps = (x >> np.uint64(57)).astype(np.float32) - 64
  scales = len(shape) == 1 and name.endswith('weight')
  return (scales + steps / 128).astype(np.float32).reshape(shape)


def ids(rows, length, vocabulary):
  return (
    np.arange(rows)[:, None] * 7 + np.arange(length) ** 2 * 5 + np.arange(length)
  ) % vocabulary


def write(directory, config, shapes, *, dtype='F32', **more):
  """A directory with config.json and model.safetensors."""
  from posjax.interop import files  # not where numbers alone are made, without JAX

  directory.mkdir(exist_ok=True)
  (directory / 'config.json').write_text(json.dumps(config))
  kind = files.DTYPES[dtype]
  tensors = {name: numbers(name, shape).astype(kind) for name, shape in shapes.items()}
  files.write_file(directory / files.WEIGHTS, tensors | more)
  return directory
