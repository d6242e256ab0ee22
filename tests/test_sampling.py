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


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'name': 'randomised', 'range': 9}, "No sampling 'randomised'. Did you mean 'randomized'"),
    ({'name': 'randomized'}, 'takes range, not nothing'),
    ({'name': 'none', 'range': 9}, 'takes nothing, not range'),
    ({'name': 'randomized', 'range': 0}, 'range of 0'),
  ],
)
def test_settings_that_are_not_understood_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    sampling.make(**settings)
