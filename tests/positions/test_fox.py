import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Logits, Mask, Rows, Tile, attend
from posjax.positions import Dims

DIMS = Dims(width=6, heads=3, kv_heads=1, head_width=8, length=64)
EPS = np.finfo(np.float32).eps


def gates(x_LD, gate_DH, bias_H):
  return 1 / (1 + np.exp(-(np.float64(x_LD) @ np.float64(gate_DH) + np.float64(bias_H))))


def bias(f_LH, h, i, j, first=1, last=1):
  """Lin et al. 2025, sec. 3: log of the product of f[l], l = j + 1 .. i; float64, a loop."""
  return sum(math.log(f_LH[n, h]) for n in range(j + first, i + last))


def drawn(rng, L, dims=DIMS):
  """Inputs and parameters that are not at their start."""
  x_LD = np.float32(rng.normal(size=(L, dims.width)))
  params = {
    'gate_DH': np.float32(rng.normal(size=(dims.width, dims.heads))),
    'bias_H': np.float32(rng.normal(size=dims.heads)),
  }
  return x_LD, params


def rows(scheme, params, x_LD, **settings):
  L = len(x_LD)
  make = jax.jit(lambda params, x_LD: scheme.features(params, None, x_LD, None, None, None))
  fq, fk = make(params, x_LD)
  both = Rows(index_L=jnp.arange(L), pos_L=jnp.zeros(L, int), **settings)
  return dataclasses.replace(both, features_L=fq), dataclasses.replace(both, features_L=fk)


def test_a_score_gains_the_log_of_the_product_of_gates_after_the_key_up_to_the_query(rng):
  scheme, L = positions.make('fox'), 9
  x_LD, params = drawn(rng, L)
  s_HIJ = np.float32(rng.normal(size=(3, L, L)))
  tile = Tile(*rows(scheme, params, x_LD))
  got_HIJ = np.asarray(scheme.score(params, None, jnp.asarray(s_HIJ), tile))
  f_LH = gates(x_LD, **params)
  for h, i, j in np.ndindex(3, L, L):
    if j > i:
      continue
    atol = 16 * EPS * (1 + abs(bias(f_LH, h, L - 1, 0)))
    assert abs(got_HIJ[h, i, j] - s_HIJ[h, i, j] - bias(f_LH, h, i, j)) < atol
    with_key = bias(f_LH, h, i, j, first=0)
    without_query = bias(f_LH, h, i, j, last=0)
    for wrong in (with_key, without_query) if i > j else (with_key,):
      assert abs(got_HIJ[h, i, j] - s_HIJ[h, i, j] - wrong) > atol


def test_a_part_of_the_rows_is_enough_as_in_tiles(rng):
  scheme, L = positions.make('fox'), 12
  x_LD, params = drawn(rng, L)
  query, key = rows(scheme, params, x_LD)
  whole = scheme.score(params, None, jnp.zeros((3, L, L)), Tile(query, key))
  part = scheme.score(params, None, jnp.zeros((3, 4, 5)), Tile(query.cut(7, 4), key.cut(2, 5)))
  np.testing.assert_array_equal(part, whole[:, 7:11, 2:7])


def test_gates_start_as_the_authors_at_about_one_half():
  dims = dataclasses.replace(DIMS, width=400, heads=50)
  params = positions.make('fox').init_layer(jax.random.key(0), dims)
  assert params['gate_DH'].shape == (400, 50)
  assert abs(float(params['gate_DH'].std()) - 0.02) < 5 * 0.02 / (2 * 400 * 50) ** 0.5
  np.testing.assert_array_equal(params['bias_H'], np.zeros(50))
  wide = positions.make('fox', deviation=0.3).init_layer(jax.random.key(0), dims)
  np.testing.assert_allclose(wide['gate_DH'], 15 * params['gate_DH'], rtol=1e-5)


def test_a_document_in_a_packed_row_has_the_biases_it_has_alone(rng):
  """The sum runs over the whole row, and what came before a document leaves no trace."""
  scheme = positions.make('fox')
  x_LD, params = drawn(rng, 300)
  start = 280
  packed = rows(scheme, params, x_LD, segment_L=jnp.repeat(jnp.array([1, 2]), jnp.array([280, 20])))
  alone = rows(scheme, params, x_LD[start:])
  zeros_HIJ = jnp.zeros((3, 20, 20))
  got_HIJ = scheme.score(params, None, zeros_HIJ, Tile(*(r.cut(start, 20) for r in packed)))
  expected_HIJ = scheme.score(params, None, zeros_HIJ, Tile(*alone))
  largest = float(jnp.abs(packed[0].features_L).max())
  np.testing.assert_allclose(got_HIJ, expected_HIJ, atol=2 * EPS * largest)


def test_gradients_of_gates_are_those_of_the_definition(rng):
  """That of log f[l] gathers all pairs with l between them; here by differences, in float64."""
  scheme, L = positions.make('fox'), 7
  x_LD, params = drawn(rng, L)
  g_HIJ = np.tril(rng.normal(size=(3, L, L)))

  def ours(params):
    tile = Tile(*rows(scheme, params, x_LD))
    return jnp.sum(g_HIJ * scheme.score(params, None, jnp.zeros((3, L, L)), tile))

  def exact(params):
    f_LH = gates(x_LD, **params)
    return sum(
      g_HIJ[h, i, j] * bias(f_LH, h, i, j) for h, i, j in np.ndindex(3, L, L) if j <= i
    )

  got = jax.tree.map(np.asarray, jax.jit(jax.grad(ours))(params))
  for name, value in params.items():
    for index in np.ndindex(value.shape):
      step = np.zeros(value.shape)
      step[index] = 1e-5
      up, down = (exact(params | {name: value + sign * step}) for sign in (1, -1))
      np.testing.assert_allclose(got[name][index], (up - down) / 2e-5, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize('bias', [0.0, 4.0])
def test_long_sums_round_to_less_than_the_docstring_says(rng, bias):
  scheme, L = positions.make('fox'), 16_384
  x_LD, params = drawn(rng, L)
  params['bias_H'] = np.full(3, bias, np.float32)
  kept_LH, _ = scheme.features(params, None, jnp.asarray(x_LD), None, None, None)
  assert kept_LH.dtype == jnp.float32
  exact_LH = np.cumsum(np.log(gates(x_LD, **params)), axis=0)
  error_LH = np.float64(kept_LH) - exact_LH
  for distance in (1, 10, 100, 1000):
    worst = np.abs(error_LH[distance:] - error_LH[:-distance]).max()
    assert worst < 3e-7 * np.abs(exact_LH).max()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16, jnp.float16])
def test_columns_hold_each_heads_own_sums_exactly(rng, dtype):
  """One bfloat16 column would round 1001 to 1000; float16 ends at 65,504."""
  scheme, scale = positions.make('fox'), 128**-0.5
  kept_LH = -np.float32(np.cumsum(np.abs(rng.normal(size=(6, 3))) * 5000, axis=0))
  assert np.abs(kept_LH).max() / scale > 65_504
  key = Rows(index_L=jnp.arange(6), pos_L=jnp.arange(6), features_L=jnp.asarray(kept_LH))
  settings = {'heads': 3, 'kv_heads': 1, 'scale': scale, 'dtype': dtype}
  q_LHC, k_L1C = jax.jit(lambda key: scheme.columns({}, None, key, key, **settings))(key)
  k_LC = k_L1C[:, 0]
  for columns in (q_LHC, k_LC):
    np.testing.assert_array_equal(np.float64(columns), np.float64(columns.astype(dtype)))
  got_HIJ = scale * np.einsum('ihc,jc->hij', np.float64(q_LHC), np.float64(k_LC))
  exact_HIJ = np.broadcast_to(-kept_LH.T[:, None], (3, 6, 6))
  np.testing.assert_allclose(got_HIJ, exact_HIJ, rtol=2 * EPS)


def total_variation(bias_HJ, exact_HJ, content_HJ):
  """Half the sum of absolute differences of a row's weights; the worst of the heads."""
  def weights(s_HJ):
    p_HJ = np.exp(s_HJ - s_HJ.max(-1, keepdims=True))
    return p_HJ / p_HJ.sum(-1, keepdims=True)

  return np.abs(weights(content_HJ + bias_HJ) - weights(content_HJ + exact_HJ)).sum(-1).max() / 2


@pytest.mark.parametrize('bias', [0.0, 4.0])
def test_a_row_of_8192_weights_survives_bfloat16_columns_but_not_a_single_one(rng, bias):
  """Against float64 throughout, sums of gates included; half is kept of each, or 98 %."""
  scheme, L, scale = positions.make('fox'), 8192, 8**-0.5
  x_LD, params = drawn(rng, L)
  params = {'gate_DH': 0.1 * params['gate_DH'], 'bias_H': np.full(3, bias, np.float32)}
  query, key = rows(scheme, params, x_LD)
  exact_HJ = -np.cumsum(np.log(gates(x_LD, **params)), axis=0).T
  content_HJ = rng.normal(size=(3, L)) * 2
  q_LHC, k_L1C = scheme.columns(
    params, None, query, key, heads=3, kv_heads=1, scale=scale, dtype=jnp.bfloat16
  )
  q_HC, k_LC = (np.float32(x.astype(jnp.bfloat16)) for x in (q_LHC[-1], k_L1C[:, 0]))
  sums_HJ = scale * np.einsum('hc,jc->hj', q_HC, k_LC)  # as a kernel sums them, in float32
  assert total_variation(np.float64(sums_HJ), exact_HJ, content_HJ) < 2e-4
  single_HJ = scale * np.float64(jnp.asarray(-key.features_L.T / scale, jnp.bfloat16))
  assert total_variation(single_HJ, exact_HJ, content_HJ) > 0.03


def test_weights_are_a_softmax_in_which_forgotten_keys_fade(rng):
  """Through the operator: sum_j prod(f) exp(q.k) v / sum_j prod(f) exp(q.k), the paper's form."""
  scheme, L = positions.make('fox'), 10
  dims = dataclasses.replace(DIMS, heads=2)
  x_LD, params = drawn(rng, L, dims)
  q_LHK, k_LGK, v_LGV = (np.float32(rng.normal(size=(L, n, 8))) for n in (2, 1, 1))
  query, key = rows(scheme, params, x_LD)
  batched = lambda r: dataclasses.replace(
    jax.tree.map(lambda x: x[None], r), index_L=r.index_L
  )
  logits = Logits(scale=8**-0.5, mask=Mask(), score=scheme.score)
  run = jax.jit(lambda *arrays: attend(*arrays, logits, operands=(params, None)))
  arrays = *(x[None] for x in (q_LHK, k_LGK, v_LGV)), batched(query), batched(key)
  out_LHV = np.asarray(run(*arrays))[0]
  f_LH = gates(x_LD, **params)
  for i, h in np.ndindex(L, 2):
    kept = [np.prod(f_LH[j + 1 : i + 1, h]) for j in range(i + 1)]
    p = kept * np.exp(k_LGK[: i + 1, 0] @ np.float64(q_LHK[i, h]) / 8**0.5)
    np.testing.assert_allclose(out_LHV[i, h], p / p.sum() @ v_LGV[: i + 1, 0], atol=1e-5)


def test_a_negative_deviation_is_refused():
  with pytest.raises(ValueError, match=r'deviation -1\. Use one >= 0'):
    positions.make('fox', deviation=-1)
