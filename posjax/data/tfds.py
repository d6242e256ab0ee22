"""Data sets that the user has prepared with TFDS: `data.name=tfds:NAME[/CONFIG][:VERSION]`.

Read without TensorFlow and without the code that made them, from what TFDS stores beside the
records: array_record (random access) and TFRECORD (scanned from the front). Without VERSION the
newest prepared one is read. Splits are TFDS's, parts included: 'train[:95%]'.
"""

import itertools
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets

from posjax.data import tfrecord

INFO = 'dataset_info.json'  # the file that marks a prepared version


def identify(data, split: str, cache_dir: pathlib.Path) -> list:
  """Returns what changes whenever the documents do: sizes and times of change of all shards."""
  folder = find_folder(data)
  parts = select_parts(tensorflow_datasets.builder_from_directory(folder), split)
  files = [folder / INFO, *dict.fromkeys(pathlib.Path(part.filename) for part in parts)]
  stats = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
  return [stats, split, data.text_key]


def read(data, split: str, cache_dir: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields (name, text) of each example; the name is split:index, as examples have none."""
  builder = tensorflow_datasets.builder_from_directory(find_folder(data))
  for index, record in enumerate(read_records(builder, split, (data.text_key,))):
    yield f'{split}:{index}', record[data.text_key]


def find_folder(data) -> pathlib.Path:
  """Returns the folder of the prepared version. Raises ValueError if there is none."""
  name = data.name.removeprefix('tfds:')
  root = data.data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  folder = pathlib.Path(root).expanduser() / name.replace(':', '/')
  prepared = [path.parent for path in (*folder.glob(INFO), *folder.glob(f'*/{INFO}'))]
  if prepared:
    return max(prepared, key=parse_version)
  configs = sorted({path.parent.parent.name for path in folder.glob(f'*/*/{INFO}')})
  if configs:
    raise ValueError(f'{folder} has the configs {", ".join(configs)}, and none was named. '
                     f'Use --config.data.name=tfds:{name}/{configs[0]}.')
  raise ValueError(
      f'{folder} holds no prepared data set. Prepare it once, where TensorFlow is installed if it '
      f"must be downloaded: tfds.builder('{name}', data_dir='{root}', file_format='array_record')"
      f'.download_and_prepare(); or set --config.data.data_dir to where it is.')


def parse_version(folder: pathlib.Path) -> list[int]:
  return [int(part) if part.isdigit() else 0 for part in folder.name.split('.')]


def select_parts(builder, split: str) -> list:
  """Returns the stretches of shards that make up a split. Raises ValueError if it is missing."""
  try:
    return builder.info.splits[split].file_instructions
  except (KeyError, ValueError, AssertionError) as error:
    raise ValueError(
        f"{builder.info.full_name} has no split '{split}', but {', '.join(builder.info.splits)}. "
        f"Set --config.data.split and --config.data.validation_split to these or to parts of "
        f"them, e.g. 'train[:95%]' and 'train[95%:]'.") from error


def read_records(builder, split: str, keys: tuple[str, ...]) -> Iterator[dict[str, str]]:
  """Yields the named text features of each example; no other feature is decoded.

  Raises ValueError for a missing feature, one that is not text, and text that is not UTF-8.
  """
  features = builder.info.features
  for key in keys:
    if key not in features or features[key].shape != () or np.dtype(features[key].np_dtype) != 'O':
      raise ValueError(
          f"{builder.info.full_name} has no text feature '{key}', but "
          f"{', '.join(sorted(features))}. Set --config.data.text_key to one that is text.")
  wanted = tensorflow_datasets.features.FeaturesDict({key: features[key] for key in keys})
  for index, raw in enumerate(read_raw(builder, split)):
    record = wanted.deserialize_example_np(raw)
    try:
      yield {key: record[key].decode() for key in keys}
    except UnicodeDecodeError as error:
      raise ValueError(
          f'{builder.info.full_name}, split {split}, example {index} is not UTF-8: byte '
          f'{error.object[error.start]:#04x} at offset {error.start}. Choose another '
          f'--config.data.text_key, or prepare the data set with its text as UTF-8.') from error


def read_raw(builder, split: str) -> Iterator[bytes]:
  """Yields the serialised examples of a split, in order. Raises ValueError for damaged files."""
  parts = select_parts(builder, split)
  if builder.info.file_format == tensorflow_datasets.core.FileFormat.TFRECORD:
    for part in parts:
      records = tfrecord.read_records(part.filename)
      yield from itertools.islice(records, part.skip, part.skip + part.take)
    return
  try:
    yield from builder.as_data_source(
        split, deserialize_method=tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES)
  except RuntimeError as error:  # array_record's, for all that is wrong with a file
    raise ValueError(f'The records in {builder.data_path} cannot be read: {error}. Delete that '
                     'folder and prepare the data set again (sotu prepares itself).') from error
