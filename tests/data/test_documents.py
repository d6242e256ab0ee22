import errno
import os
import threading

import numpy as np
import pytest

from posjax.data import documents, load, make_tokenizer


@pytest.fixture
def config(config, tmp_path):
  config.validation_fraction = 0.0
  for name in 'ab':
    (tmp_path / 'text' / f'{name}.txt').write_text(name * 3)
  return config


def find_files(cache):
  return list((cache / 'tokens').iterdir())


def test_documents_begin_with_bos_and_know_their_names(config):
  loaded = load(config, 'train', make_tokenizer('bytes'))
  assert [document.tolist() for document in loaded] == [[0, 97, 97, 97], [0, 98, 98, 98]]
  assert loaded[-1].dtype == np.int32
  assert loaded.names == ['a.txt', 'b.txt']
  assert loaded.offsets.tolist() == [0, 4, 8]
  assert loaded.tokens.dtype == np.uint8
  with pytest.raises(IndexError):
    loaded[2]


class Words:
  """A tokenizer of three words of three bytes."""
  bos, fingerprint = 7, 'words'

  def __init__(self, vocabulary):
    self.vocabulary = vocabulary

  def encode(self, text):
    return np.array([self.vocabulary - 1], np.int32)


@pytest.mark.parametrize('vocabulary, dtype', [
    (256, np.uint8), (257, np.uint16), (65536, np.uint16), (65537, np.int32)])
def test_tokens_take_the_narrowest_type_that_holds_them(config, vocabulary, dtype):
  loaded = load(config, 'train', Words(vocabulary))
  assert loaded.tokens.dtype == dtype
  assert loaded[1].tolist() == [7, vocabulary - 1]
  assert loaded.bytes_per_token == 3.0  # bos is not counted


def test_the_second_load_reads_no_text(config, monkeypatch):
  first = load(config, 'train', make_tokenizer('bytes'))
  monkeypatch.setattr(documents, 'make_cache', None)
  second = load(config, 'train', make_tokenizer('bytes'))
  assert second.fingerprint == first.fingerprint
  np.testing.assert_array_equal(second.tokens, first.tokens)


def test_changed_text_or_tokenizer_makes_another_cache(config, cache, tmp_path):
  first = load(config, 'train', make_tokenizer('bytes'))
  (tmp_path / 'text' / 'a.txt').write_text('longer')
  changed = load(config, 'train', make_tokenizer('bytes'))
  assert changed.fingerprint != first.fingerprint
  load(config, 'train', Words(10))
  assert len(find_files(cache)) == 3


def test_the_fingerprint_is_of_the_content_not_of_the_place(config, tmp_path):
  here = load(config, 'train', make_tokenizer('bytes'))
  (tmp_path / 'text').rename(tmp_path / 'elsewhere')
  config.glob = f'{tmp_path}/elsewhere/*.txt'
  assert load(config, 'train', make_tokenizer('bytes')).fingerprint == here.fingerprint


@pytest.mark.parametrize('damage', [
    lambda content: b'', lambda content: content[:20], lambda content: content[:-1],
    lambda content: content[:33] + b'?' + content[34:]])
def test_a_damaged_cache_is_made_again(config, cache, damage):
  first = load(config, 'train', make_tokenizer('bytes'))
  file, = find_files(cache)
  whole = file.read_bytes()
  file.write_bytes(damage(whole))
  assert load(config, 'train', make_tokenizer('bytes')).fingerprint == first.fingerprint
  assert file.read_bytes() == whole


def test_several_at_once_make_one_whole_cache(config, cache):
  loaded = []
  threads = [threading.Thread(target=lambda: loaded.append(
      load(config, 'train', make_tokenizer('bytes')))) for _ in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len({each.fingerprint for each in loaded}) == 1 and len(loaded) == 4
  assert len(find_files(cache)) == 1


def test_a_full_disk_is_named_and_nothing_is_left(config, cache, monkeypatch):
  def fail(*paths):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  monkeypatch.setattr(documents.os, 'replace', fail)
  with pytest.raises(OSError, match=r'cache/tokens is full.*Free space, or set --config'):
    load(config, 'train', make_tokenizer('bytes'))
  assert find_files(cache) == []


def test_an_interrupted_cache_leaves_nothing(config, cache):
  class Interrupted(Words):
    def encode(self, text):
      raise KeyboardInterrupt
  with pytest.raises(KeyboardInterrupt):
    load(config, 'train', Interrupted(10))
  assert find_files(cache) == []


def test_the_config_decides_where_the_cache_is(config, cache, tmp_path):
  config.cache_dir = str(tmp_path / 'own')
  load(config, 'train', make_tokenizer('bytes'))
  assert len(find_files(tmp_path / 'own')) == 1
  assert not cache.exists()
