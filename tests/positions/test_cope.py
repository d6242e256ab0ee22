import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Logits, Mask, Rows, Tile, dense, tiled
from posjax.extension import Spectrum, extend
from posjax.positions import Dims

K = 8
DIMS = Dims(width=16, heads=4, kv_heads=2, head_width=K, length=64)
PLAIN = Spectrum(rate=1.0)


def sigmoid(x):
  return 1 / (1 + math.exp(-x))


def at(table_EK, p):
  """The vector of a place p >= 0 that need not be whole."""
  low = math.floor(p)
  return (p - low) * table_EK[math.ceil(p)] + (1 - (p - low)) * table_EK[low]


def counted(s_J, hidden_J, n, i):
  """Golovneva et al. 2024, sec. 4: gates from the key to the query, those of both included."""
  return sum(sigmoid(s_J[j]) for j in range(n, i + 1) if not hidden_J[j])


def without_the_key(s_J, hidden_J, n, i):
  return counted(s_J, hidden_J, n + 1, i)


def from_the_oldest(s_J, hidden_J, n, i):
  return counted(s_J, hidden_J, 0, n)


def keys_ahead_too(s_J, hidden_J, n, i):
  return sum(sigmoid(s) for s in s_J[n:])


def unscaled(s_J, hidden_J, n, i):
  return counted(s_J * K**0.5, hidden_J, n, i)


def logits(table_EK, q_LHK, k_LGK, hidden_IJ, *, count=counted, rate=1.0, read=at, divided=False):
  """Logits by loops in float64, -inf where hidden; the rest are known-wrong variants."""
  L, H, K = q_LHK.shape
  table_EK, group = np.float64(table_EK), H // k_LGK.shape[1]
  out_HIJ = np.full((H, L, L), -np.inf)
  for h, i in np.ndindex(H, L):
    q_K = np.float64(q_LHK[i, h])
    s_J = k_LGK[:, h // group] @ q_K / K**0.5
    for j in np.flatnonzero(~hidden_IJ[i]):
      p = min(rate * count(s_J, hidden_IJ[i], j, i), len(table_EK) - 1)
      out_HIJ[h, i, j] = s_J[j] + q_K @ read(table_EK, p) / (K**0.5 if divided else 1)
  return out_HIJ


def causal(L):
  return np.triu(np.ones((L, L), bool), 1)


def rows_of(scheme, table_EK, q_LHK, **settings):
  """Rows of queries, and of keys."""
  params = {'table_EK': jnp.asarray(table_EK)}
  features, none = scheme.features(params, PLAIN, None, jnp.asarray(q_LHK), None, None)
  assert none is None
  key = Rows(index_L=jnp.arange(len(q_LHK)), pos_L=jnp.zeros(len(q_LHK), int), **settings)
  return dataclasses.replace(key, features_L=features), key


def logits_of(scheme, mask=Mask()):  # noqa: B008
  return Logits(scale=K**-0.5, mask=mask, start=scheme.start, walk=scheme.walk)


def walked(scheme, table_EK, q_LHK, k_LGK, spectrum=PLAIN):
  """Logits of all pairs, causal, and the state after them; the walk in one tile."""
  query, key = rows_of(scheme, table_EK, q_LHK)
  k_LHK = np.repeat(k_LGK, q_LHK.shape[1] // k_LGK.shape[1], axis=1)
  s_HIJ = jnp.einsum('ihk,jhk->hij', q_LHK, k_LHK) * K**-0.5
  tile, start = Tile(query, key, Mask()), scheme.start({}, spectrum, query)
  return jax.jit(scheme.walk)({}, spectrum, s_HIJ, tile, start)


WRONG = {
  'without the key itself': {'count': without_the_key},
  'counted from the oldest key': {'count': from_the_oldest},
  'gates of hidden keys': {'count': keys_ahead_too},
  'gates of unscaled logits': {'count': unscaled},
  'not interpolated': {'read': lambda table_EK, p: table_EK[math.floor(p)]},
  'divided by the root of the width': {'divided': True},
}


@pytest.mark.parametrize('rows', [2, 6, 64])
def test_logits_are_those_of_the_paper_and_of_no_wrong_variant(rng, rows, tolerance):
  """Counts go beyond the table of 6 rows, and fill a small part of that of 64."""
  scheme, L = positions.make('cope', positions=rows), 16
  table_EK, q_LHK, k_LGK = (
    np.float32(rng.normal(size=shape)) for shape in ((rows, K), (L, 4, K), (L, 2, K))
  )
  got_HIJ, count_HI = walked(scheme, table_EK, q_LHK, k_LGK)
  assert got_HIJ.dtype == count_HI.dtype == jnp.float32
  seen_IJ = ~causal(L)
  assert (rows == 64) == (float(count_HI.max()) < rows - 1)
  exact_HIJ = logits(table_EK, q_LHK, k_LGK, ~seen_IJ)
  atol = np.abs(exact_HIJ[:, seen_IJ]).max() * tolerance(L + K)
  np.testing.assert_allclose(got_HIJ[:, seen_IJ], exact_HIJ[:, seen_IJ], atol=atol)
  for name, change in WRONG.items():
    wrong_HIJ = logits(table_EK, q_LHK, k_LGK, ~seen_IJ, **change)
    assert np.abs(wrong_HIJ[:, seen_IJ] - exact_HIJ[:, seen_IJ]).max() > 0.1, name


def test_a_query_that_counts_every_token_has_relative_positions(rng):
  """As the paper says: with all gates at 1, p is i - j + 1."""
  scheme, L = positions.make('cope', positions=8), 12
  table_EK, q_LHK = (np.float32(rng.normal(size=shape)) for shape in ((8, K), (L, 2, K)))
  query, key = rows_of(scheme, table_EK, q_LHK)
  open_HIJ = jnp.full((2, L, L), 40.0)
  start = scheme.start({}, PLAIN, query)
  got_HIJ, count_HI = map(
    np.asarray, jax.jit(scheme.walk)({}, PLAIN, open_HIJ, Tile(query, key, Mask()), start)
  )
  for h, i, j in np.ndindex(2, L, L):
    if j <= i:
      exact = 40 + np.float64(q_LHK[i, h]) @ table_EK[min(i - j + 1, 7)]
      np.testing.assert_allclose(got_HIJ[h, i, j], exact, atol=1e-5)
  np.testing.assert_array_equal(count_HI, np.tile(1 + np.arange(L), (2, 1)))


@pytest.mark.parametrize(
  ('kv_heads', 'mask', 'packed'),
  [(4, Mask(), False), (2, Mask(window=7), True), (1, Mask(window=5, sinks=2), False)],
)
def test_tiles_pass_the_count_on_and_hidden_keys_are_not_counted(
  rng, kv_heads, mask, packed, tolerance
):
  """Out of sight by causality, window or document: neither counted nor passed on as a state."""
  scheme, L = positions.make('cope', positions=4), 21
  table_EK, q_LHK, k_LGK, v_LGK = (
    np.float32(rng.normal(size=shape))
    for shape in ((4, K), (L, 4, K), (L, kv_heads, K), (L, kv_heads, K))
  )
  segment_L = jnp.asarray(np.repeat([1, 2], [8, 13])) if packed else None
  query, key = rows_of(scheme, table_EK, q_LHK, segment_L=segment_L)
  whole = Tile(query.with_begin(), key.with_begin(), mask)
  hidden_IJ = ~np.asarray(whole.visible_IJ)
  exact_HIJ = logits(table_EK, q_LHK, k_LGK, hidden_IJ)
  p_HIJ = np.exp(exact_HIJ - exact_HIJ.max(-1, keepdims=True))
  p_HIJ /= p_HIJ.sum(-1, keepdims=True)
  exact_LHK = np.einsum('hij,jhk->ihk', p_HIJ, np.repeat(v_LGK, 4 // kv_heads, axis=1))
  for form in (dense, functools.partial(tiled, sizes=(5, 4))):
    run = functools.partial(form, logits=logits_of(scheme, mask), operands=({}, PLAIN))
    got_LHK = jax.jit(run)(q_LHK, k_LGK, v_LGK, query, key)
    size = np.abs(exact_HIJ[np.isfinite(exact_HIJ)]).max()
    np.testing.assert_allclose(got_LHK, exact_LHK, atol=size * tolerance(L))


def test_gradients_go_through_gates_and_table_as_those_of_the_definition(rng):
  """By differences in float64, to the table, the queries and the keys, some counts clipped."""
  scheme, L, step = positions.make('cope', positions=4), 7, 1e-6
  arrays = [np.float32(rng.normal(size=shape)) for shape in ((4, K), (L, 1, K), (L, 1, K))]
  hidden_IJ = causal(L)
  g_HIJ = np.float32(rng.normal(size=(1, L, L))) * ~hidden_IJ

  def ours(*arrays):
    return jnp.sum(g_HIJ * walked(scheme, *arrays)[0])

  def exact(*arrays):
    return np.sum(np.where(hidden_IJ, 0, g_HIJ * np.nan_to_num(logits(*arrays, hidden_IJ))))

  got = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*map(jnp.asarray, arrays))
  for n, grad in enumerate(got):
    for index in [tuple(rng.integers(size) for size in grad.shape) for _ in range(12)]:
      moved = [np.float64(x) for x in arrays]
      values = []
      for sign in (1, -1):
        moved[n] = np.float64(arrays[n])
        moved[n][index] += sign * step
        values.append(exact(*moved))
      slope = (values[0] - values[1]) / (2 * step)
      np.testing.assert_allclose(grad[index], slope, rtol=1e-4, atol=1e-4)


def test_counts_beyond_the_last_row_stay_there_and_teach_gates_nothing(rng):
  scheme, L = positions.make('cope', positions=3), 30
  table_EK, q_LHK = (np.float32(rng.normal(size=shape)) for shape in ((3, K), (L, 1, K)))
  query, key = rows_of(scheme, table_EK, q_LHK)
  tile = Tile(query, key, Mask())

  @jax.jit
  def last_row(s_J):
    s_HIJ = jnp.zeros((1, L, L)).at[0, L - 1].set(s_J)
    return scheme.walk({}, PLAIN, s_HIJ, tile, scheme.start({}, PLAIN, query))[0][0, L - 1]

  s_J = jnp.asarray(rng.normal(size=L), jnp.float32)
  exact = np.float64(q_LHK[-1, 0]) @ table_EK[2]
  np.testing.assert_allclose(last_row(s_J)[:20] - s_J[:20], exact, atol=1e-5)
  slope_JJ = jax.jit(jax.jacrev(last_row))(s_J)
  np.testing.assert_array_equal(slope_JJ[:20], np.eye(L)[:20])
  assert np.abs(np.triu(slope_JJ, 1)[-3:]).max() > 0.01


def results(scheme, form, rows, table_EK, q_BLHK, k_BLHK):
  """Output of a batch, and what flows back from it to the table, queries and keys."""

  def output(table_EK, q_BLHK, k_BLHK):
    def one(q_LHK, k_LHK):
      features_L = rows_of(scheme, table_EK, q_LHK)[0].features_L
      query = dataclasses.replace(rows, features_L=features_L)
      return form(q_LHK, k_LHK, k_LHK, query, rows, logits_of(scheme), operands=({}, PLAIN))

    return jax.vmap(one)(q_BLHK, k_BLHK)

  out_BLHK, pull = jax.vjp(output, table_EK, q_BLHK, k_BLHK)
  return out_BLHK, pull(jnp.cos(jnp.arange(out_BLHK.size)).reshape(out_BLHK.shape))


@jax.jit
def tiles_and_definition(rows, *arrays):
  """`results` of both; one program for all cases."""
  scheme, tiles = positions.make('cope', positions=4), functools.partial(tiled, sizes=(8, 4))
  return [results(scheme, form, rows, *arrays) for form in (tiles, dense)]


@pytest.mark.parametrize('closed', [0, 1, 2])  # how many sequences of the batch count next to none
@pytest.mark.parametrize('packed', [False, True])
def test_tiles_beyond_the_last_row_give_what_the_definition_gives(rng, closed, packed, tolerance):
  """Forward and backward, whether a batch passes them by or one of its rows still counts."""
  L = 40
  table_EK, q_BLHK, k_BLHK = (
    np.float32(rng.normal(size=shape)) for shape in ((4, K), (2, L, 2, K), (2, L, 2, K))
  )
  q_BLHK[:closed] = 1 + 0.1 * q_BLHK[:closed]
  k_BLHK[:closed] -= 5  # logits of about -14
  segment_L = jnp.asarray(np.repeat([1, 2], [22, 18])) if packed else None
  rows = Rows(index_L=jnp.arange(L), pos_L=jnp.zeros(L, int), segment_L=segment_L)
  ours, theirs = tiles_and_definition(rows, table_EK, q_BLHK, k_BLHK)
  for got, exact in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    # The table's are sums over pairs; with gates closed they cancel.
    np.testing.assert_allclose(got, exact, atol=max(1, np.abs(exact).max()) * tolerance(L * L))


def test_a_batch_takes_one_branch_per_tile_forward_and_backward():
  """With a condition for each row, vmap would turn branches into choices between results, and both
  would run on every tile."""
  rows = Rows(index_L=jnp.arange(16), pos_L=jnp.arange(16))
  tiles = functools.partial(tiled, sizes=(4, 4))
  program = jax.jit(functools.partial(results, positions.make('cope', positions=4), tiles, rows))

  def branches(B):
    x_BLHK = jnp.ones((B, 16, 2, K))
    return program.lower(jnp.ones((4, K)), x_BLHK, x_BLHK).as_text().count('stablehlo.case')

  assert branches(3) == branches(1) >= 4  # forward; backward: states again, values, derivatives


@pytest.mark.parametrize('factor', [2.0, 5.0])
def test_an_extension_divides_the_counts(rng, factor, tolerance):
  scheme, L = positions.make('cope', positions=4), 12
  table_EK, q_LHK, k_LGK = (
    np.float32(rng.normal(size=shape)) for shape in ((4, K), (L, 2, K), (L, 2, K))
  )
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=64)
  got_HIJ, _ = walked(scheme, table_EK, q_LHK, k_LGK, spectrum)
  exact_HIJ = logits(table_EK, q_LHK, k_LGK, causal(L), rate=1 / factor)
  seen_IJ = ~causal(L)
  atol = np.abs(exact_HIJ[:, seen_IJ]).max() * tolerance(L + K)
  np.testing.assert_allclose(got_HIJ[:, seen_IJ], exact_HIJ[:, seen_IJ], atol=atol)


def test_the_table_starts_at_zero_and_each_layer_has_its_own():
  scheme = positions.make('cope', positions=5)
  assert scheme.init(jax.random.key(0), DIMS) == {}
  params = scheme.init_layer(jax.random.key(0), DIMS)
  assert list(params) == ['table_EK']
  np.testing.assert_array_equal(params['table_EK'], np.zeros((5, K)))


def test_a_table_of_one_row_is_refused():
  with pytest.raises(ValueError, match=r'CoPE with 1 positions.*Use positions >= 2'):
    positions.make('cope', positions=1)
