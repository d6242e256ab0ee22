import hashlib
import lzma
import re
import sys

import pytest

from posjax.data import load, make_tokenizer, sotu


@pytest.fixture
def config(config):
  config.name = 'sotu'
  return config


def test_the_corpus_is_the_one_that_sotu_md_describes():
  described = sotu.CORPUS.with_name('SOTU.md').read_text()
  packed = sotu.CORPUS.read_bytes()
  assert re.search(r'sha256 of the file \| `(\w+)`', described)[1] == (
      hashlib.sha256(packed).hexdigest())
  assert f'| documents | {len(lzma.decompress(packed).splitlines())} |' in described


def test_it_is_read_through_tfds_without_tensorflow(config, cache):
  tokenizer = make_tokenizer('bytes')
  train, validation = (load(config, split, tokenizer) for split in ('train', 'validation'))
  assert (len(train), len(validation)) == (57, 15)
  assert len(train.tokens) - len(train) == 3_863_586
  assert train.names[:2] == ['1829-Jackson-1', '1831-Jackson-1']
  assert tokenizer.decode(train[0]).startswith('Fellow Citizens of the Senate and of the House')
  assert list(cache.glob('tfds/*/sotu/1.0.0/*.array_record-*'))
  assert 'tensorflow' not in sys.modules


def test_validation_documents_are_long_and_never_trained_on(config):
  tokenizer = make_tokenizer('bytes')
  train, validation = (load(config, split, tokenizer) for split in ('train', 'validation'))
  assert not set(train.names) & set(validation.names)
  assert min(len(document) for document in validation) > 32 * 1024
  assert sum(len(document) > 64 * 1024 for document in validation) == 11


def test_an_unknown_split_is_answered_with_those_there_are(config):
  with pytest.raises(ValueError, match="no split 'test', but train, validation"):
    load(config, 'test', make_tokenizer('bytes'))
