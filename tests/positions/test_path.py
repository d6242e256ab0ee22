import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition, positions
from posjax.attend import Logits, Mask, Rows, Tile, dense, tiled
from posjax.attention import scored
from posjax.positions import Dims

DIMS = Dims(width=6, heads=4, kv_heads=2, head_width=8, length=64)
EPS = np.finfo(np.float32).eps


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def reflections(x_LD, params, begin=0, length=1.0, strength=2.0, active=True):
  """w_LGK and beta_LG of one document that begins at `begin`; float64, token by token."""
  x_LD = np.float64(x_LD)
  down_DR, up_RGK, filter_TGK, step_DG, bias_G = (
    np.float64(params[name]) for name in ('down_DR', 'up_RGK', 'filter_TGK', 'step_DG', 'bias_G')
  )
  T, G, K = filter_TGK.shape
  w_LGK, beta_LG = np.zeros((len(x_LD), G, K)), np.zeros((len(x_LD), G))
  for t in range(len(x_LD)):
    for back in range(min(T, t - begin + 1)):
      w_LGK[t] += filter_TGK[T - 1 - back] * np.einsum(
        'd,dr,rgk->gk', x_LD[t - back], down_DR, up_RGK
      )
    if active:
      w_LGK[t] *= sigmoid(w_LGK[t])
    if length is not None:
      w_LGK[t] *= length / np.sqrt((w_LGK[t] ** 2).sum(-1, keepdims=True) + 1e-6)
    beta_LG[t] = strength * sigmoid(x_LD[t] @ step_DG + bias_G)
  return w_LGK, beta_LG


def logits(q_LHK, k_LGK, w_LGK, beta_LG, first=1, last=0, oldest_first=False):
  """Yang et al. 2025, sec. 3: k[j] . H[j + first] ... H[i - last] q[i] / sqrt(K), in float64."""
  L, H, K = q_LHK.shape
  s_HIJ = np.zeros((H, L, L))
  for h, i, j in np.ndindex(H, L, L):
    g, turned = h // (H // k_LGK.shape[1]), np.float64(q_LHK[i, h])
    met = range(max(j + first, 0), i - last + 1)
    for t in met if oldest_first else reversed(met):
      turned = turned - beta_LG[t, g] * w_LGK[t, g] * (w_LGK[t, g] @ turned)
    s_HIJ[h, i, j] = np.float64(k_LGK[j, g]) @ turned / K**0.5
  return s_HIJ


def drawn(rng, L, scheme, dims=DIMS):
  """Inputs, and parameters that are not at their start."""
  x_LD = np.float32(rng.normal(size=(L, dims.width)))
  shapes = jax.eval_shape(lambda: scheme.init_layer(jax.random.key(0), dims))
  params = {name: np.float32(rng.normal(size=x.shape)) for name, x in shapes.items()}
  q_LHK, k_LGK = (
    np.float32(rng.normal(size=(L, n, dims.head_width))) for n in (dims.heads, dims.kv_heads)
  )
  return x_LD, params, q_LHK, k_LGK


@functools.partial(jax.jit, static_argnums=0)
def rows(scheme, params, x_LD, q_LHK, k_LGK, segment_L=None):
  """Queries and keys of one row, with what the scheme makes of them."""
  both = Rows(
    index_L=jnp.arange(len(x_LD)), pos_L=jnp.zeros(len(x_LD), int), segment_L=segment_L
  )
  fq, fk = scheme.features(params, None, x_LD, q_LHK, k_LGK, both)
  return dataclasses.replace(both, features_L=fq), dataclasses.replace(both, features_L=fk)


@functools.partial(jax.jit, static_argnums=0)
def one_tile(scheme, params, x_LD, q_LHK, k_LGK):
  """Logits of all queries and keys as one tile (of keys ahead they mean nothing), and the state."""
  query, key = rows(scheme, params, x_LD, q_LHK, k_LGK)
  key = dataclasses.replace(key, features_L=scheme.prepare(params, None, key, len(x_LD)))
  state = scheme.start(params, None, query)
  return scheme.walk(params, None, None, Tile(query, key), state)


def close(got_HIJ, exact_HIJ):
  """Where the key is not ahead; some hundred roundings of logits of a few units."""
  seen = np.tri(*exact_HIJ.shape[1:], dtype=bool)
  return np.abs(np.where(seen, got_HIJ - exact_HIJ, 0)).max() < 256 * EPS * np.abs(exact_HIJ).max()


@pytest.mark.parametrize('settings', [{}, {'rank': 1}, {'taps': 1}, {'rank': 5, 'taps': 4}])
@pytest.mark.parametrize(('H', 'G'), [(4, 2), (3, 3), (3, 1)])
def test_a_query_is_turned_by_every_token_after_the_key_the_newest_first(rng, settings, H, G):
  scheme, dims = positions.make('path', **settings), dataclasses.replace(DIMS, heads=H, kv_heads=G)
  x_LD, params, q_LHK, k_LGK = drawn(rng, 13, scheme, dims)
  got_HIJ, _ = one_tile(scheme, params, x_LD, q_LHK, k_LGK)
  exact = functools.partial(logits, q_LHK, k_LGK)
  of = functools.partial(reflections, x_LD, params)
  assert close(got_HIJ, exact(*of()))
  for wrong_HIJ in (
    exact(*of(), oldest_first=True),
    exact(*of(), first=0),  # the key's own token, too
    exact(*of(), last=1),  # not the query's own
    exact(*of(strength=1.0)),  # beta below 1: nothing is ever mirrored
    exact(*of(length=None)),
    exact(*of(active=False)),
  ):
    assert not close(got_HIJ, wrong_HIJ)


@pytest.mark.parametrize('L', [64, 65, 150, 600])
def test_blocks_of_many_keys_are_the_same_product(rng, L):
  """One block, one and a bit, three, and blocks that grow: against one key after the other."""
  scheme = positions.make('path')
  x_LD, params, q_LHK, k_LGK = drawn(rng, L, scheme)
  got_HIJ, left_HIK = one_tile(scheme, params, x_LD, q_LHK, k_LGK)
  w_LGK, beta_LG = reflections(x_LD, params)
  turned_LHK, exact_HIJ = np.float64(q_LHK), np.zeros((4, L, L))
  for j in reversed(range(L)):
    k_HK, w_HK, beta_H = (np.repeat(a[j], 2, axis=0) for a in (np.float64(k_LGK), w_LGK, beta_LG))
    exact_HIJ[:, :, j] = np.einsum('lhk,hk->hl', turned_LHK, k_HK) / 8**0.5
    along_LH = np.einsum('lhk,hk->lh', turned_LHK, w_HK)
    turned_LHK[j:] -= (along_LH * beta_H)[j:, :, None] * w_HK
  assert close(got_HIJ, exact_HIJ)
  np.testing.assert_allclose(left_HIK, turned_LHK.swapaxes(0, 1), atol=256 * EPS)


@pytest.mark.parametrize(('old', 'new', 'there'), [(7, 1, 1), (0, 9, 9), (9, 5, 3), (30, 150, 140)])
def test_a_cached_key_is_turned_by_every_token_that_comes_after_it(rng, old, new, there):
  """One token, and blocks of them, the last of which are not there; slots in any order, one empty.
  Of the keys, what the newest query meets is what the definition has it meet."""
  scheme, L = positions.make('path'), old + there
  x_LD, params, q_LHK, k_LGK = drawn(rng, old + new, scheme)
  w_LGK, beta_LG = reflections(x_LD, params)
  place_R = np.append(rng.permutation(L), -1)
  kept_RGK = np.append(k_LGK[place_R[:-1]], np.zeros_like(k_LGK[:1]), axis=0)
  before_RGK = np.float64(kept_RGK)  # the tokens up to `old` have turned what is older than they
  newer = np.arange(L) > place_R[:, None]
  for t in range(L):
    along_RG = np.einsum('rgk,gk->rg', before_RGK, w_LGK[t]) * beta_LG[t] * newer[:, t, None]
    before_RGK -= along_RG[..., None] * w_LGK[t]
    if t == old - 1:
      kept_RGK = np.float32(before_RGK)
  features = jnp.zeros((new, 2, 8)), np.float32(w_LGK[old:]), np.float32(beta_LG[old:])
  place_S = np.where(np.arange(new) < there, old + np.arange(new), -1)
  k_GRK = jax.jit(functools.partial(scheme.age, params, None))(
    kept_RGK.swapaxes(0, 1), place_R, features, place_S
  )
  np.testing.assert_allclose(k_GRK, before_RGK.swapaxes(0, 1), atol=256 * EPS)
  if L < 20:
    exact_HJ = logits(q_LHK[:L], k_LGK[:L], w_LGK, beta_LG)[:, -1]
    met_HR = np.einsum('hk,hrk->hr', np.float64(q_LHK[L - 1]), np.repeat(k_GRK, 2, axis=0)) / 8**0.5
    np.testing.assert_allclose(met_HR[:, :-1], exact_HJ[:, place_R[:-1]], atol=256 * EPS)


def test_the_gradient_is_that_of_the_definition(rng):
  """Along a random direction of everything that is learned or given; by differences, in float64."""
  scheme = positions.make('path', rank=2)
  x_LD, params, *qk = drawn(rng, 9, scheme)
  arguments = params, x_LD, *qk
  g_HIJ = np.tril(rng.normal(size=(4, 9, 9)))
  step = jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), arguments)

  def ours(params, x_LD, q_LHK, k_LGK):
    s_HIJ, _ = one_tile(scheme, params, x_LD, q_LHK, k_LGK)
    return jnp.sum(g_HIJ * s_HIJ)

  def exact(size):
    params, x_LD, q_LHK, k_LGK = jax.tree.map(
      lambda x, dx: np.float64(x) + size * np.float64(dx), arguments, step
    )
    return np.sum(g_HIJ * logits(q_LHK, k_LGK, *reflections(x_LD, params)))

  slopes = jax.jit(jax.grad(ours, range(4)))(*jax.tree.map(jnp.asarray, arguments))
  got = sum(np.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (slopes, step)), strict=True))
  # Differences of order 4: off by 1e-12 times the fifth derivative.
  slope = (8 * (exact(1e-3) - exact(-1e-3)) - exact(2e-3) + exact(-2e-3)) / 12e-3
  np.testing.assert_allclose(got, slope, rtol=1e-4)


def test_full_reflections_keep_the_length_of_every_query_and_none_at_all_leaves_it(rng):
  """beta = 2 mirrors, beta = 0 does nothing. What the 1e-6 takes from |w|^2 can shorten a query."""
  scheme = positions.make('path')
  x_LD, params, q_LHK, k_LGK = drawn(rng, 500, scheme)
  w_LGK, _ = reflections(x_LD, params)
  lost = 2 * (1 - (w_LGK**2).sum(-1)).sum(0).max()
  assert lost < 0.01
  for bias, moved in ((1e9, True), (-1e9, False)):
    params['bias_G'] = np.full(2, bias, np.float32)
    _, left_HIK = one_tile(scheme, params, x_LD, q_LHK, k_LGK)
    before_HI, after_HI = (np.linalg.norm(x, axis=-1) for x in (q_LHK.swapaxes(0, 1), left_HIK))
    np.testing.assert_allclose(after_HI, before_HI, rtol=500**0.5 * 8 * EPS + lost)
    assert (np.abs(left_HIK - q_LHK.swapaxes(0, 1)).max() > 1) == moved


def test_the_convolution_stops_where_documents_begin(rng):
  scheme, L, start = positions.make('path', taps=4), 12, 7
  x_LD, params, q_LHK, k_LGK = drawn(rng, L, scheme)
  segment_L = jnp.asarray(np.repeat([1, 2], [start, L - start]))
  _, key = rows(scheme, params, x_LD, q_LHK, k_LGK, segment_L)
  _, w_LGK, _ = key.features_L
  exact_LGK = np.concatenate([
    reflections(x_LD[:start], params)[0], reflections(x_LD[start:], params)[0],
  ])
  np.testing.assert_allclose(w_LGK, exact_LGK, atol=64 * EPS)
  leaky_LGK, _ = reflections(x_LD, params)
  assert np.abs(w_LGK - leaky_LGK)[start : start + 3].max((1, 2)).min() > 0.01
  np.testing.assert_allclose(w_LGK[start + 3 :], leaky_LGK[start + 3 :], atol=64 * EPS)


def softmax(s_HIJ, seen_IJ):
  s_HIJ = np.where(seen_IJ, s_HIJ, -np.inf)
  p_HIJ = np.exp(s_HIJ - s_HIJ.max(-1, keepdims=True))
  return p_HIJ / p_HIJ.sum(-1, keepdims=True)


def weights(form, scheme, params, x_LD, q_LHK, k_LGK, mask=Mask(), segment_L=None):  # noqa: B008
  """p_HIJ, read off values that are rows of the identity."""
  logits = scored(Logits(scale=8**-0.5, mask=mask), scheme)

  @jax.jit
  def run(params, x_LD, q_LHK, k_LGK, segment_L):
    eye_LGJ = jnp.repeat(jnp.eye(len(x_LD))[:, None], k_LGK.shape[1], axis=1)
    query, key = rows(scheme, params, x_LD, q_LHK, k_LGK, segment_L)
    return form(q_LHK, k_LGK, eye_LGJ, query, key, logits, 1.0, (params, None))

  return np.asarray(run(params, x_LD, q_LHK, k_LGK, segment_L)).swapaxes(0, 1)


@pytest.mark.parametrize('form', [dense, functools.partial(tiled, sizes=(5, 7))])
def test_a_window_a_chunk_and_a_document_end_the_path_and_leave_no_trace_in_it(rng, form):
  scheme, L, start = positions.make('path'), 23, 9
  x_LD, params, q_LHK, k_LGK = drawn(rng, L, scheme)
  i, j = np.indices((L, L))
  segment_L = jnp.asarray(np.repeat([3, 5], [start, L - start]))
  apart = [reflections(x_LD[:start], params), reflections(x_LD[start:], params)]
  packed_HIJ = logits(q_LHK, k_LGK, *map(np.concatenate, zip(*apart, strict=True)))
  whole_HIJ = logits(q_LHK, k_LGK, *reflections(x_LD, params))
  for mask, segment, s_HIJ, seen in (
    (Mask(window=6), None, whole_HIJ, (j <= i) & (j > i - 6)),
    (Mask(chunk=8), None, whole_HIJ, (j <= i) & (j >= i - i % 8)),
    (Mask(window=8), segment_L, packed_HIJ, (j <= i) & (j > i - 8) & ((i < start) == (j < start))),
    (Mask(causal=False), None, None, None),
  ):
    p_HIJ = weights(form, scheme, params, x_LD, q_LHK, k_LGK, mask, segment)
    if s_HIJ is None:  # keys ahead are met as they are
      plain_HIJ = np.einsum('ihk,jhk->hij', q_LHK, np.repeat(k_LGK, 2, axis=1)) / 8**0.5
      s_HIJ, seen = np.where(j <= i, whole_HIJ, plain_HIJ), np.ones((L, L), bool)
    np.testing.assert_allclose(p_HIJ, softmax(s_HIJ, seen), atol=256 * EPS)


def test_sinks_are_refused_as_the_path_to_them_is_not_visited(rng):
  scheme = positions.make('path')
  x_LD, params, *qk = drawn(rng, 5, scheme)
  with pytest.raises(ValueError, match=r'cannot see 2 sinks: .*Use a window without sinks'):
    weights(dense, scheme, params, x_LD, *qk, Mask(window=3, sinks=2))


@pytest.mark.parametrize('order', [('path', 'fox'), ('fox', 'path')])
def test_with_forget_gates_it_is_path_fox(rng, order):
  """softmax(k . H ... H q / sqrt(K) + log(f ... f)), in tiles; gates are not divided by sqrt(K)."""
  scheme = composition.make({'name': 'together', 'parts': tuple({'name': n} for n in order)})
  x_LD, own, q_LHK, k_LGK = drawn(rng, 17, positions.make('path'))
  gates = {'gate_DH': np.float32(rng.normal(size=(6, 4))), 'bias_H': np.zeros(4, np.float32)}
  params = {f'part_{order.index("path")}': own, f'part_{order.index("fox")}': gates}
  spectrum = scheme.spectrum(DIMS)

  @jax.jit
  def run(params, x_LD, q_LHK, k_LGK):
    both = Rows(index_L=jnp.arange(17), pos_L=jnp.zeros(17, int))
    fq, fk = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, both)
    return tiled(
      q_LHK, k_LGK, jnp.repeat(jnp.eye(17)[:, None], 2, axis=1),
      dataclasses.replace(both, features_L=fq), dataclasses.replace(both, features_L=fk),
      scored(Logits(scale=8**-0.5), scheme), 1.0, (params, spectrum), sizes=(4, 6),
    )  # fmt: skip

  out_LHJ = run(params, x_LD, q_LHK, k_LGK)
  kept_HL = np.cumsum(np.log(sigmoid(np.float64(x_LD) @ gates['gate_DH'])), axis=0).T
  forgotten_HIJ = kept_HL[:, :, None] - kept_HL[:, None, :]
  s_HIJ, seen = logits(q_LHK, k_LGK, *reflections(x_LD, own)), np.tri(17, dtype=bool)
  p_HIJ = np.asarray(out_LHJ).swapaxes(0, 1)
  np.testing.assert_allclose(p_HIJ, softmax(s_HIJ + forgotten_HIJ, seen), atol=512 * EPS)
  for wrong_HIJ in (s_HIJ, s_HIJ + forgotten_HIJ / 8**0.5):
    assert np.abs(p_HIJ - softmax(wrong_HIJ, seen)).max() > 0.01


@pytest.mark.slow
def test_decoding_turns_every_cached_key_by_each_new_token(rng):
  """As the docstring says: k[n] -= beta (w . k[n]) w, then one product with the new query."""
  scheme, L = positions.make('path'), 30
  x_LD, params, q_LHK, k_LGK = drawn(rng, L, scheme)
  got_HIJ, _ = one_tile(scheme, params, x_LD, q_LHK, k_LGK)
  w_LGK, beta_LG = reflections(x_LD, params)
  cache_LGK = np.zeros((0, 2, 8))
  for i in range(L):
    along_LG = np.einsum('lgk,gk->lg', cache_LGK, w_LGK[i])
    cache_LGK = cache_LGK - (beta_LG[i] * along_LG)[..., None] * w_LGK[i]
    cache_LGK = np.concatenate([cache_LGK, np.float64(k_LGK[i : i + 1])])
    s_HJ = np.einsum('hk,lhk->hl', q_LHK[i], np.repeat(cache_LGK, 2, axis=1)) / 8**0.5
    np.testing.assert_allclose(got_HIJ[:, i, : i + 1], s_HJ, atol=256 * EPS)


def test_weights_start_as_the_authors_with_as_many_numbers_as_said():
  dims = Dims(width=128, heads=8, kv_heads=4, head_width=64, length=64)
  params = positions.make('path').init_layer(jax.random.key(0), dims)
  assert {name: x.shape for name, x in params.items()} == {
    'down_DR': (128, 32), 'up_RGK': (32, 4, 64), 'filter_TGK': (3, 4, 64), 'step_DG': (128, 4),
    'bias_G': (4,),
  }  # fmt: skip
  np.testing.assert_array_equal(params.pop('bias_G'), np.zeros(4))
  wide = positions.make('path', deviation=0.3).init_layer(jax.random.key(0), dims)
  for name, x in params.items():
    assert abs(float(x.std()) - 0.02) < 5 * 0.02 / (2 * x.size) ** 0.5
    np.testing.assert_allclose(wide[name], 15 * x, rtol=1e-5)


@pytest.mark.parametrize('settings', [{'rank': 0}, {'taps': 0}, {'deviation': -1.0}])
def test_settings_that_cannot_be_are_refused(settings):
  with pytest.raises(ValueError, match=r'cannot have rank .*Use rank >= 1, taps >= 1'):
    positions.make('path', **settings)
