"""Every target once, with the context that was promised, in batches of one shape."""

import numpy as np
import pytest

from posjax.evaluation.windows import Window, batches, contexts, non_overlapping, sliding


def test_windows_of_four_tokens_two_apart_as_a_literal():
  assert sliding(9, length=4, stride=2) == [
    Window(0, 0, 4), Window(2, 4, 6), Window(4, 6, 8), Window(6, 8, 9)
  ]  # fmt: skip
  assert non_overlapping(9, length=4) == [Window(0, 0, 4), Window(4, 4, 8), Window(8, 8, 9)]


@pytest.mark.parametrize('targets', [1, 7, 16, 17, 50])
@pytest.mark.parametrize(
  'length, stride', [(1, 1), (5, 1), (5, 2), (5, 5), (16, 1), (16, 3), (16, 8), (16, 16)]
)
def test_each_target_is_scored_once_and_within_its_window(targets, length, stride):
  windows = sliding(targets, length, stride)
  assert [n for w in windows for n in range(w.first, w.stop)] == list(range(targets))
  assert all(w.start >= 0 and w.stop - w.start <= length for w in windows)


@pytest.mark.parametrize('stride', [1, 3, 8])
def test_past_the_first_window_a_sliding_target_has_more_than_length_minus_stride_tokens(stride):
  context_N = contexts(sliding(50, 8, stride))
  assert context_N[:8].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
  assert context_N[8:].min() == 8 - stride + 1 and context_N[8:].max() == 8


def test_a_document_of_exactly_the_length_is_one_full_window():
  assert non_overlapping(8, 8) == sliding(8, 8, 4) == [Window(0, 0, 8)]


@pytest.mark.parametrize('stride', [0, 5])
def test_a_stride_that_skips_or_repeats_targets_is_refused(stride):
  with pytest.raises(ValueError, match=rf'stride of {stride} tokens .* between 1 and 4'):
    sliding(9, 4, stride)


def test_rows_hold_tokens_shifted_targets_and_positions_from_the_first_visible_token():
  token_DT = np.arange(20, dtype=np.int32).reshape(2, 10)
  first, second, third = batches(token_DT, starts=[0, 4, 8], length=4, rows=2)
  assert first['tokens'].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
  assert first['targets'].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
  assert first['positions'].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]
  assert second['tokens'].tolist() == [[8, 0, 0, 0], [10, 11, 12, 13]]
  assert second['segments'].tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
  assert third['targets'].tolist() == [[15, 16, 17, 18], [19, 0, 0, 0]]
  assert {x.dtype for x in first.values()} == {np.dtype(np.int32)}


def test_rows_that_fill_up_the_last_batch_are_not_scored():
  *_, last = batches(np.ones((1, 9), np.int32), starts=[0, 4], length=4, rows=3)
  assert last['tokens'].shape == (3, 4)
  assert last['segments'].sum(1).tolist() == [4, 4, 0]
