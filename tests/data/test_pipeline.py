import json

import numpy as np
import pytest

from posjax.data import Documents, Stream
from posjax.data.pipeline import Batches, permute


def make_documents(*lengths, fingerprint='f'):
  """Documents of these lengths, bos included; tokens are unique, so that each can be traced."""
  tokens = np.concatenate([1000 * (i + 1) + np.arange(n) for i, n in enumerate(lengths)])
  return Documents(tokens=tokens.astype(np.int32), offsets=np.cumsum([0, *lengths]),
                   names=[f'{i}' for i in range(len(lengths))], bytes_per_token=1.0,
                   fingerprint=fingerprint)


DOCUMENTS = make_documents(9, 2, 14, 1, 31, 6, 6, 1, 30)  # two have no text, thus no inputs
OPTIONS = {'length': 4, 'batch': 4, 'seed': 3, 'threads': 0}
ROWS = (9 + 2 + 14 + 31 + 6 + 6 + 30 - 7) // 4  # of an epoch


def make_batches(documents=DOCUMENTS, length=4, batch=4, seed=3, positions='context'):
  return Batches(documents, length=length, batch=batch, seed=seed, positions=positions,
                 host=0, hosts=1)


def take(stream, steps):
  return [next(stream) for _ in range(steps)]


def assert_equal(a, b):
  assert len(a) == len(b)
  for left, right in zip(a, b, strict=True):
    assert left.keys() == right.keys() == {'tokens', 'targets', 'positions', 'segments'}
    for key in left:
      assert left[key].dtype == np.int32
      np.testing.assert_array_equal(left[key], right[key])


def read_epoch(batches, epoch):
  return [batches.read_row(row) for row in range(epoch * batches.rows, (epoch + 1) * batches.rows)]


def test_an_epoch_shows_each_input_once_but_for_the_last_short_row():
  batches = make_batches()
  assert batches.rows == ROWS
  inputs = {int(t) for i in range(len(DOCUMENTS)) for t in DOCUMENTS[i][:-1]}
  for epoch in range(3):
    tokens = [int(t) for row in read_epoch(batches, epoch) for t in row['tokens']]
    assert len(set(tokens)) == len(tokens) == 4 * ROWS
    assert set(tokens) <= inputs and len(inputs) - len(tokens) < 4


def test_rows_in_their_own_order_are_the_documents_end_to_end():
  batches = make_batches()
  order, ends, row_order = batches._shuffle(0)
  rows = read_epoch(batches, 0)
  joined = np.concatenate([rows[place]['tokens'] for place in np.argsort(row_order)])
  with_text = [i for i in range(len(DOCUMENTS)) if len(DOCUMENTS[i]) > 1]
  expected = np.concatenate([DOCUMENTS[with_text[i]][:-1] for i in order])
  np.testing.assert_array_equal(joined, expected[:4 * ROWS])
  assert ends[-1] == len(expected)


def test_targets_are_the_next_token_and_never_of_another_document():
  for row in read_epoch(make_batches(), 0):
    np.testing.assert_array_equal(row['targets'], row['tokens'] + 1)  # by make_documents
    assert (row['targets'] // 1000 == row['tokens'] // 1000).all()


def test_positions_and_segments_of_two_documents_across_rows():
  # One order of these two documents is [10.. 14], [20 .. 23]: rows of 3 cut both.
  documents = make_documents(6, 5)
  seed = next(s for s in range(99) if permute(2, s, 0, 0).tolist() == [0, 1])
  for positions, expected in {
      'context': [[0, 1, 2], [0, 1, 0], [0, 1, 2]],
      'document': [[0, 1, 2], [3, 4, 0], [1, 2, 3]]}.items():
    batches = make_batches(documents, length=3, batch=1, seed=seed, positions=positions)
    rows = [batches.read_row(place) for place in np.argsort(batches._shuffle(0)[2])]
    assert [row['tokens'].tolist() for row in rows] == [
        [1000, 1001, 1002], [1003, 1004, 2000], [2001, 2002, 2003]]
    assert [row['segments'].tolist() for row in rows] == [[1, 1, 1], [1, 1, 2], [1, 1, 1]]
    assert [row['positions'].tolist() for row in rows] == expected


def test_document_positions_are_true_indices_and_context_positions_stay_below_the_length():
  for row in read_epoch(make_batches(positions='document'), 1):
    np.testing.assert_array_equal(row['positions'], row['tokens'] % 1000)
  assert max(row['positions'].max() for row in read_epoch(make_batches(), 1)) == 3


def test_epochs_and_seeds_differ_in_order():
  orders = [[row['tokens'].tolist() for row in read_epoch(make_batches(seed=seed), epoch)]
            for seed in (3, 4) for epoch in (0, 1)]
  assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_any_number_of_hosts_sees_the_same_global_batches(hosts):
  streams = [Stream(DOCUMENTS, **OPTIONS, host=host, hosts=hosts) for host in range(hosts)]
  parts = [take(stream, 8) for stream in streams]
  joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)]
  assert_equal(joined, [make_batches()[step] for step in range(8)])


def test_threads_read_ahead_in_order():
  stream = Stream(DOCUMENTS, **{**OPTIONS, 'threads': 2})
  assert_equal(take(stream, 40), [make_batches()[step] for step in range(40)])


@pytest.mark.parametrize('steps', [0, 2, 5, 6])  # an epoch ends within the sixth batch
def test_a_restored_stream_continues_bit_by_bit(steps):
  whole = take(Stream(DOCUMENTS, **OPTIONS), 14)
  stopped = Stream(DOCUMENTS, **OPTIONS)
  take(stopped, steps)
  state = json.loads(json.dumps(stopped.state()))
  assert state['step'] == steps
  resumed = Stream(DOCUMENTS, **{**OPTIONS, 'threads': 2})
  take(resumed, 3)  # what was read ahead must be forgotten
  resumed.restore(state)
  assert_equal(take(resumed, 14 - steps), whole[steps:])
  assert resumed.state()['step'] == 14


def test_an_epoch_ends_within_a_batch():
  assert ROWS % OPTIONS['batch'] and 5 < ROWS / OPTIONS['batch'] < 6


def test_a_run_may_continue_on_another_number_of_hosts():
  state = Stream(DOCUMENTS, **OPTIONS, host=0, hosts=1, start_step=5).state()
  half = Stream(DOCUMENTS, **OPTIONS, host=1, hosts=2)
  half.restore(state)
  np.testing.assert_array_equal(next(half)['tokens'], make_batches()[5]['tokens'][2:])


@pytest.mark.parametrize('change, message', [
    ({'seed': 4}, 'seed 3 instead of 4'), ({'length': 3}, 'length 4 instead of 3'),
    ({'batch': 2}, 'batch 4 instead of 2'),
    ({'positions': 'document'}, 'positions context instead of document')])
def test_the_state_of_another_stream_is_refused_with_the_difference(change, message):
  state = Stream(DOCUMENTS, **OPTIONS).state()
  with pytest.raises(ValueError, match=f'of another stream: {message}. Restore with the config'):
    Stream(DOCUMENTS, **{**OPTIONS, **change}).restore(state)


def test_the_state_of_other_documents_is_refused():
  state = Stream(DOCUMENTS, **OPTIONS).state()
  with pytest.raises(ValueError, match='documents f instead of g'):
    Stream(make_documents(40, fingerprint='g'), **OPTIONS).restore(state)


@pytest.mark.parametrize('change, message', [
    ({'length': 30}, r'9 documents of 100 tokens make 3 rows of 30, less than a batch of 4\. U'),
    ({'length': 300}, 'make 0 rows of 300, less than a batch of 4'),
    ({'length': 300, 'steps': 2}, 'make 0 rows of 300, less than a batch of 4'),
    ({'hosts': 3}, 'Host 0 of 3 hosts cannot take an equal part of a batch of 4 rows'),
    ({'host': 1}, 'Host 1 of 1 hosts'),
    ({'positions': 'absolute'}, "no positions 'absolute'.*context, document"),
    ({'seed': -1}, 'The seed -1 is negative')])
def test_numbers_that_do_not_fit_are_refused_with_a_way_out(change, message):
  with pytest.raises(ValueError, match=message):
    Stream(DOCUMENTS, **{**OPTIONS, **change})


def test_the_order_is_the_same_on_every_machine():
  assert permute(8, 0, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_the_stream_of_a_run_of_one_phase_never_changes():
  """As written down before there were phases."""
  batches = make_batches()
  assert batches[0]['tokens'].tolist() == [
      [9025, 9026, 9027, 9028], [7002, 7003, 7004, 9000], [9001, 9002, 9003, 9004],
      [3007, 3008, 3009, 3010]]
  assert batches[99]['tokens'].tolist() == [
      [6003, 6004, 9000, 9001], [5016, 5017, 5018, 5019], [9002, 9003, 9004, 9005],
      [9018, 9019, 9020, 9021]]


PHASES = {  # of (length, batch, steps); an epoch has 91 inputs
    'longer rows in the same epoch': [(4, 4, 3), (16, 1, 2)],
    'shorter rows in the same epoch': [(16, 1, 2), (3, 2, 4), (5, 1, 3)],
    'an epoch ends within a phase': [(4, 4, 4), (8, 2, 5), (3, 4, 9)],
    'phases of several epochs': [(7, 2, 20), (16, 2, 9), (4, 4, 30)],
    'a phase ends as the epoch does': [(7, 13, 1), (13, 1, 7), (4, 4, 2)],
    'a row is left of an epoch, but too short': [(22, 2, 2), (4, 4, 6)],
    'the same length throughout': [(4, 4, 2), (4, 4, 3), (4, 2, 9)]}


def make_phases(phases, endless=False, **options):
  streams = []
  for length, batch, steps in phases:
    last = endless and len(streams) == len(phases) - 1
    streams.append(Stream(DOCUMENTS, length=length, batch=batch, seed=3, threads=0, **options,
                          steps=None if last else steps,
                          begin=streams[-1].end() if streams else (0, 0)))
  return streams


def recut(phases):
  """The rows of each phase by epoch, in the text's order: cut one after the other, with loops."""
  epoch, text, cut = -1, [], []
  for length, batch, steps in phases:
    rows = {}
    for _ in range(batch * steps):
      while len(text) < length:
        epoch += 1
        with_text = [i for i in range(len(DOCUMENTS)) if len(DOCUMENTS[i]) > 1]
        order = permute(len(with_text), 3, epoch, 0)
        text = [int(t) for i in order for t in DOCUMENTS[with_text[i]][:-1]]
      rows.setdefault(epoch, []).append(text[:length])
      text = text[length:]
    cut.append(list(rows.values()))
  return cut


@pytest.mark.parametrize('phases', PHASES.values(), ids=PHASES)
def test_phases_read_one_text_recut_to_each_length(phases):
  for stream, (_, _, steps), expected in zip(make_phases(phases), phases, recut(phases),
                                             strict=True):
    rows = [row.tolist() for batch in take(stream, steps) for row in batch['tokens']]
    for part in expected:  # of an epoch, in any order
      assert sorted(rows[:len(part)]) == sorted(part)
      rows = rows[len(part):]
    assert not rows
    with pytest.raises(StopIteration):
      next(stream)


@pytest.mark.parametrize('phases', PHASES.values(), ids=PHASES)
def test_no_token_is_read_twice_before_the_epoch_ends_whatever_the_phases(phases):
  inputs = {int(t) for i in range(len(DOCUMENTS)) for t in DOCUMENTS[i][:-1]}
  seen, epochs = set(), 0
  for stream, (length, _, steps) in zip(make_phases(phases), phases, strict=True):
    for row in (row for batch in take(stream, steps) for row in batch['tokens']):
      if seen & set(row.tolist()):
        assert len(inputs - seen) < length  # the rest of the epoch was too short for a row
        seen, epochs = set(), epochs + 1
      assert len(set(row.tolist())) == length
      seen |= set(row.tolist())
  tokens = sum(length * batch * steps for length, batch, steps in phases)
  assert epochs >= tokens // len(inputs) - 1


def test_rows_of_a_phase_are_visited_in_a_shuffled_order():
  first, second = make_phases([(4, 4, 3), (3, 4, 3)])
  for stream, steps, [expected] in zip((first, second), (3, 3), recut([(4, 4, 3), (3, 4, 3)]),
                                       strict=True):
    rows = [row.tolist() for batch in take(stream, steps) for row in batch['tokens']]
    assert rows != expected and sorted(rows) == sorted(expected)


def test_the_last_phase_is_endless_and_reads_the_rest_of_the_epoch_first():
  first, second = make_phases([(4, 4, 3), (8, 1, 3)], endless=True)
  early = {int(t) for batch in take(first, 3) for t in batch['tokens'].flat}
  late = [t for batch in take(second, 5) for t in batch['tokens'].flat]
  assert len(early | set(late)) == 48 + 40 == len(early) + len(late)  # of 91: 3 are left out
  take(second, 40)


@pytest.mark.parametrize('steps', [0, 3, 5])
def test_a_phase_is_restored_bit_by_bit_on_any_number_of_hosts(steps):
  phases = PHASES['an epoch ends within a phase']
  whole = take(make_phases(phases)[1], 5)
  stopped = make_phases(phases)[1]
  take(stopped, steps)
  state = json.loads(json.dumps(stopped.state()))
  for host in range(2):
    resumed = make_phases(phases, host=host, hosts=2)[1]
    resumed.restore(state)
    for batch, expected in zip(take(resumed, 5 - steps), whole[steps:], strict=True):
      np.testing.assert_array_equal(batch['tokens'], expected['tokens'][host:host + 1])


def test_the_position_of_another_phase_is_refused():
  phases = [(4, 4, 2), (4, 4, 3), (4, 4, 9)]
  first, second, _ = make_phases(phases)
  with pytest.raises(ValueError, match=r'another stream: begin \[0, 0\] instead of \[0, 32\]; st'):
    second.restore(first.state())
