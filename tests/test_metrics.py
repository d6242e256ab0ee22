"""Metrics hold every step once, whatever happened to the run."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from posjax import metrics
from posjax.metrics import Metrics, describe, read


def write(workdir, steps, resumed=0):
  with Metrics(workdir, total_steps=100, resumed=resumed) as log:
    for step in steps:
      log.write(step, {'loss': 1 / step})


def test_what_is_written_is_read(tmp_path):
  write(tmp_path, [1, 2])
  assert read(tmp_path) == [{'step': 1, 'loss': 1.0}, {'step': 2, 'loss': 0.5}]


def test_each_line_is_on_disk_at_once(tmp_path):
  with Metrics(tmp_path, total_steps=9) as log:
    log.write(1, {'loss': 1.0})
    assert len(read(tmp_path)) == 1


def test_a_resumed_run_drops_later_lines_and_a_torn_one(tmp_path):
  write(tmp_path, [10, 20, 30])
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 40, "lo')
  assert [row['step'] for row in read(tmp_path)] == [10, 20, 30]
  write(tmp_path, [30, 40], resumed=20)
  assert [row['step'] for row in read(tmp_path)] == [10, 20, 30, 40]


def test_a_new_run_in_the_same_place_starts_with_no_lines(tmp_path):
  write(tmp_path, [10, 20])
  write(tmp_path, [5])
  assert [row['step'] for row in read(tmp_path)] == [5]


def test_a_value_that_is_not_finite_is_null_under_its_name(tmp_path):
  with Metrics(tmp_path, total_steps=9) as log:
    log.write(1, {'loss': math.nan, 'norm': math.inf, 'lr': 0.1})
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert json.loads(text) == {'step': 1, 'loss': None, 'norm': None, 'lr': 0.1}


def test_steps_out_of_order_are_refused(tmp_path):
  with pytest.raises(ValueError, match='Metrics of step 2 after those of step 2'):
    write(tmp_path, [2, 2])
  with pytest.raises(ValueError, match='Metrics of step 20 after those of step 20'):
    write(tmp_path, [20], resumed=20)


def test_tensorboard_reads_the_same_numbers(tmp_path):
  write(tmp_path, [1, 2])
  [file] = (tmp_path / 'tensorboard').iterdir()
  content, found = file.read_bytes(), {}
  while content:  # records: length (8 bytes), its checksum (4), data, its checksum (4)
    length = int.from_bytes(content[:8], 'little')
    event = Event.FromString(content[12 : 12 + length])
    found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
    content = content[16 + length :]
  assert found == {('loss', 1): 1.0, ('loss', 2): 0.5}


def test_people_read_one_line(tmp_path, capsys, monkeypatch):
  times = iter([0.0, 10.0])
  monkeypatch.setattr(metrics, 'time', SimpleNamespace(monotonic=lambda: next(times)))
  values = {
    'loss': 1.2341,
    'bits_per_byte': 1.781,
    'learning_rate': 2.1e-3,
    'gradient_norm': 0.812,
    'tokens_per_second': 5930.4,
    'mfu': 0.412,
    'validation_loss': 1.5,
  }
  with Metrics(tmp_path, total_steps=1000) as log:
    log.write(120, values)
    log.write(180, {'loss': math.nan})
  first, second = capsys.readouterr().err.splitlines()
  assert first == (
    'step 120/1000  loss 1.234  bits/byte 1.78  lr 2.1e-03  |g| 0.81  5,930 tok/s  MFU 41%'
    '  validation_loss 1.5'
  )
  assert second == 'step 180/1000  loss nan  left 2m17s'  # 820 steps at 6 a second


def test_a_terminal_shows_a_bar(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  with Metrics(tmp_path, total_steps=100, resumed=40) as log:
    log.write(50, {'loss': 1.2341})
  shown = capsys.readouterr().err
  assert '50/100' in shown and 'loss 1.234' in shown and 'step 50/100  loss' not in shown


@pytest.mark.parametrize(('seconds', 'words'), [(9, '9s'), (151, '2m31s'), (3725.2, '1h02m')])
def test_times_are_short(seconds, words):
  assert metrics._clock(seconds) == words


def test_an_unknown_name_is_shown_as_it_is():
  assert describe({'slope': 0.123456}) == 'slope 0.1235'


def test_a_missing_file_is_said(tmp_path):
  with pytest.raises(ValueError, match='No metrics in'):
    read(tmp_path)


def test_a_damaged_line_is_named_by_its_number(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(ValueError, match='Line 2 of'):
    read(tmp_path)
