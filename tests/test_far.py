"""Far keys seen from other places: attention against loops over pairs, in float64."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition
from posjax.attend import Mask, Rows
from posjax.attention import Layer, position_and_attend
from posjax.decoder import Decoder, init_params
from posjax.extension import extend
from posjax.extension.far import Grouped
from posjax.positions import Dims

L, H, G, K, THETA, TRAINED = 24, 4, 2, 8, 100.0, 12
DIMS = Dims(width=16, heads=H, kv_heads=G, head_width=K, length=TRAINED)
ROPE = {'name': 'rope', 'theta': THETA}


def rerope_distance(m, n, window, group=math.inf):
  r = m - n
  return r if r < window else window + (r - window) / group


def self_extend_distance(m, n, window, group):
  r = m - n
  return r if r < window else m // group - n // group + window - window // group


def dual_chunk_distance(m, n, reach, local):
  s = reach - local
  if m // s == n // s:
    return m - n
  if m // s == n // s + 1:
    return min(m % s + s, reach) - n % s
  return min(s - 1 + s, reach) - n % s


def streaming_distance(m, n, window, sinks):
  """Of slots in the cache: the sinks come first, the window follows; None: evicted."""
  cache = [*range(min(sinks, m + 1)), *range(max(sinks, m - window + 1), m + 1)]
  return cache.index(m) - cache.index(n) if n in cache else None


DISTANCE = {
  'rerope': rerope_distance,
  'self_extend': self_extend_distance,
  'dual_chunk': dual_chunk_distance,
  'streaming': streaming_distance,
}
CASES = [
  ('rerope', {'window': 5}),
  ('rerope', {'window': 5, 'group': 3.0}),
  ('self_extend', {'window': 6, 'group': 3}),
  ('self_extend', {'window': 4, 'group': 2}),
  ('dual_chunk', {'reach': 9, 'local': 2}),
  ('dual_chunk', {'reach': 6, 'local': 1}),
  ('streaming', {'window': 5, 'sinks': 2}),
  ('streaming', {'window': 1, 'sinks': 1}),
]
IDS = [f'{name} {" ".join(map(str, settings.values()))}' for name, settings in CASES]
# One of each kind at once, its other settings with the slow tests.
PARAMS = [
  pytest.param(*case, id=one, marks=[pytest.mark.slow] * (n % 2))
  for n, (case, one) in enumerate(zip(CASES, IDS, strict=True))
]


def turned(x_K, distance):
  """One head turned by a distance, pair by pair."""
  y_K = np.empty(K)
  for f in range(K // 2):
    a = distance * THETA ** (-2 * f / K)
    y_K[f] = x_K[f] * math.cos(a) - x_K[f + K // 2] * math.sin(a)
    y_K[f + K // 2] = x_K[f + K // 2] * math.cos(a) + x_K[f] * math.sin(a)
  return y_K


def by_pairs(q_LHK, k_LGK, v_LGK, distance):
  """Causal attention whose logits are those of `distance(m, n)`, None: not seen."""
  return np.stack([one_query(m, q_LHK, k_LGK, v_LGK, distance) for m in range(len(q_LHK))])


def one_query(m, q_LHK, k_LGK, v_LGK, distance):
  out_HK = np.zeros((H, K))
  seen = [n for n in range(m + 1) if distance(m, n) is not None]
  for h in range(H):
    s = np.array([
      turned(q_LHK[m, h], distance(m, n)) @ k_LGK[n, h // (H // G)] / math.sqrt(K) for n in seen
    ])
    p = np.exp(s - s.max())
    out_HK[h] = p / p.sum() @ v_LGK[seen, h // (H // G)]
  return out_HK


@functools.cache
def program(scheme, form):
  """One for all spectra of a form."""
  return jax.jit(lambda *args: position_and_attend(Layer(scheme=scheme), *args, form))


def run(position, spectrum, q_BLHK, k_BLGK, v_BLGK, form='tiled', segments_BL=None, params=None):
  pos_BL = jnp.broadcast_to(jnp.arange(q_BLHK.shape[1]), q_BLHK.shape[:2])
  if segments_BL is not None:
    starts_BL = jnp.array([[row.tolist().index(s) for s in row] for row in segments_BL])
    pos_BL, segments_BL = pos_BL - starts_BL, jnp.asarray(segments_BL)
  rows = Rows(
    index_L=jnp.arange(q_BLHK.shape[1]), pos_L=pos_BL, segment_L=segments_BL, contiguous=True
  ).with_begin()
  x_BLD = jnp.ones((*q_BLHK.shape[:2], DIMS.width))
  position_of = params or {}, jax.tree.map(jnp.float32, spectrum)
  attend = program(composition.make(position), form)
  return attend(position_of, x_BLD, q_BLHK, k_BLGK, v_BLGK, rows)


def extended(position, name, settings):
  spectrum = composition.make(position).spectrum(DIMS)
  return extend(spectrum, name=name, trained_length=TRAINED, **settings)


@pytest.fixture
def vectors(rng):
  return [rng.normal(size=(2, L, heads, K)).astype(np.float32) for heads in (H, G, G)]


@pytest.mark.parametrize('form', ['dense', 'tiled'])
@pytest.mark.parametrize(('name', 'settings'), CASES, ids=IDS)
def test_attention_is_that_of_the_distances_of_the_paper(vectors, name, settings, form, tolerance):
  out_BLHK = run(ROPE, extended(ROPE, name, settings), *vectors, form)
  for b in range(2):
    one = [np.float64(x[b]) for x in vectors]
    exact_LHK = by_pairs(*one, lambda m, n: DISTANCE[name](m, n, **settings))
    np.testing.assert_allclose(out_BLHK[b], exact_LHK, atol=4 * tolerance(L))
    plain_LHK = by_pairs(*one, lambda m, n: m - n)
    assert np.abs(exact_LHK - plain_LHK).max() > 0.05


def test_groups_are_whole_at_every_size():
  """A compiled floor(82 / 82) can be 0: the program multiplies with a rounded 1 / 82."""
  pos_L = np.arange(600)
  places = [jax.jit(lambda far, n=n: far.places(pos_L)[0][n]) for n in range(2)]
  for size in range(1, 130):
    far = Grouped(window=jnp.float32(3 * size), group=jnp.float32(size), whole=True)
    np.testing.assert_array_equal(places[1](far), pos_L // size)
    np.testing.assert_array_equal(places[0](far), pos_L // size + 3 * size - 3)


def test_chunks_are_whole_at_every_size(rng):
  """As above: within the attention of a row, the first token of a chunk belongs to it."""
  chunk, settings = 82, {'reach': 100, 'local': 18}
  q_BLHK, k_BLGK, v_BLGK = (rng.normal(size=(1, 170, n, K)).astype(np.float32) for n in (H, G, G))
  spectrum = extend(
    composition.make(ROPE).spectrum(DIMS), name='dual_chunk', trained_length=128, **settings
  )
  out_BLHK = run(ROPE, spectrum, q_BLHK, k_BLGK, v_BLGK)
  for m in (chunk - 1, chunk, 2 * chunk):
    exact_HK = one_query(
      m, q_BLHK[0], k_BLGK[0], v_BLGK[0], lambda m, n: dual_chunk_distance(m, n, **settings)
    )
    np.testing.assert_allclose(out_BLHK[0, m], exact_HK, atol=1e-4)


@pytest.mark.parametrize(('name', 'settings'), CASES, ids=IDS)
def test_no_distance_is_new_to_the_model(name, settings):
  apparent = [DISTANCE[name](m, n, **settings) for m in range(L) for n in range(m + 1)]
  assert max(d for d in apparent if d is not None) < (
    L - 1 if name in ('rerope', 'self_extend') else TRAINED
  )


@pytest.mark.parametrize(('name', 'settings'), PARAMS)
def test_a_packed_row_is_its_documents_alone(vectors, name, settings, tolerance):
  spectrum = extended(ROPE, name, settings)
  segments_BL = np.array([[1] * 9 + [2] * 15, [1] * 15 + [2] * 9])
  packed_BLHK = run(ROPE, spectrum, *vectors, segments_BL=segments_BL)
  for b, cut in ((0, 9), (1, 15)):
    for part in (slice(0, cut), slice(cut, L)):
      alone_BLHK = run(ROPE, spectrum, *(x[b : b + 1, part] for x in vectors))
      np.testing.assert_allclose(packed_BLHK[b, part], alone_BLHK[0], atol=tolerance(L))


@pytest.mark.parametrize(('name', 'settings'), PARAMS)
def test_gradients_of_tiles_are_those_of_the_definition(vectors, name, settings, tolerance):
  """Of the frequencies, too: these are what is fitted."""
  spectrum = jax.tree.map(jnp.float32, extended(ROPE, name, settings))

  def total(frequency_F, vectors, form):
    changed = dataclasses.replace(spectrum, frequency_F=frequency_F)
    out_BLHK = run(ROPE, changed, *vectors, form)
    return jnp.sum(out_BLHK * jnp.cos(jnp.arange(out_BLHK.size)).reshape(out_BLHK.shape))

  grads = [
    jax.grad(total, argnums=(0, 1))(spectrum.frequency_F, vectors, form)
    for form in ('dense', 'tiled')
  ]
  for exact, ours in zip(*map(jax.tree.leaves, grads), strict=True):
    np.testing.assert_allclose(ours, exact, atol=max(1, np.abs(exact).max()) * tolerance(L * L))
    assert np.abs(exact).max() > 0


COMBINED = {
  'with gates': {'name': 'together', 'parts': (ROPE, {'name': 'fox'})},
  'with slopes': {'name': 'together', 'parts': (ROPE, {'name': 'alibi'})},
  'on half of the heads': {'name': 'heads', 'parts': (ROPE, {'name': 'none'})},
  'partial': {'name': 'partial', 'share': 0.5, 'theta': THETA},
  'xpos': {'name': 'xpos', 'theta': THETA},
  'pope': {'name': 'pope', 'theta': THETA},
}


@pytest.mark.parametrize('position', COMBINED.values(), ids=COMBINED)
def test_other_schemes_that_rotate_have_near_and_far_keys_too(rng, vectors, position, tolerance):
  """Tiles agree with the definition; a window that holds all keys changes nothing."""
  scheme = composition.make(position)
  params = scheme.parameters(jax.random.key(0), DIMS)
  plain = scheme.spectrum(DIMS)
  far = extend(plain, name='rerope', window=5)
  near = extend(plain, name='rerope', window=L)
  on = functools.partial(run, position, params=params)
  dense_BLHK, tiled_BLHK = (on(far, *vectors, form) for form in ('dense', 'tiled'))
  np.testing.assert_allclose(tiled_BLHK, dense_BLHK, atol=4 * tolerance(L))
  plain_BLHK = on(plain, *vectors)
  np.testing.assert_allclose(on(near, *vectors), plain_BLHK, atol=4 * tolerance(L))
  assert np.abs(plain_BLHK - dense_BLHK).max() > 0.01


@pytest.mark.parametrize('name', ['rerope', 'streaming'])
def test_what_sharpens_queries_by_their_position_knows_where_they_are(vectors, name, tolerance):
  """Far keys are seen from elsewhere by what rotates, alone: SSMax counts the keys there are."""
  position = {'name': 'together', 'parts': (ROPE, {'name': 'ssmax', 'strength': 0.7})}
  settings = {'window': 5} | ({'sinks': 2} if name == 'streaming' else {})
  params = {'part_1': {'strength_H': jnp.full(H, 0.7)}}
  spectrum = extended(position, name, settings)
  q_BLHK, k_BLGK, v_BLGK = vectors
  sharp_LHK = q_BLHK[0] * (0.7 * np.log(np.arange(L) + 1))[:, None, None]
  exact_LHK = by_pairs(
    sharp_LHK, k_BLGK[0], v_BLGK[0], lambda m, n: DISTANCE[name](m, n, **settings)
  )
  for form in ('dense', 'tiled'):
    out_BLHK = run(position, spectrum, *vectors, form, params=params)
    np.testing.assert_allclose(out_BLHK[0], exact_LHK, atol=4 * tolerance(L))


def test_queries_past_the_trained_length_are_sharpened_by_the_logarithm(vectors, tolerance):
  """log_n is a factor on queries; within the trained length there is none."""
  spectrum = extended(ROPE, 'log_n', {})
  factor_L = np.array([max(1, math.log(m + 1) / math.log(TRAINED)) for m in range(L)])
  assert (factor_L[:TRAINED] == 1).all() and factor_L[-1] == math.log(L) / math.log(TRAINED)
  q_BLHK, k_BLGK, v_BLGK = vectors
  for form in ('dense', 'tiled'):
    out_BLHK = run(ROPE, spectrum, q_BLHK, k_BLGK, v_BLGK, form)
    by_hand_LHK = by_pairs(
      q_BLHK[0] * factor_L[:, None, None], k_BLGK[0], v_BLGK[0], lambda m, n: m - n
    )
    np.testing.assert_allclose(out_BLHK[0], by_hand_LHK, atol=4 * tolerance(L))


@pytest.mark.parametrize(('name', 'settings', 'text'), [
  ('rerope', {'window': 0}, 'window = 0. Use window >= 1'),
  ('rerope', {'window': 4, 'group': 0.5}, 'group = 0.5. Use group >= 1'),
  ('self_extend', {'window': 5, 'group': 2}, '2 does not divide 5. Use window = 4'),
  ('self_extend', {'window': 5}, "'self_extend' needs group"),
  ('dual_chunk', {'reach': 4, 'local': 4}, 'reach = 4 and local = 4'),
  ('dual_chunk', {'reach': 40}, 'reach = 40 .* 12 trained'),
  ('streaming', {'window': 4, 'sinks': 0}, 'sinks = 0. Use sinks >= 1'),
])  # fmt: skip
def test_windows_that_make_no_sense_are_refused(name, settings, text):
  with pytest.raises(ValueError, match=text):
    extended(ROPE, name, settings)


def test_a_scheme_that_counts_along_the_keys_is_refused(vectors):
  position = {'name': 'together', 'parts': (ROPE, {'name': 'cope', 'positions': 4})}
  with pytest.raises(ValueError, match=r'counts along the keys.*linear'):
    run(position, extended(position, 'rerope', {'window': 4}), *vectors)


def test_sinks_of_an_extension_are_those_of_each_document_of_a_decoder(tolerance):
  """The extension brings its mask along, and the decoder learns where documents begin."""
  model = Decoder(
    pattern=(Layer(scheme=composition.make(ROPE)),), length=TRAINED, vocabulary=16, width=16,
    layers=2, heads=H, kv_heads=G, head_width=K, mlp_width=16, dtype='float32',
  )  # fmt: skip
  spectrum = jax.tree.map(
    jnp.float32, extend(model.spectrum(), name='streaming', window=3, sinks=2)
  )
  rng = np.random.default_rng(1)
  tokens_BL = rng.integers(0, 16, (1, L))
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  params = {'params': jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)}
  segments_BL = jnp.asarray([[1] * 9 + [2] * 15])
  positions_BL = jnp.asarray([[*range(9), *range(15)]])
  logits = jax.jit(model.apply, static_argnames='contiguous')
  packed = logits(params, tokens_BL, spectrum, positions_BL, segments_BL, contiguous=True)
  for part in (slice(0, 9), slice(9, L)):
    alone = logits(params, tokens_BL[:, part], spectrum)
    np.testing.assert_allclose(packed[:, part], alone, atol=4 * tolerance(L))


def test_streaming_never_widens_the_window_of_a_layer():
  scheme = composition.make({'name': 'rope'})
  spectrum, layer = scheme.spectrum(DIMS), Layer(scheme=scheme, mask=Mask(window=3))
  for window, seen in ((8, 3), (2, 2)):
    far = extend(spectrum, name='streaming', window=window, sinks=2)
    assert layer.under(far, 1.0).mask == Mask(window=seen, sinks=2)
