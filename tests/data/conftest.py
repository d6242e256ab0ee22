import pytest
from ml_collections import ConfigDict


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Each test has a token cache of its own."""
  monkeypatch.setenv('POSJAX_CACHE', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


@pytest.fixture
def config(tmp_path):
  """config.data for the text files of `tmp_path`/text."""
  (tmp_path / 'text').mkdir()
  return ConfigDict({'name': 'text', 'glob': f'{tmp_path}/text/**/*.txt', 'data_dir': '',
                     'text_key': 'text', 'validation_fraction': 0.25, 'cache_dir': ''})
