"""Safetensors: names, shapes and types of a checkpoint at once, its numbers when they are needed.

A file is eight bytes, the length N of a JSON header, little-endian; the header, {name: {dtype,
shape, data_offsets}}; and the numbers, without gaps. Files are memory-mapped: opening a checkpoint
reads its headers only, and everything they promise is checked before any number is.
"""

import dataclasses
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
  'F64': np.dtype('<f8'), 'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'I64': np.dtype('<i8'), 'I32': np.dtype('<i4'), 'I16': np.dtype('<i2'), 'I8': np.dtype('i1'),
  'U8': np.dtype('u1'), 'BOOL': np.dtype('?'),
}  # fmt: skip
FLOATS = ('F64', 'F32', 'F16', 'BF16')
PICKLES = ('.bin', '.pt', '.pth', '.pkl', '.pickle', '.ckpt')
OTHERS = ('.h5', '.msgpack', '.npz', '.onnx')
WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
  """Where a tensor's numbers are. `array` maps them; nothing is read before they are used."""

  file: Path
  dtype: str
  shape: tuple[int, ...]
  begin: int

  def array(self) -> np.ndarray:
    if 0 in self.shape:
      return np.zeros(self.shape, DTYPES[self.dtype])
    return np.memmap(self.file, DTYPES[self.dtype], 'r', self.begin, self.shape)

  def part(self, e: int) -> np.ndarray:
    """One of those that are stacked along the first axis."""
    return self.array()[e]


def open_checkpoint(directory: Path) -> dict[str, Tensor]:
  """The tensors of a directory with model.safetensors, or with shards and their index.

  Raises ValueError where there are none, where a file is missing, cut short or not what it says, or
  where shards and index disagree.
  """
  if (directory / WEIGHTS).is_file():
    return open_file(directory / WEIGHTS)
  if not (directory / INDEX).is_file():
    raise ValueError(_no_weights(directory))
  shard_of = read_json(directory / INDEX).get('weight_map')
  if not isinstance(shard_of, dict) or not all(isinstance(x, str) for x in shard_of.values()):
    raise ValueError(f"'{directory / INDEX}' has no weight_map of names to files. Copy it again.")
  tensors: dict[str, Tensor] = {}
  for shard in sorted(set(shard_of.values())):
    if Path(shard).name != shard or not shard.endswith('.safetensors'):
      raise ValueError(f"'{directory / INDEX}' names '{shard}', which is no file beside it.")
    if not (directory / shard).is_file():
      raise ValueError(f"'{directory / shard}' is missing, which {INDEX} names. Copy it again.")
    found = open_file(directory / shard)
    for name in sorted(found.keys() ^ {name for name, file in shard_of.items() if file == shard}):
      where = 'the file, but not the index,' if name in found else 'the index, but not the file,'
      raise ValueError(f"'{directory / shard}' and {INDEX} disagree: {where} has '{name}'.")
    tensors |= found
  return tensors


def open_file(file: Path) -> dict[str, Tensor]:
  """The tensors of one file. Raises ValueError where it is not whole, or not safetensors."""
  size = file.stat().st_size
  wrong = lambda what: ValueError(f"'{file}' {what} Copy it again.")
  with open(file, 'rb') as opened:
    start = opened.read(8)
    length = struct.unpack('<Q', start)[0] if len(start) == 8 else 0
    if not 2 <= length <= size - 8:
      raise wrong(f'is cut short, or no safetensors: its {size} bytes hold no whole header.')
    try:
      header = json.loads(opened.read(length))
      entries = sorted(
        ((name, entry) for name, entry in header.items() if name != '__metadata__'),
        key=lambda pair: pair[1]['data_offsets'],
      )
      at = 0
      tensors = {}
      for name, entry in entries:
        dtype, shape, (begin, end) = entry['dtype'], entry['shape'], entry['data_offsets']
        if dtype not in DTYPES:
          raise ValueError(
            f"'{file}' holds '{name}' as {dtype}, which posjax does not read. Convert it to one of "
            f'{", ".join(FLOATS)}.'
          )
        if not all(isinstance(x, int) and x >= 0 for x in shape) or begin != at:
          raise wrong(f"describes '{name}' as {entry}, with a gap or no shape.")
        if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
          raise wrong(f"describes '{name}' as {entry}, which do not fit each other.")
        at = end
        tensors[name] = Tensor(file=file, dtype=dtype, shape=tuple(shape), begin=8 + length + begin)
    except (
      TypeError, KeyError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError,
    ) as error:  # fmt: skip
      raise wrong(f'has a header that is not that of safetensors ({error!r}).') from None
  if 8 + length + at != size:
    raise wrong(f'has {size} bytes, but its header describes {8 + length + at}.')
  return tensors


def write_file(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
  """Writes arrays, float32 or of another type of DTYPES, as one file."""
  names = {dtype: name for name, dtype in DTYPES.items()}
  header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}  # transformers asks for it
  at = 0
  for name, array in tensors.items():
    header[name] = {
      'dtype': names[array.dtype],
      'shape': list(array.shape),
      'data_offsets': [at, at + array.nbytes],
    }
    at += array.nbytes
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)  # so that numbers are aligned
  partial = file.with_name(file.name + '.partial')
  with open(partial, 'wb') as opened:
    opened.write(struct.pack('<Q', len(text)) + text)
    for array in tensors.values():
      opened.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    opened.flush()
    os.fsync(opened.fileno())
  partial.replace(file)


def read_json(file: Path) -> dict[str, Any]:
  """A JSON object. Raises ValueError where the file holds something else."""
  try:
    content = json.loads(file.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    raise ValueError(f"There is no '{file}'. Name a directory that holds a checkpoint.") from None
  except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"'{file}' is no JSON: {error}. Copy it again.") from None
  if not isinstance(content, dict):
    raise ValueError(f"'{file}' holds no JSON object. Copy it again.")
  return content


def _no_weights(directory: Path) -> str:
  names = sorted(path.name for path in directory.iterdir())
  pickles = [name for name in names if name.endswith(PICKLES)]
  if pickles:
    return (
      f"'{directory}' holds {', '.join(pickles[:3])}: pickled, which runs code when it is read, so "
      'posjax does not. Convert it to safetensors where you trust it.'
    )
  others = [name for name in names if name.endswith((*OTHERS, '.safetensors'))]
  found = f' It holds {", ".join(others[:3])}.' if others else ''
  return f"'{directory}' has neither {WEIGHTS} nor {INDEX}.{found}"
