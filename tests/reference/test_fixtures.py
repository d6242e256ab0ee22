"""Each file of numbers says where they are from, how to make them again, and what they are."""

import ast
import json
import pathlib

import pytest

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'
FILES = sorted(FIXTURES.glob('*.json'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_numbers_come_with_source_version_date_and_script(file):
  about = json.loads(file.read_text())['about']
  for key in ('package', 'version', 'function', 'runs_on', 'date'):
    assert about[key], f'{file.name} has no {key}'
  assert about['dtype'] in ('float32', 'float64')
  script = (FIXTURES.parent.parent / about['script']).read_text()
  assert f'{about["package"]}=={about["version"]}' in script, 'the script installs another version'
  assert file.stem.split('-')[0] in script


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_array_is_described_and_every_description_has_an_array(file):
  content = json.loads(file.read_text())
  found = {key for case in content['cases'] for key in case if isinstance(case[key], list)}
  assert found == set(content['about']['arrays'])


def test_all_fixtures_together_are_small():
  assert sum(file.stat().st_size for file in FILES) < 700_000


def test_only_the_scripts_that_make_numbers_import_a_reference():
  """So that the tests run without any of them."""
  for file in FIXTURES.parent.rglob('*.py'):
    if file.name.startswith('make_'):
      continue
    for node in ast.walk(ast.parse(file.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      names += [node.module] if isinstance(node, ast.ImportFrom) else []
      for name in names:
        assert name.split('.')[0] not in ('torch', 'transformers', 'tensorflow'), file
