"""The embedded corpus as a TFDS data set: annual messages of US presidents, 1829 to 1900.

SOTU.md has the figures and where the texts come from. Splits are of whole documents: the years
that 5 divides are `validation`. Nothing is downloaded.
"""

import contextlib
import functools
import hashlib
import io
import json
import lzma
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets

from posjax.data import tfds

CORPUS = pathlib.Path(__file__).with_name('sotu.jsonl.xz')


class Sotu(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Annual messages of the presidents of the United States, 1829 to 1900."""

  VERSION = tensorflow_datasets.core.Version('1.0.0')
  # TFDS 4.9.10 looks for this file with importlib_resources, which it does not install.
  code_path = pathlib.Path(__file__)

  def _info(self) -> tensorflow_datasets.core.DatasetInfo:
    features = tensorflow_datasets.features
    return tensorflow_datasets.core.DatasetInfo(
        builder=self,
        description=self.__doc__,
        homepage='https://www.presidency.ucsb.edu/',
        license='Public domain',
        features=features.FeaturesDict({
            'id': features.Text(),  # year-president-number
            'year': features.Scalar(np.int32),
            'president': features.Text(),
            'text': features.Text(),
        }),
        disable_shuffling=True)  # the order of the years is worth keeping; the stream shuffles

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in ('train', 'validation')}

  def _generate_examples(self, split: str):
    with lzma.open(CORPUS, 'rt', encoding='utf-8') as lines:
      for index, line in enumerate(lines):
        document = json.loads(line)
        if (document['year'] % 5 == 0) == (split == 'validation'):
          yield index, document


def identify(data, split: str, cache_dir: pathlib.Path) -> list:
  """Returns what changes whenever the documents do."""
  return [fingerprint(), str(Sotu.VERSION), split]


def read(data, split: str, cache_dir: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Yields (id, text) of each document, and first prepares the data set if the cache lacks it."""
  builder = prepare(cache_dir / 'tfds' / fingerprint()[:12])
  for record in tfds.read_records(builder, split, ('id', 'text')):
    yield record['id'], record['text']


def prepare(data_dir: pathlib.Path) -> Sotu:
  """Writes the data set as array_record under `data_dir`, unless it is there."""
  build = functools.partial(Sotu, data_dir=data_dir, file_format='array_record')
  builder = build()
  # TFDS announces a download and draws bars; nothing is downloaded, and it takes a second.
  tensorflow_datasets.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except OSError:  # another process may have prepared it first: its records are the same
    builder = build()
    if not builder.is_prepared():
      raise
  finally:
    tensorflow_datasets.enable_progress_bar()
  return builder


def fingerprint() -> str:
  return hashlib.sha256(CORPUS.read_bytes()).hexdigest()
