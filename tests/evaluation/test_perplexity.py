"""Estimates against loops in NumPy, with language models whose losses can be computed by hand."""

import math

import numpy as np
import pytest

from posjax.evaluation.bootstrap import estimate, resample
from posjax.evaluation.gain import gains
from posjax.evaluation.perplexity import compare, score, summarize
from posjax.evaluation.position import by_position, edges
from posjax.evaluation.windows import contexts, non_overlapping, sliding


def unigram(spectrum, batch):
  """A loss that depends on the target alone: no window can change it."""
  return (batch['targets'] * spectrum).astype(np.float32)


def shortsighted(spectrum, batch):
  """A loss that tells how much context the target had: 1 / tokens seen, by segments, not shapes."""
  return np.where(batch['segments'] > 0, 1 / (batch['positions'] + 1), np.nan).astype(np.float32)


def documents(D, N, seed=0):
  return np.random.default_rng(seed).integers(1, 50, (D, N + 1)).astype(np.int32)


@pytest.mark.parametrize('N, length, stride', [(32, 8, 4), (29, 8, 3), (8, 8, 8), (17, 16, 5)])
def test_a_unigram_loses_the_same_in_windows_of_any_kind(N, length, stride):
  token_DT = documents(3, N)
  loss_DN = score(unigram, 0.1, token_DT, length=length, stride=stride, batch_tokens=3 * length)
  for x_DN in loss_DN.values():
    np.testing.assert_array_equal(x_DN, (token_DT[:, 1:] * 0.1).astype(np.float32))


@pytest.mark.parametrize('N, length, stride', [(32, 8, 4), (29, 8, 3), (33, 16, 1)])
def test_sliding_and_non_overlapping_losses_agree_with_a_loop_over_targets(N, length, stride):
  loss_DN = score(
    shortsighted, None, documents(2, N), length=length, stride=stride, batch_tokens=64
  )
  for n in range(N):
    # The window that scores n in a loop: as late as possible for its stride, never before 0.
    start = 0 if n < length else stride * math.ceil((n + 1 - length) / stride)
    np.testing.assert_allclose(loss_DN['sliding'][:, n], 1 / (n - start + 1), rtol=1e-6)
    np.testing.assert_allclose(loss_DN['non-overlapping'][:, n], 1 / (n % length + 1), rtol=1e-6)


def test_targets_weigh_the_same_however_few_their_window_scores():
  windows = sliding(13, 8, 4)
  loss_DN = score(shortsighted, None, documents(1, 13), length=8, stride=4, batch_tokens=8)
  by_hand = [1 / (n - w.start + 1) for w in windows for n in range(w.first, w.stop)]
  loss = summarize(loss_DN['sliding'], resample(1, 10, 0), 1.0)['loss']
  assert loss == pytest.approx(sum(by_hand) / 13, rel=1e-6)
  # The known-wrong variant: the mean of the windows' means.
  of_windows = np.mean(
    [np.mean([1 / (n - w.start + 1) for n in range(w.first, w.stop)]) for w in windows]
  )
  assert abs(loss - of_windows) > 0.03


@pytest.mark.parametrize('batch_tokens', [1, 8, 24, 1000])
def test_the_size_of_a_batch_changes_nothing(batch_tokens):
  token_DT = documents(3, 21)
  alone = score(unigram, 1.0, token_DT, length=8, stride=4, batch_tokens=8)
  together = score(unigram, 1.0, token_DT, length=8, stride=4, batch_tokens=batch_tokens)
  for name in alone:
    np.testing.assert_array_equal(alone[name], together[name])


def test_windows_that_both_estimates_need_run_once():
  rows = []
  score(
    lambda _, batch: rows.extend(batch['segments'][:, 0]) or unigram(1.0, batch),
    None, documents(1, 32), length=8, stride=4, batch_tokens=8,
  )  # fmt: skip
  assert len(rows) == 7  # 0, 4, ..., 24: the four non-overlapping ones are among them


def test_a_loss_that_is_not_finite_is_refused_with_its_length():
  with pytest.raises(ValueError, match=r'of 16 losses at length 8 are not finite.*float32'):
    score(unigram, np.nan, documents(2, 8), length=8, stride=4, batch_tokens=8)


def test_perplexity_and_bits_per_byte_of_a_fair_coin_and_of_a_byte():
  coin = summarize(np.full((2, 5), math.log(2)), resample(2, 10, 0), bytes_per_token=1.0)
  assert coin['perplexity'] == pytest.approx(2) and coin['bits_per_byte'] == pytest.approx(1)
  byte = summarize(np.full((2, 5), math.log(256)), resample(2, 10, 0), bytes_per_token=4.0)
  assert byte['perplexity'] == pytest.approx(256) and byte['bits_per_byte'] == pytest.approx(2)
  assert byte['tokens'] == 10 and byte['documents'] == 2


def test_the_interval_agrees_with_a_loop_that_redraws_documents():
  x_DN = np.random.default_rng(1).normal(size=(5, 7))
  weight_SD = resample(5, 200, seed=3)
  assert weight_SD.sum(1).tolist() == [5] * 200
  means = []
  for weight_D in weight_SD:
    drawn = [x for d in range(5) for _ in range(weight_D[d]) for x in x_DN[d]]
    means.append(np.mean(drawn))
  found = estimate(x_DN, weight_SD)
  assert found['mean'] == pytest.approx(x_DN.mean())
  assert [found['low'], found['high']] == pytest.approx(np.percentile(means, [2.5, 97.5]).tolist())


def test_the_seed_decides_the_interval():
  np.testing.assert_array_equal(resample(4, 9, seed=1), resample(4, 9, seed=1))
  assert (resample(4, 9, seed=1) != resample(4, 9, seed=2)).any()


def test_intervals_over_documents_cover_the_mean_and_intervals_over_tokens_would_not():
  rng, hits, naive = np.random.default_rng(0), 0, 0
  for trial in range(200):
    x_DN = rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, 20))  # documents differ most
    found = estimate(x_DN, resample(30, 300, trial))
    hits += found['low'] <= 0 <= found['high']
    naive += abs(x_DN.mean()) <= 1.96 * x_DN.std() / math.sqrt(x_DN.size)
  assert 0.88 <= hits / 200 <= 0.99
  assert naive / 200 < 0.6


def test_one_document_has_no_interval():
  found = estimate(np.ones((1, 4)), resample(1, 10, 0))
  assert found == {'mean': 1.0, 'low': None, 'high': None}


def test_recipes_are_compared_on_the_same_draws():
  hard_DN = np.random.default_rng(0).normal(3, 1, (8, 1)) + np.zeros((8, 10))
  standing = compare(
    {'a': hard_DN + 0.01, 'b': hard_DN, 'c': hard_DN + np.linspace(-0.1, 0.2, 8)[:, None]},
    resample(8, 500, 0),
  )
  # Documents differ by nats; the paired difference is 0.01 in each of them.
  assert standing['a']['behind_low'] == pytest.approx(0.01)
  assert standing['a']['behind_high'] == pytest.approx(0.01)
  assert standing['b']['behind'] == 0 and standing['c']['behind'] == pytest.approx(0.05)
  assert [standing[r]['best'] for r in 'abc'] == [False, True, True]


def test_bins_of_position_meet_at_the_trained_length_and_end_at_the_longest():
  assert edges(64, 16).tolist() == [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64]
  for length, trained in ((100, 24), (24, 24), (7, 1), (3000, 1000)):
    edge = edges(length, trained)
    assert trained in edge and edge[-1] == length and (np.diff(edge) > 0).all()


def test_loss_by_position_agrees_with_a_loop():
  loss_DN = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
  context_N = contexts(non_overlapping(40, 16))
  bins = by_position(loss_DN, context_N, resample(3, 10, 0), trained_length=8)
  assert sum(b['tokens'] for b in bins) == 120
  for b in bins:
    inside = [
      loss_DN[d, n] for d in range(3) for n in range(40) if b['above'] < n % 16 + 1 <= b['context']
    ]
    assert b['tokens'] == len(inside) and b['mean'] == pytest.approx(np.mean(inside), abs=1e-6)


def test_the_gain_subtracts_losses_of_the_same_targets():
  short_DN, long_DN = np.array([[9, 5, 3.0], [9, 4, 4]]), np.array([[0, 4, 1.0], [0, 4, 3]])
  scored = {(8, 'none'): {'sliding': short_DN}, (16, 'none'): {'sliding': long_DN}}
  (row,) = gains(scored, np.array([False, True, True]), resample(2, 50, 0), trained_length=8)
  assert row['mean'] == (1 + 2 + 0 + 1) / 4 and row['tokens'] == 4
  assert row['low'] == 0.5 and row['high'] == 1.5  # documents gain 1.5 and 0.5
