import pytest

from posjax.data import load, make_tokenizer, text


def write(config, contents):
  folder = text.find_root(config.glob)
  for name, content in contents.items():
    path = text.pathlib.Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_each_file_is_a_document_of_one_split(config):
  write(config, {f'{i % 3}/{i}.txt': b'text %d\r\n' % i for i in range(8)})
  tokenizer = make_tokenizer('bytes')
  train, validation = (load(config, split, tokenizer) for split in ('train', 'validation'))
  assert len(validation) == 2  # round(0.25 * 8)
  assert sorted(train.names + validation.names) == sorted(f'{i % 3}/{i}.txt' for i in range(8))
  number = train.names[0].split('/')[1].removesuffix('.txt')
  assert tokenizer.decode(train[0]) == f'text {number}\r\n'  # as it is on disk


def test_the_split_is_the_same_in_another_folder(config, tmp_path):
  write(config, {f'{i}.txt': b'a' for i in range(9)})
  here = list(text.select_files(config, 'validation'))
  (tmp_path / 'text').rename(tmp_path / 'elsewhere')
  config.glob = f'{tmp_path}/elsewhere/*.txt'
  assert list(text.select_files(config, 'validation')) == here


def test_a_home_folder_is_expanded(config, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  write(config, {'a.txt': b'a', 'b.txt': b'b'})
  config.glob = '~/text/*.txt'
  assert len(load(config, 'train', make_tokenizer('bytes'))) == 1


def test_a_fraction_of_zero_trains_on_everything(config):
  write(config, {'a.txt': b'a'})
  config.validation_fraction = 0.0
  assert load(config, 'train', make_tokenizer('bytes')).names == ['a.txt']
  with pytest.raises(ValueError, match=r'1 files of .* cannot be split .* of 0\.0'):
    load(config, 'validation', make_tokenizer('bytes'))


@pytest.mark.parametrize('contents, message', [
    ({}, r"No file matches the glob '.*text/\*\*/\*\.txt'\. Set --config\.data\.glob"),
    ({'a.txt': b'a', 'b.txt': b''}, r'1 of 2 files are empty, the first is .*b\.txt\. Remove'),
    ({'a.txt': b'a'}, r'1 files of .* cannot be split .* of 0\.25: one split has no file\. Add'),
    ({'a.txt': b'caf\xe9', 'b.txt': b'caf\xe9'}, r'txt is not UTF-8: byte 0xe9 at offset 3\. Conv'),
    ({'a.txt': b'ab\0c', 'b.txt': b'ab\0c'}, r'\.txt: The text has a NUL byte at offset 2'),
])
def test_files_that_cannot_be_used_are_named_with_a_way_out(config, contents, message):
  write(config, contents)
  with pytest.raises(ValueError, match=message):
    load(config, 'train', make_tokenizer('bytes'))


def test_an_unknown_split_or_source_or_fraction_is_refused(config):
  write(config, {'a.txt': b'a', 'b.txt': b'b'})
  tokenizer = make_tokenizer('bytes')
  with pytest.raises(ValueError, match=r"no split 'test'. Use one of train, validation"):
    load(config, 'test', tokenizer)
  config.validation_fraction = 1.0
  with pytest.raises(ValueError, match=r'validation fraction of 1.0 is not a share'):
    load(config, 'train', tokenizer)
  config.name = 'c4'
  with pytest.raises(ValueError, match=r"no data 'c4'. Set --config.data.name to 'sotu'"):
    load(config, 'train', tokenizer)
