"""The user's own text files: `data.name=text`, one document a file.

`data.validation_fraction` of the files are the split `validation`, the others `train`. A file's
side depends on the sha256 of its name alone, so that it is the same on every machine, and adding
a file moves at most a few others.
"""

import glob
import hashlib
import os
import pathlib
from collections.abc import Iterator

SPLITS = ('train', 'validation')


def identify(data, split: str, cache_dir: pathlib.Path) -> list:
  """Returns what changes whenever the documents do: names, sizes and times of change."""
  files = select_files(data, split)
  stats = [path.stat() for path in files.values()]
  return [[name, str(path), stat.st_size, stat.st_mtime_ns]
          for (name, path), stat in zip(files.items(), stats, strict=True)]


def read(data, split: str, cache_dir: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of each file. Raises ValueError for one that is not UTF-8."""
  for name, path in select_files(data, split).items():
    try:
      yield name, path.read_bytes().decode()
    except UnicodeDecodeError as error:
      raise ValueError(
          f'{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset {error.start}. '
          f'Convert it (iconv -f latin1 -t utf-8, if it is Latin-1), or narrow '
          f'--config.data.glob.') from error


def select_files(data, split: str) -> dict[str, pathlib.Path]:
  """Returns the files of a split by name: the path below the fixed part of the glob.

  validation = the round(validation_fraction * files) files of smallest sha256(name), at least 1.

  Raises ValueError for an unknown split, an empty file, or too few files to split.
  """
  if split not in SPLITS:
    raise ValueError(f"Text files have no split '{split}'. Use one of {', '.join(SPLITS)}.")
  files, fraction = find_files(data.glob), data.validation_fraction
  if not 0 <= fraction < 1:
    raise ValueError(f'A validation fraction of {fraction} is not a share of the documents. '
                     'Use 0 <= --config.data.validation_fraction < 1.')
  kept = max(1, round(fraction * len(files))) if fraction else 0
  if kept == len(files) or (split == 'validation' and not kept):
    raise ValueError(
        f"{len(files)} files of '{data.glob}' cannot be split with a validation fraction of "
        f"{fraction}: one split has no file. Add files, or change "
        f"--config.data.validation_fraction (0 trains on all and evaluates on 'train').")
  ranked = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
  validation = set(ranked[:kept])
  return {name: path for name, path in files.items()
          if (name in validation) == (split == 'validation')}


def find_files(pattern: str) -> dict[str, pathlib.Path]:
  """Returns the files that match, in order of name. Raises ValueError for none and empty ones."""
  expanded = os.path.expanduser(pattern)
  paths = [path for path in glob.glob(expanded, recursive=True) if os.path.isfile(path)]
  if not paths:
    raise ValueError(f"No file matches the glob '{pattern}'. Set --config.data.glob to your text "
                     "files in quotes, e.g. '~/books/**/*.txt' (** enters folders).")
  empty = sorted(path for path in paths if not os.path.getsize(path))
  if empty:
    raise ValueError(f'{len(empty)} of {len(paths)} files are empty, the first is {empty[0]}. '
                     'Remove them, or narrow --config.data.glob.')
  root = find_root(expanded)
  return {os.path.relpath(path, root): pathlib.Path(path) for path in sorted(paths)}


def find_root(pattern: str) -> str:
  """Returns the folder above the first wildcard: '/a/b' of '/a/b/**/c*.txt'."""
  folder = os.path.dirname(pattern)
  while glob.has_magic(folder):
    folder = os.path.dirname(folder)
  return folder or '.'
