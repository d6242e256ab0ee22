import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Rows, Tile
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.extension import extend

EPS = np.finfo(np.float32).eps
POS_I, POS_J = np.array([7, 300, 301]), np.array([0, 5, 7, 299])


def dims(heads):
  return positions.Dims(width=16, heads=heads, kv_heads=1, head_width=8, length=64)


def rows(pos_L):
  return Rows(index_L=jnp.arange(len(pos_L)), pos_L=jnp.asarray(pos_L))


def score(log_slope_H, s_HIJ, factor=1.0):
  scheme = positions.make('slopes')
  spectrum = extend(scheme.spectrum(dims(3)), name='linear', factor=factor, trained_length=64)
  params = {'log_slope_H': jnp.asarray(log_slope_H, jnp.float32)}
  return scheme.score(params, spectrum, jnp.asarray(s_HIJ), Tile(rows(POS_I), rows(POS_J)))


LITERALS = {  # Press et al. 2021, their code's get_slopes
  8: [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625],
  6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125],
}


@pytest.mark.parametrize('heads', LITERALS)
def test_slopes_begin_at_those_of_alibi(heads):
  params = positions.make('slopes').init(jax.random.key(0), dims(heads))
  np.testing.assert_allclose(np.exp(params['log_slope_H']), LITERALS[heads], rtol=1e-6)


def test_steepness_sets_where_the_last_slope_begins():
  params = positions.make('slopes', steepness=4.0).init(jax.random.key(0), dims(8))
  np.testing.assert_allclose(params['log_slope_H'], -np.arange(1, 9) / 2 * np.log(2), rtol=1e-6)
  with pytest.raises(ValueError, match='steepness -1 would begin by rewarding distance'):
    positions.make('slopes', steepness=-1)


@pytest.mark.parametrize('factor', [1.0, 4.0])
def test_the_bias_is_minus_the_learned_slope_times_distance(rng, factor):
  s_HIJ, log_slope_H = np.float32(rng.normal(size=(3, 3, 4))), np.float32([-3.0, 0.2, -0.7])
  got_HIJ = score(log_slope_H, s_HIJ, factor)
  for h, i, j in np.ndindex(3, 3, 4):
    distance = float(POS_I[i] - POS_J[j]) / factor
    exact = s_HIJ[h, i, j] - np.exp(np.float64(log_slope_H[h])) * distance
    bound = 4 * EPS * (1 + abs(exact - s_HIJ[h, i, j]))
    assert abs(got_HIJ[h, i, j] - exact) < bound
    for wrong in (
      s_HIJ[h, i, j] - np.float64(log_slope_H[h]) * distance,  # the logarithm taken for the slope
      s_HIJ[h, i, j] + np.exp(np.float64(log_slope_H[h])) * distance,
      s_HIJ[h, i, j] - np.exp(np.float64(log_slope_H[h])) * distance / 8**0.5,
    ):
      assert distance == 0 or abs(wrong - exact) > 10 * bound


def test_gradients_are_slope_times_distance_and_no_step_turns_a_slope_round(rng):
  g_HIJ, log_slope_H = np.float32(rng.normal(size=(3, 3, 4))), np.float32([-3.0, 0.2, -0.7])
  got_H = jax.grad(lambda x_H: jnp.sum(g_HIJ * score(x_H, jnp.zeros((3, 3, 4)))))(log_slope_H)
  distance_IJ = np.float64(POS_I)[:, None] - POS_J
  exact_H = [-np.exp(np.float64(log_slope_H[h])) * (g_HIJ[h] * distance_IJ).sum() for h in range(3)]
  np.testing.assert_allclose(got_H, exact_H, rtol=1e-5)
  far_HIJ = score(log_slope_H - 50, jnp.zeros((3, 3, 4)))
  assert (np.sign(far_HIJ) == -np.sign(distance_IJ)).all()


def test_all_layers_share_one_set_of_slopes():
  model = Decoder(
    pattern=(Layer(scheme=positions.make('slopes')),), length=16, vocabulary=5, width=8, layers=3,
    heads=4, kv_heads=2, head_width=4, mlp_width=8,
  )  # fmt: skip
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 6), int), model.spectrum()
  )['params']
  assert shapes['position']['log_slope_H'].shape == (4,)
  assert 'position' not in shapes['blocks']['layer_0']


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_columns_carry_any_slopes_exactly_and_their_gradient(rng, dtype):
  """Compiled: XLA may leave out a cast to bfloat16 and back, and all parts but one with it."""
  scheme, scale, H = positions.make('slopes'), 8**-0.5, 5
  key = rows(np.array([0, 255, 256, 257, 4095, 65_535]))
  log_slope_H = jnp.float32(rng.normal(size=H) - 3)
  w_HJ = np.float32(rng.normal(size=(H, 6)))

  @jax.jit
  def columns(log_slope_H):
    q_LHC, k_L1C = scheme.columns(
      {'log_slope_H': log_slope_H}, scheme.spectrum(dims(H)), key, key, heads=H, kv_heads=1,
      scale=scale, dtype=dtype,
    )  # fmt: skip
    return q_LHC[0], k_L1C[:, 0]

  columns_HC, columns_LC = columns(log_slope_H)
  for x in (columns_HC, columns_LC):
    np.testing.assert_array_equal(np.float64(x), np.float64(x.astype(dtype)))
  bias_HJ = scale * np.float64(columns_HC) @ np.float64(columns_LC).T
  exact_HJ = np.outer(np.exp(np.float64(log_slope_H)), key.pos_L)
  np.testing.assert_allclose(bias_HJ, exact_HJ, rtol=4 * EPS)

  def total(log_slope_H):
    q_HC, k_LC = columns(log_slope_H)
    return scale * jnp.sum(w_HJ * jnp.einsum('hc,jc->hj', q_HC, k_LC))

  got_H, exact_H = jax.grad(total)(log_slope_H), (w_HJ * exact_HJ).sum(1)
  # A cotangent passes through the rounding once.
  np.testing.assert_allclose(got_H, exact_H, rtol=max(1e-5, float(jnp.finfo(dtype).eps)))
