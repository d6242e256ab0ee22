"""The comparison of kinds of attention, from one command to its table."""

import json

import pytest

from benchmarks import blocks


def test_all_kinds_have_as_many_parameters_to_within_a_unit_of_their_mlps():
  settings = blocks.equalised('configs/quickstart.py')
  assert settings['mha'] == {'model.mlp_width': 352}
  # of each layer's attention: 2 x 128 x 128 fewer numbers halved, and 3 x 128 for each unit
  assert settings['gqa']['model.mlp_width'] == 352 + round(2 * 128 * 64 / (3 * 128))
  assert settings['mqa']['model.mlp_width'] == 352 + round(2 * 128 * 96 / (3 * 128))


@pytest.mark.slow
def test_one_command_trains_all_kinds_and_says_what_each_costs(tmp_path, capsys):
  words = ['--smoke', f'--workdir={tmp_path}', '--seeds=0', '--prompt=24', '--rounds=1']
  blocks.main([*words, f'--json={tmp_path}/blocks.json'])
  rows = {row['kind']: row for row in json.loads((tmp_path / 'blocks.json').read_text())['rows']}
  # 2 layers, 4 heads of 8, float32: keys and values; or a latent of 48 and a slice of 16
  assert [rows[kind]['cache'] for kind in blocks.KINDS] == [512, 256, 128, 2 * 4 * (48 + 16)]
  assert all(row['read'] > 0 and row['write'] > 0 for row in rows.values())
  few, many = min(rows.values(), key=size), max(rows.values(), key=size)
  assert size(many) - size(few) <= 2 * 3 * 32
  assert '|    50% |' in capsys.readouterr().out
  before = {path: path.stat().st_mtime for path in tmp_path.rglob('*.json')}
  blocks.main([*words])  # nothing is trained again
  assert {path: path.stat().st_mtime for path in before} == before


def size(row):
  return row['parameters']
