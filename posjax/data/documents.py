"""Documents as tokens: read once, tokenised once, memory-mapped from a cache ever after.

A cache is one file: sha256 of what follows (32 bytes) | tokens | offsets (int64) | JSON | length
of the JSON (8 bytes). It appears under its name only when it is whole (rename), so that any
number of processes may make it at once. Opening reads it through to compare the sum, about a
second a gigabyte: a damaged cache is found there, and made again, instead of in a loss.
"""

import array
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterable

import numpy as np

from posjax.data import sotu, tasks, text, tfds
from posjax.data.tokenizers import Tokenizer

FORMAT = 1  # of the cache file; part of its key
DIGEST, LENGTH = 32, 8  # bytes at the front and at the end


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
  """Tokenised documents, each of which begins with bos. Memory grows with what is touched.

  tokens: all documents, one after the other; uint8, uint16 or int32, whichever holds the ids.
  offsets: where each begins, and the end [len + 1], in tokens.
  names: of the documents.
  bytes_per_token: UTF-8 bytes / tokens without bos; bits per byte = bits per token / this.
  fingerprint: sha256 of tokens, offsets, names and tokenizer; the same on every machine.
  """

  tokens: np.ndarray
  offsets: np.ndarray
  names: list[str]
  bytes_per_token: float
  fingerprint: str

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, index: int) -> np.ndarray:
    """Returns the tokens of one document, bos first, int32 [L]."""
    index = range(len(self))[index]  # IndexError, and negative indices
    return self.tokens[self.offsets[index]:self.offsets[index + 1]].astype(np.int32)


def load(data, split: str, tokenizer: Tokenizer) -> Documents | tasks.Examples:
  """Returns the documents of a split of `config.data`, from the cache or by making it; of a task,
  which has neither splits nor caches, its examples.

  The cache is in data.cache_dir, or $POSJAX_CACHE, or ~/.cache/posjax. Its key is what
  identifies the source (the embedded file's sha256; paths, sizes and times of change of others)
  and the tokenizer's fingerprint.

  Raises ValueError for a source that is missing, empty or not text, OSError for a full disk.
  """
  if data.name.startswith('task:'):
    return read_task(data, tokenizer)
  source = find_source(data.name)
  cache_dir = pathlib.Path(
      data.cache_dir or os.environ.get('POSJAX_CACHE') or '~/.cache/posjax').expanduser()
  identity = [FORMAT, data.name, source.identify(data, split, cache_dir), tokenizer.fingerprint]
  key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
  path = cache_dir / 'tokens' / f"{data.name.split(':')[0]}-{key[:24]}"
  documents = open_cache(path)
  if documents is None:
    make_cache(path, source.read(data, split, cache_dir), tokenizer)
    documents = open_cache(path)
    assert documents is not None, path
  return documents


def read_task(data, tokenizer: Tokenizer) -> tasks.Examples:
  """Returns the examples of data.name = 'task:NAME', with the settings of `data.task`."""
  task = tasks.make(data.name.removeprefix('task:'), **data.task)
  if task.vocabulary > tokenizer.vocabulary:
    raise ValueError(
        f'{task} has ids up to {task.vocabulary - 1}, but the tokenizer has '
        f'{tokenizer.vocabulary}. Lower --config.data.task.symbols by '
        f'{task.vocabulary - tokenizer.vocabulary}, or use a --config.data.tokenizer of more ids.')
  return tasks.Examples(task=task, size=data.size)


def find_source(name: str):
  """Returns the module that reads `data.name`."""
  if name.startswith('tfds:'):
    return tfds
  sources = {'sotu': sotu, 'text': text}
  if name not in sources:
    raise ValueError(f"There is no data '{name}'. Set --config.data.name to 'sotu' (embedded), "
                     "'text' (your files), 'tfds:NAME[/CONFIG]' or 'task:NAME'.")
  return sources[name]


def open_cache(path: pathlib.Path) -> Documents | None:
  """Returns the documents, or None where the cache is missing or damaged."""
  try:
    with path.open('rb') as file:
      digest = file.read(DIGEST)
      if hashlib.file_digest(file, 'sha256').digest() != digest:
        return None
  except FileNotFoundError:
    return None
  raw = np.asarray(np.memmap(path, np.uint8, 'r'))  # still mapped, as a plain array
  tail = len(raw) - LENGTH - int(raw[-LENGTH:].view('<i8')[0])
  header = json.loads(raw[tail:-LENGTH].tobytes())
  dtype = np.dtype(header['dtype'])
  offsets = raw[tail - 8 * (len(header['names']) + 1):tail].view('<i8')
  return Documents(
      tokens=raw[DIGEST:DIGEST + int(offsets[-1]) * dtype.itemsize].view(dtype),
      offsets=offsets,
      names=header['names'],
      bytes_per_token=header['bytes_per_token'],
      fingerprint=digest.hex())


def make_cache(path: pathlib.Path, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer):
  """Writes the cache under another name and renames it; leaves nothing behind if it fails."""
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = path.with_name(f'{path.name}.{uuid.uuid4().hex}')
  try:
    with unfinished.open('xb+') as file:
      write_cache(file, documents, tokenizer)
    os.replace(unfinished, path)
  except OSError as error:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
      raise OSError(error.errno, f'The disk of {path.parent} is full: the token cache does not '
                    'fit. Free space, or set --config.data.cache_dir (or POSJAX_CACHE) to another '
                    'disk.') from error
    raise
  finally:
    unfinished.unlink(missing_ok=True)


def write_cache(file, documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> None:
  """Writes one document after the other: memory grows with the longest one and the names."""
  dtype = np.dtype('u1' if tokenizer.vocabulary <= 1 << 8 else
                   '<u2' if tokenizer.vocabulary <= 1 << 16 else '<i4')
  names, offsets, text_bytes = [], array.array('q', [0]), 0
  file.write(bytes(DIGEST))
  for name, document in documents:
    try:
      ids = tokenizer.encode(document)
    except ValueError as error:
      raise ValueError(f'{name}: {error}') from error
    file.write(np.concatenate([[tokenizer.bos], ids]).astype(dtype).tobytes())
    names.append(name)
    offsets.append(offsets[-1] + 1 + len(ids))
    text_bytes += len(document.encode())
  tokens = offsets[-1] - len(names)
  if not tokens:
    raise ValueError(f'{len(names)} documents hold no text. '
                     'Choose another --config.data.split or source.')
  file.write(bytes(-file.tell() % 8))  # offsets must be aligned
  file.write(np.array(offsets, '<i8').tobytes())
  header = json.dumps({'names': names, 'dtype': dtype.str, 'bytes_per_token': text_bytes / tokens,
                       'tokenizer': tokenizer.fingerprint}).encode()
  file.write(header + len(header).to_bytes(LENGTH, 'little'))
  file.seek(DIGEST)
  digest = hashlib.file_digest(file, 'sha256').digest()
  file.seek(0)
  file.write(digest)
