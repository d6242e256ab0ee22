"""What a text says again is found, with its distance, and scored apart from what it says once."""

import numpy as np
import pytest

from configs.eval import lengths
from posjax.evaluation import evaluate
from posjax.evaluation.bootstrap import estimate_some, resample
from posjax.evaluation.distance import by_distance, distances, repeats


def by_search(token_T, n, start=0):
  """Target by target, place by place: the last one in token_T[start:] that reads the same."""
  back_N = np.full(len(token_T) - 1, np.inf)
  for target in range(start + n, len(token_T)):
    for place in range(start + n, target):
      if (token_T[place - n : place + 1] == token_T[target - n : target + 1]).all():
        back_N[target - 1] = target - place
  return back_N


@pytest.mark.parametrize('n', [1, 2, 5])
@pytest.mark.parametrize('vocabulary', [1, 2, 40])
def test_repeats_are_those_that_a_search_finds(rng, n, vocabulary):
  token_T = rng.integers(0, vocabulary, 60).astype(np.int32)
  token_T[33:50] = token_T[4:21]
  found_N = repeats(token_T, n)
  np.testing.assert_array_equal(found_N, by_search(token_T, n))
  assert np.isfinite(found_N).sum() >= 16 - n


def test_a_text_shorter_than_a_repeat_has_none(rng):
  for size in (2, 8):
    np.testing.assert_array_equal(repeats(np.ones(size, np.int32), 8), [np.inf] * (size - 1))
  assert repeats(np.ones(10, np.int32), 8).tolist() == [np.inf] * 8 + [1]


def test_large_token_numbers_do_not_overflow():
  token_T = np.array([2**31 - 2, 2**31 - 3, 7] * 3, np.int32)
  np.testing.assert_array_equal(repeats(token_T, 4), by_search(token_T, 4))


@pytest.mark.parametrize('length', [12, 16, 40])
def test_only_what_the_window_shows_in_full_can_be_repeated(rng, length):
  """Every loss is the distance that a search in its own window finds, so every mean lies in its
  bin, and each target is in the one it should be."""
  n, D, N = 2, 3, 40
  token_DT = rng.integers(0, 3, (D, N + 1)).astype(np.int32)
  back_DN = np.full((D, N), np.inf)
  for d, token_T in enumerate(token_DT):
    for start in range(0, N, length):
      stop = min(start + length, N)
      back_DN[d, start:stop] = by_search(token_T[: stop + 1], n, start)[start:]
  loss_DN = np.where(np.isinf(back_DN), -1, back_DN)
  scored = {(length, 'none'): {'non-overlapping': loss_DN}}
  (row,) = distances(scored, token_DT, resample(D, 20, 0), n)
  kept_DN = back_DN[:, length if 2 * length <= N else 0 :]
  assert row['new']['mean'] == -1 and row['new']['tokens'] == np.isinf(kept_DN).sum()
  for b in row['bins']:
    inside_DN = (b['above'] < kept_DN) & (kept_DN <= b['distance'])
    assert b['tokens'] == inside_DN.sum() > 0
    assert b['mean'] == pytest.approx(kept_DN[inside_DN].mean())
  assert sum(b['tokens'] for b in row['bins']) + row['new']['tokens'] == kept_DN.size


def test_bins_are_octaves_and_empty_ones_are_left_out():
  back_DN = np.array([[1, 2, 3, 4, 17, 32, np.inf]])
  bins, new = by_distance(np.arange(7.0)[None], back_DN, resample(1, 5, 0))
  assert [(b['above'], b['distance'], b['mean']) for b in bins] == [
    (0, 1, 0.0), (1, 2, 1.0), (2, 4, 2.5), (16, 32, 4.5),
  ]  # fmt: skip
  assert new == {'mean': 6.0, 'low': None, 'high': None, 'tokens': 1}
  assert by_distance(np.ones((1, 2)), np.ones((1, 2)), resample(1, 5, 0))[1] is None


def test_an_interval_redraws_sums_and_counts_of_documents_together(rng):
  """Documents of 1 and 3 targets: a sample's mean is over the targets it drew, not over means."""
  x_DN = np.array([[1.0, 9, 9], [2, 2, 5], [9, 9, 9]])
  some_DN = np.array([[1, 0, 0], [1, 1, 1], [0, 0, 0]], bool)
  weight_SD = np.array([[1, 2, 0], [2, 1, 0], [0, 3, 0], [3, 0, 0], [0, 0, 3]])
  means = [(1 + 18) / 7, (2 + 9) / 5, 3, 1]  # the last sample drew none
  low, high = np.percentile(means, (2.5, 97.5))
  assert estimate_some(x_DN, some_DN, weight_SD) == {
    'mean': 2.5, 'low': pytest.approx(low), 'high': pytest.approx(high), 'tokens': 4,
  }  # fmt: skip


class Chorus:
  """Documents that say the same 24 tokens four times: again after 48, 24 and 72."""

  bytes_per_token = 1.0

  def __len__(self):
    return 4

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    verse, *rest = rng.integers(0, 10**6, (4, 24)).astype(np.int32)
    return np.concatenate([verse, rest[0], verse, verse, rest[1], rest[2], verse, [10**6]])


def test_an_evaluation_shows_that_a_model_copies_what_is_near_and_not_what_is_far():
  """A model that has learned the verse's repeats up to 32 tokens away, and nothing else."""

  def losses(_, batch):
    tokens_BL, targets_BL = batch['tokens'], batch['targets']
    known_BL = np.zeros(tokens_BL.shape, bool)
    for b, (token_L, target_L) in enumerate(zip(tokens_BL, targets_BL, strict=True)):
      known_BL[b] = by_search(np.append(token_L, target_L[-1]), 3) <= 32
    return np.where(known_BL, 0.25, 4.0).astype(np.float32)

  config = lengths.get_config('smoke')
  config.update({'multiples': (1, 8), 'span': 1.0, 'repeat': 3})
  results = evaluate(losses, lambda *_: None, Chorus(), config, trained_length=21)
  (curve,) = results['distances']
  assert (curve['length'], results['repeat']) == (168, 3)
  mean = {b['distance']: (b['mean'], b['tokens']) for b in curve['bins']}
  assert mean == {32: (0.25, 4 * 21), 64: (4.0, 4 * 21), 128: (4.0, 4 * 21)} and curve['new']


def test_a_repeat_of_no_tokens_is_refused():
  config = lengths.get_config('smoke')
  config.repeat = 0
  with pytest.raises(ValueError, match=r'A repeat of 0 tokens is none\. Use --eval.repeat >= 1'):
    evaluate(None, None, Chorus(), config, trained_length=21)
