import jax.numpy as jnp
import numpy as np

from posjax import positions
from posjax.extension import applicable

DIMS = positions.Dims(width=8, heads=2, kv_heads=1, head_width=4, length=16)


def codes(pos_L, width=8, dtype=jnp.float32, **settings):
  scheme = positions.make('onehot', **settings)
  x_LD = jnp.zeros((len(pos_L), width), dtype)
  return np.asarray(scheme.embed({}, scheme.spectrum(DIMS), x_LD, None, jnp.asarray(pos_L)))


# Drawn once, with jax 0.10. A version that draws other signs must not pass unnoticed: weights that
# were trained on these codes could not read those.
PINNED = [
  [-1, 1, 1, 1, 1, -1, -1, 1],
  [1, 1, -1, 1, 1, 1, 1, -1],
  [-1, -1, -1, 1, -1, -1, 1, 1],
]


def test_signs_are_the_same_in_every_version_of_jax():
  np.testing.assert_array_equal(codes([0, 1, 2**20]), PINNED)


def test_they_are_a_one_hot_vector_times_a_matrix_of_signs():
  """W column by column, then the product that defines the scheme."""
  W_DN = codes(range(16)).T
  assert (np.abs(W_DN) == 1).all()
  for n in (0, 5, 15):
    e_N = np.zeros(16)
    e_N[n] = 1
    np.testing.assert_array_equal(codes([n])[0], W_DN @ e_N)


def test_equal_positions_have_equal_codes_wherever_they_stand():
  a_LD, b_LD = codes([3, 9, 3]), codes([9, 3])
  np.testing.assert_array_equal(a_LD[[0, 1, 2]], b_LD[[1, 0, 1]])


def test_codes_are_about_orthogonal_neighbours_no_less_than_others():
  """A table of sinusoids fails: its neighbours are alike."""
  W_LD = codes(range(64), width=1024)
  cosine_LL = W_LD @ W_LD.T / 1024
  np.testing.assert_array_equal(np.diag(cosine_LL), 1)
  off = cosine_LL[np.triu_indices(64, 1)]
  assert np.abs(off).max() < 5 / 1024**0.5  # 5 deviations, 2016 pairs
  assert abs(np.diag(cosine_LL, 1).mean()) < 4 / (1024 * 63) ** 0.5
  assert abs(W_LD.mean()) < 4 / W_LD.size**0.5


def test_they_are_added_to_the_tokens_with_the_amplitude(rng):
  scheme, x_LD = positions.make('onehot', amplitude=0.25), np.float32(rng.normal(size=(3, 8)))
  y_LD = scheme.embed({}, scheme.spectrum(DIMS), jnp.asarray(x_LD), None, jnp.array([4, 0, 4]))
  np.testing.assert_allclose(y_LD, x_LD + 0.25 * codes([4, 0, 4]), rtol=1e-6)
  assert codes([1], dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_another_seed_is_another_matrix():
  assert 0.3 < (codes(range(64), seed=1) == codes(range(64), seed=0)).mean() < 0.7


def test_nothing_is_learned_no_length_is_refused_and_nothing_stretches_it():
  scheme = positions.make('onehot')
  assert scheme.init(None, DIMS) == {}
  assert scheme.capacity(scheme.spectrum(DIMS), DIMS) == np.inf
  assert applicable(scheme.spectrum(DIMS)) == ['none', 'log_n']
  assert len(np.unique(codes(range(1000), width=64), axis=0)) == 1000
