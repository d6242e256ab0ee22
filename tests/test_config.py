"""Configs load by path, and every mistake in one names its way out."""

import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from posjax.config import (
  ABSENT,
  HOUSE,
  check_keys,
  difference,
  flatten,
  from_json,
  load,
  nearest,
  to_json,
)

BASE = 'configs/base.py'
SMALL = """
from ml_collections import ConfigDict

def get_config(variant=''):
  return ConfigDict(dict(count=1, rate=0.5, on=True, word='a', pair=(1, 2), free=None,
                         position=dict(name='rope', theta=1e4), part=dict(size=3)))
"""


@pytest.fixture
def small(tmp_path):
  path = tmp_path / 'small.py'
  path.write_text(SMALL)
  return lambda *words: load(str(path), [f'--config.{word}' for word in words], base='')


def test_the_variant_goes_to_the_file_and_overrides_come_after():
  config = load(BASE + ':smoke', ['--config.train.steps=10'])
  assert config.train.steps == 10
  assert config.train.length == 32  # smoke's


def test_a_config_loads_from_any_directory_and_finds_the_base(tmp_path, monkeypatch):
  (tmp_path / 'mine.py').write_text(
    'from configs import base\n'
    'def get_config(variant=""):\n'
    '  config = base.get_config()\n'
    '  config.train.steps = 7\n'
    '  return base.experiment(config, variant)\n'
  )
  monkeypatch.chdir(tmp_path)
  assert load('mine.py').train.steps == 7
  assert load(BASE).train.steps == 1000


def test_the_base_is_ours_even_where_another_package_has_its_name(tmp_path):
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs' / '__init__.py').write_text('raise RuntimeError("not this one")')
  (tmp_path / 'mine.py').write_text(
    'from configs import base\ndef get_config(v=""):\n  return base.get_config(v)\n'
  )
  program = "from posjax.config import load; print(load('mine.py').train.steps)"
  environment = os.environ | {'PYTHONPATH': str(HOUSE)}
  done = subprocess.run(
    [sys.executable, '-c', program], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert done.stdout == '1000\n', done.stderr


@pytest.mark.parametrize(
  ('word', 'key', 'value'),
  [
    ('count=20', 'count', 20),
    ('count=-1', 'count', -1),
    ('count=1_000', 'count', 1000),
    ('rate=3', 'rate', 3.0),
    ('rate=1e-3', 'rate', 1e-3),
    ('on=false', 'on', False),
    ('on=True', 'on', True),
    ('word=b', 'word', 'b'),
    ('word=7', 'word', '7'),
    ('word=', 'word', ''),
    ('word=a=b', 'word', 'a=b'),
    ('pair=(3, 4, 5)', 'pair', (3, 4, 5)),
    ('pair=[3]', 'pair', (3,)),
    ('free=1', 'free', 1),
    ('free=None', 'free', None),
    ('free=yes', 'free', 'yes'),
    ('part.size=4', 'part.size', 4),
    ('position.name=alibi', 'position.name', 'alibi'),
    ('position.theta=None', 'position.theta', None),
    ('position.factor=2', 'position.factor', 2),  # a keyword of the scheme: checked where built
  ],
)
def test_an_override_takes_the_type_of_its_key(small, word, key, value):
  found = flatten(small(word))[key]
  assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('count=1.5', 'count=1.5: expected int; it is 1 now'),
    ('count=true', 'count=true: expected int'),
    ('count=', 'count=: expected int'),
    ('rate=fast', 'rate=fast: expected float; it is 0.5 now'),
    ('rate=true', 'rate=true: expected float'),
    ('on=1', 'on=1: expected bool: true or false; it is True now'),
    ('pair=3', r'pair=3: expected tuple, as \(1, 2\)'),
    ('position.theta=hot', 'position.theta=hot: expected float'),
    ('part=3', "'part' is a section. Set one of its keys: part.size"),
    ('position=rope', "'position' is a section"),
    ('part.sizes=3', "No key 'part.sizes' in the config. Did you mean 'part.size'"),
    ('size=3', "No key 'size' in the config. Did you mean 'part.size'"),
    ('count.size=3', "No key 'count.size'"),
    ('zzz=3', 'There are: count, free, on'),
    ('count', r"'--config.count' is not understood. Overrides are written --config.KEY=VALUE"),
  ],
)
def test_a_mistaken_override_says_what_is_right(small, word, message):
  with pytest.raises(ValueError, match=message):
    small(word)


def test_a_word_that_is_no_override_is_refused():
  with pytest.raises(ValueError, match="'--steps=3' is not understood"):
    load(BASE, ['--steps=3'])


def test_an_evaluation_has_overrides_of_its_own(tmp_path):
  (tmp_path / 'small.py').write_text(SMALL)
  assert load(str(tmp_path / 'small.py'), ['--eval.count=2'], flag='eval', base='').count == 2


def test_a_missing_file_names_the_nearest_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match=r"file 'configs/bse.py'. Did you mean 'configs/base.py'"):
    load('configs/bse.py')
  (tmp_path / 'mine.py').touch()
  with pytest.raises(ValueError, match=r"No config file 'min.py'. Did you mean 'mine.py'"):
    load('min.py')
  with pytest.raises(ValueError, match=r"No config file 'no/a.py'. Did you mean 'configs/base.py'"):
    load('no/a.py')


def test_a_file_without_a_config_is_refused(tmp_path):
  (tmp_path / 'empty.py').write_text('')
  with pytest.raises(ValueError, match=r'has no get_config\(variant\)'):
    load(str(tmp_path / 'empty.py'))


def test_an_unknown_variant_is_refused_by_the_config():
  with pytest.raises(ValueError, match="No variant 'smok'"):
    load(BASE + ':smok')


def test_a_key_that_the_base_lacks_is_refused_in_a_file_too(tmp_path):
  (tmp_path / 'typo.py').write_text(
    'from configs import base\n'
    'def get_config(variant=""):\n'
    '  config = base.get_config()\n'
    '  config.train.step = 7\n'
    '  return config\n'
  )
  with pytest.raises(ValueError, match=r"'train.step' of .*typo.py .* mean 'train.steps'"):
    load(str(tmp_path / 'typo.py'))


def test_hyperparameters_of_a_scheme_need_no_place_in_the_base():
  scheme = ConfigDict({'position': {'name': 'rope', 'theta': 1e4}})
  check_keys(scheme, ConfigDict({'position': {'name': 'none'}}))


def test_what_is_stored_as_json_and_read_back_is_equal(small):
  nested = ConfigDict({'recipes': (ConfigDict({'name': 'yarn', 'factor': 2.0}),), 'lengths': (1,)})
  for config in (load(BASE), small(), nested):
    again = from_json(to_json(config))
    assert again == config
    assert flatten(again) == flatten(config)


def test_what_is_no_plain_data_is_not_stored():
  with pytest.raises(ValueError, match='not plain data'):
    to_json(ConfigDict({'f': print}))


def test_the_difference_lists_dotted_keys_with_both_values(small):
  changes = difference(small(), small('part.size=4', 'position.factor=2'))
  assert changes == [('part.size', 3, 4), ('position.factor', None, 2)]


def test_the_nearest_name_is_offered_and_otherwise_all():
  assert nearest('rpoe', ['rope', 'alibi']) == "Did you mean 'rope'?"
  assert nearest('xyz', ['rope', 'alibi']) == 'There are: alibi, rope.'


@pytest.mark.parametrize('word', ['word', 'rate', 'part.size'])
def test_a_key_that_cannot_be_absent_refuses_none(small, word):
  with pytest.raises(ValueError, match=f'{word}=None: this key cannot be absent; it is .* now'):
    small(f'{word}=None')


@pytest.mark.parametrize('key', ABSENT)
def test_the_keys_that_may_be_absent_exist_and_take_none(key):
  evaluated = key.startswith('sampler.')
  base = 'configs/eval/base.py' if evaluated else BASE
  assert flatten(load(base, [f'--config.{key}=None'], base=base))[key] is None
