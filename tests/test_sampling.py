import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import sampling

KEYS = jax.random.split(jax.random.key(0), 50)


def test_positions_are_as_they_are_unless_asked_for():
  pos_BL = jnp.array([[0, 1, 0, 1]])
  assert sampling.make('none')(KEYS[0], pos_BL) is pos_BL
  assert sampling.make('none').reach(7) == 7


def test_drawn_positions_are_distinct_sorted_and_from_the_whole_range():
  """Ruoss et al. 2023, sec. 3: a subset of the range, in order, uniformly drawn."""
  sampler, pos_BL = sampling.make('randomized', range=12), jnp.arange(5)[None]
  drawn = np.stack([sampler(key, pos_BL)[0] for key in KEYS])
  assert (np.diff(drawn) > 0).all()
  assert set(drawn.flat) == set(range(12))
  assert abs(drawn.mean() - 5.5) < 4 * 12 / (12 * 250) ** 0.5  # four deviations of the mean


def test_each_document_of_a_row_and_each_row_of_a_batch_gets_the_same_draw():
  pos_BL = jnp.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
  drawn_BL = sampling.make('randomized', range=100)(KEYS[1], pos_BL)
  np.testing.assert_array_equal(drawn_BL[0, 3:], drawn_BL[0, :2])
  np.testing.assert_array_equal(drawn_BL[0, :3], drawn_BL[1, :3])


def test_a_range_of_the_rows_length_is_every_position():
  pos_BL = jnp.arange(6)[None]
  drawn_BL = sampling.make('randomized', range=6)(KEYS[2], pos_BL)
  np.testing.assert_array_equal(drawn_BL, pos_BL)


def test_rows_longer_than_the_range_are_refused():
  sampler = sampling.make('randomized', range=6)
  assert sampler.reach(6) == 6
  for ask in (lambda: sampler.reach(7), lambda: sampler(KEYS[0], jnp.arange(7)[None])):
    with pytest.raises(ValueError, match=r'7 distinct positions cannot .* from 6.*range to 7'):
      ask()

def pose_of(pos_BL, key=KEYS[3], **settings):
  return np.asarray(sampling.make('pose', **settings)(key, jnp.asarray(pos_BL)))


def plain(rows, length):
  return np.broadcast_to(np.arange(length), (rows, length))


def skips(drawn_BL):
  """Where each row's chunks begin (the first excepted) and by how much more they skip."""
  jump_BL = np.diff(drawn_BL) - 1
  return [[(int(i) + 1, int(jump_L[i])) for i in np.flatnonzero(jump_L)] for jump_L in jump_BL]


def assert_uniform(values, choices):
  """Each choice within four deviations of its share, and nothing else."""
  values, choices = list(values), list(choices)
  assert set(values) == set(choices)
  n, share = len(values), 1 / len(choices)
  for choice in choices:
    assert abs(values.count(choice) - n * share) <= 4 * (n * share * (1 - share)) ** 0.5


@pytest.mark.parametrize(('length', 'cuts'), [(5, (1, 2, 3)), (6, (1, 2, 3)), (2, (1,))])
def test_pose_cuts_rows_in_two_and_skips_uniformly_as_in_the_authors_code(length, cuts):
  """dwzhu-pku/PoSE, src/train_pose.py: the first chunk has randint(1, (L + 1) // 2) tokens and
  starts at 0, the second skips randint(0, range - L) positions (both ends included)."""
  drawn_BL = pose_of(plain(4000, length), range=length + 4, chunks=2)
  assert (drawn_BL[:, 0] == 0).all()
  found = skips(drawn_BL)
  assert max(map(len, found)) == 1
  assert_uniform((drawn_BL[:, -1] - (length - 1)).tolist(), range(5))
  assert_uniform((row[0][0] for row in found if row), cuts)  # the cut shows where it skips
  # One says nothing of the other: here are the pairs.
  assert_uniform((row[0] for row in found if row), [(c, s) for c in cuts for s in range(1, 5)])


def test_pose_skips_more_with_each_of_three_chunks():
  drawn_BL = pose_of(plain(4000, 9), range=12, chunks=3)
  found = skips(drawn_BL)
  assert max(map(len, found)) == 2 and drawn_BL.min() == 0 and drawn_BL.max() == 11
  both = [row for row in found if len(row) == 2]
  cuts = [(first[0], second[0]) for first, second in both]
  assert_uniform(cuts, [(a, a + b) for a in (1, 2, 3) for b in (1, 2, 3)])
  # The last skip is one of skip[1] .. 3: the second jump is by none (unseen) to 3 - skip[1].
  assert_uniform((second[1] for first, second in both if first[1] == 1), (1, 2))
  assert_uniform((second[1] for first, second in both if first[1] == 2), (1,))


def test_pose_draws_for_each_row_and_starts_each_document_at_0():
  pos_BL = np.array([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]] * 50)
  drawn_BL = pose_of(pos_BL, range=1000, chunks=2)
  assert len({tuple(row) for row in drawn_BL.tolist()}) > 45
  assert (drawn_BL[:, 6] == 0).all()
  np.testing.assert_array_equal(drawn_BL[:, 6:], drawn_BL[:, :4])


def test_pose_is_plain_where_there_is_no_room_and_wherever_it_is_evaluated():
  np.testing.assert_array_equal(pose_of(plain(3, 7), range=7, chunks=2), plain(3, 7))
  pose = sampling.make('pose', range=70, chunks=2)
  assert pose.evaluation == sampling.PLAIN and pose.reach(7) == 70
  for ask in (lambda: pose.reach(71), lambda: pose(KEYS[0], plain(1, 71))):
    with pytest.raises(ValueError, match=r'Rows of 71 tokens .* below 70.*range to 71'):
      ask()


@pytest.mark.parametrize('name', ['none', 'randomized'])
def test_other_samplers_are_evaluated_as_they_train(name):
  sampler = sampling.make(name, **({'range': 9} if name == 'randomized' else {}))
  assert sampler.evaluation is sampler


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'name': 'randomised', 'range': 9}, "No sampling 'randomised'. Did you mean 'randomized'"),
    ({'name': 'randomized'}, 'takes range, not nothing'),
    ({'name': 'none', 'range': 9}, 'takes nothing, not range'),
    ({'name': 'randomized', 'range': 0}, 'range of 0'),
    ({'name': 'pose', 'range': 9}, 'takes range, chunks, not range'),
    ({'name': 'pose', 'range': 0, 'chunks': 2}, 'range of 0 between 2 chunks'),
    ({'name': 'pose', 'range': 9, 'chunks': 1}, 'range of 9 between 1 chunks'),
  ],
)
def test_settings_that_are_not_understood_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    sampling.make(**settings)
