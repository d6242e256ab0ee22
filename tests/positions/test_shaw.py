import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Logits, Mask, Rows, Tile, attend, dense, tiled
from posjax.positions import Dims

K = 8
DIMS = Dims(width=16, heads=4, kv_heads=2, head_width=K, length=64)


def drawn(rng, farthest, *sizes):
  """A table for keys and one for values, then arrays of these sizes; all float32."""
  shapes = [(farthest + 1, K), (farthest + 1, K), *sizes]
  key_EK, value_EV, *others = (np.float32(rng.normal(size=shape)) for shape in shapes)
  return {'key_EK': key_EK, 'value_EV': value_EV}, *others


def row(r, farthest):
  """Shaw et al. 2018, sec. 3.2, of r = query - key: index clip(-r, -farthest, farthest) of a table
  that is numbered from -farthest. Ours holds those of 0, -1, ... -farthest."""
  return -max(-farthest, min(farthest, -r))


def attention(params, q_LHK, k_LGK, v_LGV, farthest, *, row=row, inside=True, values=True):
  """Eq. 3 and 4 by loops in float64, causal. Known-wrong: the relative term outside of the scaling,
  no vectors for values, other rows."""
  key_EK, value_EV = (np.float64(params[name]) for name in ('key_EK', 'value_EV'))
  L, H, K = q_LHK.shape
  group = H // k_LGK.shape[1]
  out_LHV = np.zeros((L, H, v_LGV.shape[-1]))
  for i, h in np.ndindex(L, H):
    q_K, g = np.float64(q_LHK[i, h]), h // group
    rows = [row(i - j, farthest) for j in range(i + 1)]
    content_J, relative_J = k_LGK[: i + 1, g] @ q_K, key_EK[rows] @ q_K
    s_J = (content_J + relative_J) / K**0.5 if inside else content_J / K**0.5 + relative_J
    p_J = np.exp(s_J - s_J.max())
    p_J /= p_J.sum()
    out_LHV[i, h] = p_J @ (v_LGV[: i + 1, g] + (value_EV[rows] if values else 0.0))
  return out_LHV


def rows_of(scheme, params, q_LHK, start=0, **settings):
  """Rows of queries and keys, the queries being the last of the keys from `start` on."""
  features, none = scheme.features(params, None, None, jnp.asarray(q_LHK), None, None)
  assert none is None
  place_L = start + jnp.arange(len(q_LHK))
  return Rows(index_L=place_L, pos_L=place_L, features_L=features, **settings)


def logits_of(scheme):
  return Logits(scale=K**-0.5, mask=Mask(), score=scheme.score, read=scheme.read)


WRONG = {
  'outside of the scaling': {'inside': False},
  'no vectors for values': {'values': False},
  'rows of keys ahead': {'row': lambda r, farthest: farthest - row(r, farthest)},
  'a row later': {'row': lambda r, farthest: min(r + 1, farthest)},
  'clipped a token early': {'row': lambda r, farthest: min(r, farthest - 1)},
}


@pytest.mark.parametrize(('farthest', 'kv_heads'), [(1, 4), (3, 2), (16, 1), (100, 2)])
def test_attention_is_that_of_the_paper_and_of_no_wrong_variant(rng, farthest, kv_heads, tolerance):
  scheme, L = positions.make('shaw', farthest=farthest), 30
  params, *qkv = drawn(rng, farthest, (L, 4, K), (L, kv_heads, K), (L, kv_heads, K))
  rows = rows_of(scheme, params, qkv[0], contiguous=True)
  key = dataclasses.replace(rows, features_L=None)
  operands = jax.tree.map(jnp.asarray, params), None
  exact_LHV = attention(params, *qkv, farthest)
  arrays = [jnp.asarray(x) for x in qkv]
  size = np.abs(exact_LHV).max() * np.abs(qkv[0]).max()
  tiles = functools.partial(tiled, sizes=(7, 4))
  for form in (dense, tiles):
    run = jax.jit(lambda *arrays, form=form: form(*arrays, logits_of(scheme), operands=operands))
    got_LHV = run(*arrays, rows, key)
    np.testing.assert_allclose(got_LHV, exact_LHV, atol=size * tolerance(L))
  for name, change in WRONG.items():
    if name == 'clipped a token early' and farthest >= L:
      continue
    wrong_LHV = attention(params, *qkv, farthest, **change)
    assert np.abs(wrong_LHV - exact_LHV).max() > 0.01, name


@pytest.mark.parametrize('start', [0, 2, 8, 9, 10, 30])  # distances -5 to 3, ... 4 (near) and up
@pytest.mark.parametrize('contiguous', [True, False])
def test_every_tile_near_or_far_adds_and_reads_the_row_of_its_distance(rng, start, contiguous):
  """With 6 keys and farthest = 4, the nearest distance of the tile is start - 5."""
  farthest, I, J = 4, 3, 6
  scheme = positions.make('shaw', farthest=farthest)
  params, q_IHK, s_HIJ, p_HIJ = drawn(rng, farthest, (I, 2, K), (2, I, J), (2, I, J))
  query = rows_of(scheme, params, q_IHK, start, contiguous=contiguous)
  key = Rows(index_L=jnp.arange(J), pos_L=jnp.arange(J), contiguous=contiguous)
  added_HIJ, read_HIV = np.zeros((2, I, J)), np.zeros((2, I, K))
  for h, i, j in np.ndindex(2, I, J):
    e = max(row(start + i - j, farthest), 0)  # keys ahead, where no mask hides them
    added_HIJ[h, i, j] = np.float64(q_IHK[i, h]) @ params['key_EK'][e] / K**0.5
    read_HIV[h, i] += np.float64(p_HIJ[h, i, j]) * params['value_EV'][e]
  got_HIJ = jax.jit(scheme.score)(params, None, s_HIJ, Tile(query, key))
  np.testing.assert_allclose(got_HIJ, s_HIJ + added_HIJ, atol=1e-5)
  got_HIV = jax.jit(scheme.read)(params, None, p_HIJ, Tile(query, key))
  np.testing.assert_allclose(got_HIV, read_HIV, atol=1e-5)


@pytest.mark.parametrize('contiguous', [True, False])
def test_gradients_are_sums_over_the_pairs_of_a_row(rng, contiguous):
  """Of both tables, of queries and of weights, over tiles near and far."""
  farthest, L = 3, 12
  scheme = positions.make('shaw', farthest=farthest)
  params, q_LHK, p_HIJ, ds_HIJ, g_HIV = drawn(
    rng, farthest, (L, 2, K), (2, L, L), (2, L, L), (2, L, K)
  )
  p_HIJ, ds_HIJ = np.tril(p_HIJ), np.tril(ds_HIJ)

  def total(params, q_LHK, p_HIJ):
    rows = rows_of(scheme, params, q_LHK, contiguous=contiguous)
    out = 0.0
    for i in range(0, L, 4):
      for j in range(0, L, 4):
        tile = Tile(rows.cut(i, 4), dataclasses.replace(rows, features_L=None).cut(j, 4))
        cut = lambda x_HIJ, i=i, j=j: x_HIJ[:, i : i + 4, j : j + 4]
        out += jnp.sum(cut(ds_HIJ) * scheme.score(params, None, jnp.zeros((2, 4, 4)), tile))
        out += jnp.sum(g_HIV[:, i : i + 4] * scheme.read(params, None, cut(p_HIJ), tile))
    return out

  got = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(
    jax.tree.map(jnp.asarray, params), jnp.asarray(q_LHK), jnp.asarray(p_HIJ)
  )
  exact = jax.tree.map(np.zeros_like, (params, q_LHK, p_HIJ))
  for h, i, j in np.ndindex(2, L, L):
    if j <= i:
      e = row(i - j, farthest)
      exact[0]['key_EK'][e] += ds_HIJ[h, i, j] * q_LHK[i, h] / K**0.5
      exact[0]['value_EV'][e] += p_HIJ[h, i, j] * g_HIV[h, i]
      exact[1][i, h] += ds_HIJ[h, i, j] * params['key_EK'][e] / K**0.5
      exact[2][h, i, j] = g_HIV[h, i] @ params['value_EV'][e]
  exact[2][:] = np.tril(exact[2])
  got = (*got[:2], np.tril(got[2]))
  for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_batch_takes_one_branch_per_tile_forward_and_backward(rng):
  """With a condition for each row, vmap would turn branches into choices between results, and both
  would run on every tile."""
  scheme, L = positions.make('shaw'), 64
  params, q_LHK, k_LGK = drawn(rng, 16, (L, 4, K), (L, 2, K))

  def branches(B):
    q_BLHK, k_BLGK = jnp.stack([q_LHK] * B), jnp.stack([k_LGK] * B)
    place_L = jnp.arange(L)
    key = Rows(index_L=place_L, pos_L=jnp.stack([place_L] * B), contiguous=True)

    def total(params, q_BLHK):
      features = jax.vmap(lambda q_LHK: rows_of(scheme, params, q_LHK).features_L)(q_BLHK)
      query = dataclasses.replace(key, features_L=features)
      out_BLHK = attend(
        q_BLHK, k_BLGK, k_BLGK, query, key, logits_of(scheme), operands=(params, None)
      )
      return out_BLHK.sum()

    program = jax.jit(jax.grad(total, argnums=(0, 1))).lower(params, q_BLHK)
    return program.as_text().count('stablehlo.case')

  assert branches(3) == branches(1) >= 4  # of score and of read, forward and backward


def test_tables_are_drawn_as_in_tensor2tensor_and_each_layer_has_its_own():
  """Uniform; the variance counts the rows that the table has there, 2 farthest + 1."""
  scheme = positions.make('shaw', farthest=400)
  params = scheme.init_layer(jax.random.key(0), DIMS)
  assert scheme.init(jax.random.key(0), DIMS) == {}
  assert {name: x.shape for name, x in params.items()} == {
    'key_EK': (401, K), 'value_EV': (401, K)
  }  # fmt: skip
  bound = (3 * 2 / (801 + K)) ** 0.5
  for x in params.values():
    assert np.abs(x).max() <= bound
    assert abs(float(x.var()) / (2 / (801 + K)) - 1) < 5 * (0.8 / x.size) ** 0.5
  assert np.abs(params['key_EK'] - params['value_EV']).max() > bound / 2


@pytest.mark.parametrize('farthest', [0, -1])
def test_one_vector_for_all_distances_is_refused(farthest):
  with pytest.raises(ValueError, match=rf'farthest = {farthest} tokens.*Use farthest >= 1'):
    positions.make('shaw', farthest=farthest)
