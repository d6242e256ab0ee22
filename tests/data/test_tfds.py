import json
import pathlib
import shutil
import sys

import pytest
import tensorflow_datasets
from tensorboardX.record_writer import RecordWriter

from posjax.data import load, make_tokenizer, tfrecord

TEXTS = ['first', 'zweite: ä', 'third', 'fourth', 'fifth']


class Tiny(tensorflow_datasets.core.GeneratorBasedBuilder):
  """Five documents to train on and one to test."""

  VERSION = tensorflow_datasets.core.Version('1.0.0')

  def _info(self):
    features = tensorflow_datasets.features
    return tensorflow_datasets.core.DatasetInfo(
        builder=self,
        features=features.FeaturesDict({'text': features.Text(), 'latin': features.Text(),
                                        'words': features.Sequence(features.Text())}),
        disable_shuffling=True)

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(TEXTS), 'test': self._generate_examples(['tested'])}

  def _generate_examples(self, texts):
    for index, text in enumerate(texts):
      yield index, {'text': text, 'latin': text.encode('latin-1'), 'words': text.split()}


def convert_to_tfrecord(folder):
  """Writes the training split as two TFRECORD shards; tensorboardX knows the framing by itself."""
  examples = list(tensorflow_datasets.builder_from_directory(folder).as_data_source(
      'train', deserialize_method=tensorflow_datasets.decode.DeserializeMethod.RAW_BYTES))
  for shard, part in enumerate((examples[:2], examples[2:])):
    writer = RecordWriter(str(folder / f'tiny-train.tfrecord-0000{shard}-of-00002'))
    for example in part:
      writer.write(example)
    writer.close()
  info = json.loads((folder / 'dataset_info.json').read_text())
  info['fileFormat'] = 'tfrecord'
  info['splits'] = [split for split in info['splits'] if split['name'] == 'train']
  info['splits'][0]['shardLengths'] = ['2', '3']
  (folder / 'dataset_info.json').write_text(json.dumps(info))
  for file in folder.glob('*.array_record*'):
    file.unlink()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  data_dir = tmp_path_factory.mktemp('prepared')
  Tiny(data_dir=data_dir, file_format='array_record').download_and_prepare()
  return data_dir


@pytest.fixture
def config(config, prepared, tmp_path):
  shutil.copytree(prepared, tmp_path / 'prepared')
  config.name, config.data_dir = 'tfds:tiny', str(tmp_path / 'prepared')
  return config


@pytest.fixture(params=['array_record', 'tfrecord'])
def both(request, config):
  """The config, for the same data set in either format."""
  if request.param == 'tfrecord':
    convert_to_tfrecord(pathlib.Path(config.data_dir, 'tiny', '1.0.0'))
  return config


def read_texts(config, split):
  tokenizer = make_tokenizer('bytes')
  return [tokenizer.decode(document) for document in load(config, split, tokenizer)]


def test_a_prepared_data_set_is_read_without_tensorflow(both):
  assert read_texts(both, 'train') == TEXTS
  assert 'tensorflow' not in sys.modules


def test_parts_of_splits_are_read(both):
  assert read_texts(both, 'train[1:3]') == TEXTS[1:3]  # across the shards of the TFRECORD form
  assert read_texts(both, 'train[-20%:]') == TEXTS[-1:]


def test_the_name_says_which_example(both):
  assert load(both, 'train[:2]', make_tokenizer('bytes')).names == ['train[:2]:0', 'train[:2]:1']


def test_the_newest_version_is_read_unless_one_is_named(config):
  root = pathlib.Path(config.data_dir, 'tiny')
  shutil.copytree(root / '1.0.0', root / '10.0.0')
  shutil.copytree(root / '1.0.0', root / '9.0.0')
  convert_to_tfrecord(root / '10.0.0')
  with pytest.raises(ValueError, match=r"has no split 'test', but train\. Set"):
    read_texts(config, 'test')
  config.name = 'tfds:tiny:9.0.0'
  assert read_texts(config, 'test') == ['tested']


def test_configs_are_listed_when_none_is_named(config):
  root = pathlib.Path(config.data_dir, 'tiny')
  (root / '1.0.0').rename(root / 'moved')
  (root / 'english').mkdir()
  (root / 'moved').rename(root / 'english' / '1.0.0')
  with pytest.raises(ValueError, match=r'has the configs english.*=tfds:tiny/english'):
    read_texts(config, 'test')
  config.name = 'tfds:tiny/english'
  assert read_texts(config, 'test') == ['tested']


def test_a_data_set_that_is_not_prepared_is_answered_with_how_to_prepare_it(config):
  config.name = 'tfds:wikipedia/en'
  with pytest.raises(ValueError, match=r"no prepared data set.*tfds\.builder\('wikipedia/en'.*"
                                       r"array_record'\)\.download_and_prepare\(\)"):
    read_texts(config, 'train')


def test_missing_splits_and_features_are_answered_with_those_there_are(both):
  with pytest.raises(ValueError, match=r"no split 'validation', but .*train.*'train\[:95%\]'"):
    read_texts(both, 'validation')
  for key in ('document', 'words'):  # the second exists and is a sequence
    both.text_key = key
    with pytest.raises(ValueError, match=f"no text feature '{key}', but latin, text, words"):
      read_texts(both, 'train')


def test_text_that_is_not_utf8_is_named(both):
  both.text_key = 'latin'
  with pytest.raises(ValueError, match='train, example 1 is not UTF-8: byte 0xe4 at offset 8'):
    read_texts(both, 'train')


def test_a_damaged_array_record_is_named_with_a_way_out(config):
  shard, = pathlib.Path(config.data_dir).glob('**/tiny-train*')
  shard.write_bytes(shard.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'tiny/1\.0\.0 cannot be read: .*Delete that folder'):
    read_texts(config, 'train')


@pytest.mark.parametrize('data, crc', [
    (b'123456789', 0xe3069283), (bytes(32), 0x8a9136aa), (b'\xff' * 32, 0x62a8ab43),
    (bytes(range(32)), 0x46dd794e)])
def test_crc32c_has_the_values_of_rfc_3720(data, crc):
  assert tfrecord.crc32c(data) == crc


@pytest.mark.parametrize('damage, start', [
    (lambda content: content[:-1], 21), (lambda content: content[:26], 21),
    (lambda content: b'\0' + content[1:], 0), (lambda content: content + b'?', 41)])
def test_a_damaged_tfrecord_is_noticed_where_it_is(tmp_path, damage, start):
  path = tmp_path / 'a.tfrecord'
  writer = RecordWriter(str(path))
  writer.write(b'hello')  # 12 + 5 + 4 bytes
  writer.write(b'you!')
  writer.close()
  assert list(tfrecord.read_records(path)) == [b'hello', b'you!']
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match=f'cut or damaged: no whole record at byte {start}'):
    list(tfrecord.read_records(path))
