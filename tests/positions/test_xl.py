import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition, positions
from posjax.attend import Logits, Mask, Rows, Tile, dense, tiled
from posjax.attention import Layer, encoded, scored
from posjax.decoder import Decoder
from posjax.extension import extend

EPS = np.finfo(np.float32).eps
D, H, G, K = 10, 4, 2, 6
DIMS = positions.Dims(width=D, heads=H, kv_heads=G, head_width=K, length=64)


def sinusoids(r, theta=10_000.0, interleaved=False):
  """R[r] of the authors' code, float64: sines, then cosines."""
  angle_F = [r / theta ** (2 * f / D) for f in range(D // 2)]
  waves = [np.sin(angle_F), np.cos(angle_F)]
  return np.stack(waves, axis=-1).reshape(-1) if interleaved else np.concatenate(waves)


def logit(p, q_K, k_K, h, r, theta=10_000.0):
  """Dai et al. 2019, sec. 3.3, terms (a) to (d), and their code's 1/sqrt(K); float64."""
  projected_K = sinusoids(r, theta) @ p['distance_DHK'][:, h]
  a, b = q_K @ k_K, q_K @ projected_K
  c, d = p['u_HK'][h] @ k_K, p['v_HK'][h] @ projected_K
  return (a + b + c + d) / K**0.5


WRONG = {
  'u and v changed places': lambda p, q, k, h, r: (
    logit({**p, 'u_HK': p['v_HK'], 'v_HK': p['u_HK']}, q, k, h, r)
  ),
  'no v': lambda p, q, k, h, r: logit({**p, 'v_HK': 0 * p['v_HK']}, q, k, h, r),
  'no u': lambda p, q, k, h, r: logit({**p, 'u_HK': 0 * p['u_HK']}, q, k, h, r),
  'key minus query': lambda p, q, k, h, r: logit(p, q, k, h, -r),
  'one token off': lambda p, q, k, h, r: logit(p, q, k, h, r + 1),
  'sines and cosines in turn': lambda p, q, k, h, r: (
    (q + p['u_HK'][h]) @ k
    + (q + p['v_HK'][h]) @ (sinusoids(r, interleaved=True) @ p['distance_DHK'][:, h])
  ) / K**0.5,
  'distance after the scaling': lambda p, q, k, h, r: (
    (q + p['u_HK'][h]) @ k / K**0.5
    + (q + p['v_HK'][h]) @ (sinusoids(r) @ p['distance_DHK'][:, h])
  ),
}  # fmt: skip


def drawn(rng, L):
  """Parameters, queries and keys that are not at their start."""
  params = {
    'u_HK': rng.normal(size=(H, K)),
    'v_HK': rng.normal(size=(H, K)),
    'distance_DHK': rng.normal(size=(D, H, K)) / D**0.5,
  }
  vectors = rng.normal(size=(L, H, K)), rng.normal(size=(L, G, K))
  return jax.tree.map(np.float32, params), *(np.float32(x) for x in vectors)


def logits(scheme, params, q_LHK, k_LGK, pos_L, contiguous, first=0, factor=1.0):
  """logit_HIJ of the queries from `first` on."""
  spectrum = extend(scheme.spectrum(DIMS), name='linear', factor=factor, trained_length=64)

  @jax.jit
  def score(params, q_LHK, k_LGK, pos_L):
    fq, fk = scheme.features(params, spectrum, None, q_LHK, k_LGK, pos_L)
    rows = Rows(index_L=jnp.arange(len(pos_L)), pos_L=pos_L, contiguous=contiguous)
    query = dataclasses.replace(rows, features_L=fq).cut(first, len(pos_L) - first)
    key = dataclasses.replace(rows, features_L=fk)
    table_M = Logits(scale=1.0, table=scheme.table).tabled((params, spectrum), query, key)
    assert (table_M is None) != contiguous
    q_LHK = scheme.query(params, spectrum, q_LHK, pos_L)[first:]
    k_LHK = jnp.repeat(scheme.key(params, spectrum, k_LGK, pos_L), H // G, axis=1)
    s_HIJ = jnp.einsum('ihk,jhk->hij', q_LHK, k_LHK) / K**0.5
    return scheme.score(params, spectrum, s_HIJ, Tile(query, key, table_M=table_M))

  return np.asarray(score(params, q_LHK, k_LGK, pos_L))


@pytest.mark.parametrize(('theta', 'clamp'), [(10_000.0, None), (50.0, None), (10_000.0, 4)])
@pytest.mark.parametrize(
  ('contiguous', 'first', 'factor'),
  [(True, 0, 1.0), (True, 5, 4.0), (True, 11, 4.0), (False, 0, 4.0), (False, 5, 1.0)],
)
def test_logits_are_the_four_terms_of_the_paper(
  rng, contiguous, first, factor, theta, clamp, tolerance
):
  """With distances clamped, too: to that many tokens, before anything stretches them."""
  scheme, L = positions.make('xl', theta=theta, clamp=clamp), 12
  params, q_LHK, k_LGK = drawn(rng, L)
  pos_L = np.arange(L) if contiguous else np.cumsum(rng.integers(1, 300, size=L))
  got_HIJ = logits(scheme, params, q_LHK, k_LGK, pos_L, contiguous, first, factor)
  p, wrong = jax.tree.map(np.float64, params), dict.fromkeys(WRONG, 0.0)
  # Queries of length 3 and projections of length 1; frequencies in float32, angles with them.
  atol = 3 * (tolerance(D * K) + EPS / 2 * np.max(pos_L))
  for h, i, j in np.ndindex(H, L - first, L):
    vectors = np.float64(q_LHK[first + i, h]), np.float64(k_LGK[j, h // (H // G)])
    r = min(pos_L[first + i] - pos_L[j], clamp or np.inf) / factor
    exact = logit(p, *vectors, h, r, theta)
    np.testing.assert_allclose(got_HIJ[h, i, j], exact, atol=atol)
    if theta == 10_000.0:
      for name, variant in WRONG.items():
        wrong[name] = max(wrong[name], abs(variant(p, *vectors, h, r) - exact))
  assert theta != 10_000.0 or min(wrong.values()) > 100 * atol


def shifted_as_published(x_IJ, drop=slice(1, None)):
  """_rel_shift of the authors' code: a column of zeros before, rows read anew, one dropped."""
  I, J = x_IJ.shape
  padded = np.concatenate([np.zeros((I, 1)), x_IJ], axis=1)
  return padded.reshape(J + 1, I)[drop].reshape(I, J)


def test_a_segment_after_its_memory_has_the_scores_of_the_authors_shift(rng, tolerance):
  """Their way: each query with the distances klen - 1 .. 0, then shifted; good where keys are seen.
  Dropping the last row instead of the first is wrong, and so is what they leave above the mask."""
  I, M = 5, 4
  scheme = positions.make('xl')
  params, q_LHK, k_LGK = drawn(rng, M + I)
  got_HIJ = logits(scheme, params, q_LHK, k_LGK, np.arange(M + I), True, first=M)
  seen_IJ = np.arange(M + I) <= M + np.arange(I)[:, None]
  p = jax.tree.map(np.float64, params)
  table_JHK = np.einsum(
    'jd,dhk->jhk', [sinusoids(r) for r in range(M + I - 1, -1, -1)], p['distance_DHK']
  )
  for h in range(H):
    content_IJ = (q_LHK[M:, h] + p['u_HK'][h]) @ k_LGK[:, h // (H // G)].T
    products_IJ = (q_LHK[M:, h] + p['v_HK'][h]) @ table_JHK[:, h].T
    exact_IJ = (content_IJ + shifted_as_published(products_IJ)) / K**0.5
    close = {'atol': 3 * tolerance(D * K)}
    np.testing.assert_allclose(got_HIJ[h][seen_IJ], exact_IJ[seen_IJ], **close)
    wrong_IJ = (content_IJ + shifted_as_published(products_IJ, slice(None, -1))) / K**0.5
    assert np.abs(wrong_IJ - exact_IJ)[seen_IJ].max() > 0.1
    assert np.abs(got_HIJ[h] - exact_IJ)[~seen_IJ].max() > 0.1


@pytest.mark.parametrize(('dtype', 'count'), [(jnp.float32, D), (jnp.bfloat16, 6 * D)])
def test_columns_are_exact_and_add_up_to_the_paper_as_far_as_a_book(rng, dtype, count):
  """Compiled, against float64, with the query's own vectors."""
  scheme, scale = positions.make('xl'), 0.3
  params, q_LHK, _ = drawn(rng, 6)
  spectrum, pos_L = scheme.spectrum(DIMS), np.array([0, 1, 256, 257, 4097, 65_535])

  @jax.jit
  def columns(q_LHK):
    q_features, k_features = scheme.features(params, spectrum, None, q_LHK, None, pos_L)
    rows = Rows(index_L=jnp.arange(6), pos_L=jnp.asarray(pos_L))
    query, key = (dataclasses.replace(rows, features_L=x) for x in (q_features, k_features))
    sizes = {'heads': H, 'kv_heads': G, 'scale': scale, 'dtype': dtype}
    return scheme.columns(params, spectrum, query, key, **sizes)

  q_LHC, k_L1C = columns(jnp.asarray(q_LHK))
  assert (q_LHC.shape, k_L1C.shape) == ((6, H, count), (6, 1, count))
  for x in (q_LHC, k_L1C):
    np.testing.assert_array_equal(np.float64(x), np.float64(x.astype(dtype)))
  got_HIJ = scale * np.einsum('ihc,jc->hij', np.float64(q_LHC), np.float64(k_L1C[:, 0]))
  frequency_F = np.float64(np.float32(spectrum.frequency_F))  # as the compiled program has them
  p = jax.tree.map(np.float64, params)
  for h, i, j in np.ndindex(H, 6, 6):
    angle_F = (pos_L[i] - pos_L[j]) * frequency_F
    wave_D = np.concatenate([np.sin(angle_F), np.cos(angle_F)])
    q_K = np.float64(q_LHK[i, h] + params['v_HK'][h])
    exact = q_K @ (wave_D @ p['distance_DHK'][:, h]) / K**0.5
    size = np.abs(p['distance_DHK'][:, h] @ q_K).sum() / K**0.5
    assert abs(got_HIJ[h, i, j] - exact) < size * (8 * EPS + 6e-10 * 65_535)


@pytest.mark.parametrize(
  'settings',
  [
    {'name': 'together', 'parts': ({'name': 'alibi'}, {'name': 'xl'})},
    {'name': 'heads', 'parts': ({'name': 'xl'}, {'name': 'rope'})},
  ],
  ids=['with another bias', 'on some heads'],
)
def test_beside_other_schemes_tiles_agree_with_the_definition(rng, settings, tolerance):
  """The table by distance is its own; the definition has none."""
  scheme, L = composition.make(settings), 11
  params = scheme.parameters(jax.random.key(0), DIMS)
  params = jax.tree.map(lambda x: jnp.float32(x + 0.3 * rng.normal(size=x.shape)), params)
  _, q_LHK, k_LGK = drawn(rng, L)
  v_LGK, position = np.float32(rng.normal(size=k_LGK.shape)), (params, scheme.spectrum(DIMS))
  setting = scored(Logits(scale=K**-0.5, mask=Mask()), scheme)

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(form, contiguous):
    rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L), contiguous=contiguous)
    encode = encoded(scheme, position, None, q_LHK, k_LGK, rows, K**-0.5, columns=False)
    q_LHX, k_LGX, query, key = encode
    temperature = scheme.temperature(position[1], DIMS.heads)
    return form(q_LHX, k_LGX, jnp.asarray(v_LGK), query, key, setting, temperature, position)

  tiles_LHK = run(lambda *arguments: tiled(*arguments, sizes=(4, 3)), True)
  np.testing.assert_allclose(tiles_LHK, run(dense, False), atol=tolerance(L * K))


def test_layers_have_projections_of_their_own_and_share_u_and_v():
  model = Decoder(
    pattern=(Layer(scheme=positions.make('xl')),), length=16, vocabulary=5, width=D, layers=3,
    heads=H, kv_heads=G, head_width=K, mlp_width=8,
  )  # fmt: skip
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 6), int), model.spectrum()
  )['params']
  named = lambda tree: {name: x.shape for name, x in tree['position'].items()}
  assert named(shapes) == {'u_HK': (H, K), 'v_HK': (H, K)}
  assert named(shapes['blocks']['layer_0']) == {'distance_DHK': (3, D, H, K)}


def test_layers_may_have_u_and_v_of_their_own():
  scheme = positions.make('xl', untied=True)
  assert scheme.init(jax.random.key(0), DIMS) == {}
  own = scheme.init_layer(jax.random.key(0), DIMS)
  shapes = {name: x.shape for name, x in own.items()}
  assert shapes == {'u_HK': (H, K), 'v_HK': (H, K), 'distance_DHK': (D, H, K)}
  assert not np.allclose(own['u_HK'], own['v_HK'])


def test_clamped_distances_have_no_columns_and_are_tokens():
  assert positions.make('xl').factorises
  assert not positions.make('xl', clamp=5).factorises
  with pytest.raises(ValueError, match=r'clamped at 0 tokens are no distances. Use clamp >= 1'):
    positions.make('xl', clamp=0)


def test_everything_is_drawn_with_the_given_deviation():
  dims = dataclasses.replace(DIMS, width=200, heads=40, head_width=50)
  for deviation in (0.02, 0.5):
    params = positions.make('xl', deviation=deviation).parameters(jax.random.key(0), dims)
    for x in jax.tree.leaves(params):
      assert abs(float(x.std()) - deviation) < 5 * deviation / (2 * x.size) ** 0.5
    assert not np.allclose(params['u_HK'], params['v_HK'])
  with pytest.raises(ValueError, match=r'deviation -1\. Use one >= 0'):
    positions.make('xl', deviation=-1)
