import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posjax.attend
from posjax.attend import FORMS, Logits, Mask, Rows, Tile, attend, choose, dense, step, tiled
from posjax.attend.diagonals import along_diagonals, spread
from posjax.attend.fused import splash

K, V = 4, 3


def by_definition(
  q_LHK, k_LGK, v_LGV, query, key, scale, temperature=1.0, window=None, bias=None, null_H=None
):
  """Causal attention in float64, one pair of tokens after the other; bias(h, i, j) in logits."""
  (Lq, H, _), (Lk, G, _) = q_LHK.shape, k_LGK.shape
  q_LHK, k_LGK, v_LGV = np.float64(q_LHK), np.float64(k_LGK), np.float64(v_LGV)
  query, key = jax.tree.map(np.asarray, (query, key))  # thousands of single reads of JAX's are slow
  out_LHV = np.zeros((Lq, H, v_LGV.shape[-1]))
  for i in range(Lq):
    for h in range(H):
      g, logit = h // (H // G), {}
      for j in range(Lk):
        back = int(query.index_L[i]) - int(key.index_L[j])
        if back < 0 or (window is not None and back >= window):
          continue
        if query.segment_L is not None and query.segment_L[i] != key.segment_L[j]:
          continue
        s = scale * (q_LHK[i, h] @ k_LGK[j, g]) + (bias(h, i, j) if bias else 0.0)
        logit[j] = temperature * s
      null = [] if null_H is None else [float(null_H[h])]
      top = max(*logit.values(), *null, -np.inf)
      total = sum(np.exp(s - top) for s in [*logit.values(), *null])
      for j, s in logit.items():
        out_LHV[i, h] += np.exp(s - top) / total * v_LGV[j, g]
  return out_LHV


def vectors(rng, L, H, G, dtype=np.float32, Lk=None):
  shapes = (L, H, K), (Lk or L, G, K), (Lk or L, G, V)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def rows(L, start=0, segments=None, features=None, contiguous=False, pos=None):
  index_L = start + jnp.arange(L)
  return Rows(
    index_L=index_L,
    pos_L=index_L if pos is None else jnp.asarray(pos),
    segment_L=None if segments is None else jnp.asarray(segments),
    features_L=features,
    contiguous=contiguous,
  )


def repel(slope_H, s_HIJ, tile):
  """A learned bias by distance, curved, so that wrong distances show."""

  def bias(r_X):
    return jnp.einsum('h,...->h...', slope_H, jnp.sqrt(abs(r_X)))

  return s_HIJ - tile.by_distance(bias)


def forget(strength, s_HIJ, tile):
  """A bias by content, from features of both: logit += strength (c_i - c_j) + sin(c_i c_j).

  The second term is there because softmax ignores c_i in the first: it would have no gradient.
  """
  c_IH, c_JH = tile.query.features_L['c_LH'], tile.key.features_L['c_LH']
  c_HI1, c_H1J = c_IH.T[:, :, None], c_JH.T[:, None, :]
  return s_HIJ + strength * (c_HI1 - c_H1J) + jnp.sin(c_HI1 * c_H1J)


FORM = {
  'dense': jax.jit(dense, static_argnums=5),
  'tiled': jax.jit(functools.partial(tiled, sizes=(4, 3)), static_argnums=5),
  'step': jax.jit(
    lambda q, k, v, *rest: step(q, jnp.swapaxes(k, 0, 1), jnp.swapaxes(v, 0, 1), *rest),
    static_argnums=5,
  ),
}


@pytest.mark.parametrize('form', FORM)
@pytest.mark.parametrize(('H', 'G'), [(4, 4), (4, 2), (4, 1)])
def test_every_form_is_the_definition(rng, tolerance, form, H, G):
  """Groups of heads, a window, documents, a temperature on the biased logit: all at once."""
  L, scale, temperature = 13, 0.7, 1.6
  q_LHK, k_LGK, v_LGV = vectors(rng, L, H, G)
  slope_H = np.float32(rng.normal(size=H))
  both = rows(L, segments=[1] * 6 + [2] * 5 + [0] * 2)
  logits = Logits(scale=scale, mask=Mask(window=4), score=repel)
  got_LHV = FORM[form](q_LHK, k_LGK, v_LGV, both, both, logits, temperature, (slope_H,))
  bias = lambda h, i, j: -float(slope_H[h]) * abs(i - j) ** 0.5
  exact = functools.partial(by_definition, q_LHK, k_LGK, v_LGV, both, both, scale, temperature)
  np.testing.assert_allclose(got_LHV, exact(4, bias), atol=tolerance(L * K))
  for wrong in (
    exact(5, bias),  # a window of W + 1 keys
    exact(4, lambda h, i, j: bias(h, i, j) / temperature),  # the temperature before the bias
    exact(None, bias),
  ):
    assert np.abs(got_LHV - wrong).max() > 0.01


NULL = {
  'dense': lambda *args: dense(*args),
  'tiled': lambda *args: tiled(*args[:-1], (4, 3), args[-1]),
  'step': lambda q, k, v, *rest: step(q, jnp.swapaxes(k, 0, 1), jnp.swapaxes(v, 0, 1), *rest),
}


@pytest.mark.parametrize('shift', [0, -300, 300], ids='null {}'.format)
@pytest.mark.parametrize('form', NULL)
def test_a_logit_without_a_value_joins_the_softmax_of_every_form(rng, tolerance, form, shift):
  """As large as the others, and so far off that it takes nothing, or everything."""
  L, H = 13, 4
  q_LHK, k_LGK, v_LGV = vectors(rng, L, H, 2)
  slope_H, null_H = np.float32(rng.normal(size=(2, H)))
  null_H += np.float32(shift)
  both = rows(L, segments=[1] * 6 + [2] * 5 + [0] * 2)
  logits = Logits(scale=0.7, mask=Mask(window=4), score=repel)
  run = jax.jit(NULL[form], static_argnums=5)
  got_LHV = run(q_LHK, k_LGK, v_LGV, both, both, logits, 1.6, (slope_H,), jnp.asarray(null_H))
  bias = lambda h, i, j: -float(slope_H[h]) * abs(i - j) ** 0.5
  exact = functools.partial(by_definition, q_LHK, k_LGK, v_LGV, both, both, 0.7, 1.6, 4, bias)
  np.testing.assert_allclose(got_LHV, exact(null_H), atol=tolerance(L * K))
  if not shift:
    for wrong in (exact(None), exact(null_H * 1.6), exact(null_H * 0.7)):
      assert np.abs(got_LHV - wrong).max() > 0.01
  elif shift < 0:
    np.testing.assert_allclose(got_LHV, exact(None), atol=tolerance(L * K))
  else:
    assert not np.asarray(got_LHV).any()


@pytest.mark.parametrize('form', FORM)
def test_a_query_head_reads_the_key_head_of_its_group(form):
  """Heads 0, 1 share key head 0 and 2, 3 share 1; not 0, 2 and 1, 3."""
  q_LHK, k_LGK = jnp.ones((5, 4, K)), jnp.ones((5, 2, K))
  v_LGV = jnp.broadcast_to(jnp.array([1.0, 2.0])[:, None], (5, 2, V))
  got_LHV = FORM[form](q_LHK, k_LGK, v_LGV, rows(5), rows(5), Logits(scale=1.0))
  np.testing.assert_allclose(got_LHV[:, :, 0], [[1, 1, 2, 2]] * 5, rtol=1e-6)


VISIBLE = {
  'causal': (Mask(), None, ['x....', 'xx...', 'xxx..', 'xxxx.', 'xxxxx']),
  'everything': (Mask(causal=False), None, ['xxxxx'] * 5),
  'window of 1': (Mask(window=1), None, ['x....', '.x...', '..x..', '...x.', '....x']),
  'window of 2': (Mask(window=2), None, ['x....', 'xx...', '.xx..', '..xx.', '...xx']),
  'documents': (Mask(), [1, 1, 2, 2, 0], ['x....', 'xx...', '..x..', '..xx.', '....x']),
  'both': (Mask(window=2), [1, 1, 1, 2, 2], ['x....', 'xx...', '.xx..', '...x.', '...xx']),
  'documents, not causal': (Mask(causal=False), [1, 1, 2, 2, 2], ['xx...'] * 2 + ['..xxx'] * 3),
  'a sink': (Mask(window=2, sinks=1), None, ['x....', 'xx...', 'xxx..', 'x.xx.', 'x..xx']),
  'sinks, all in the window': (
    Mask(window=4, sinks=2), None, ['x....', 'xx...', 'xxx..', 'xxxx.', 'xxxxx']
  ),
  'sinks of documents': (
    Mask(window=1, sinks=1), [1, 1, 1, 2, 2], ['x....', 'xx...', 'x.x..', '...x.', '...xx']
  ),
  'chunks of 2': (Mask(chunk=2), None, ['x....', 'xx...', '..x..', '..xx.', '....x']),
  'chunks and a memory': (
    Mask(chunk=2, memory=1), None, ['x....', 'xx...', '.xx..', '.xxx.', '...xx']
  ),
  'chunks of documents': (
    Mask(chunk=2), [1, 1, 1, 2, 2], ['x....', 'xx...', '..x..', '...x.', '...xx']
  ),
  'a window in chunks': (
    Mask(window=2, chunk=3), None, ['x....', 'xx...', '.xx..', '...x.', '...xx']
  ),
}


@pytest.mark.parametrize('case', VISIBLE)
def test_a_query_sees_exactly_these_keys(case):
  mask, segments, picture = VISIBLE[case]
  both = rows(5, segments=segments)
  expected_IJ = np.array([[c == 'x' for c in line] for line in picture])
  begun = both.with_begin()
  np.testing.assert_array_equal(mask.visible(Tile(begun, begun)), expected_IJ)
  # What is seen has weight: with equal logits, 1 / (number of keys seen).
  ones, v_LGV = jnp.ones((5, 1, K)), jnp.eye(5)[:, None]
  for form in FORM.values():
    p_IJ = form(ones, ones, v_LGV, both, both, Logits(scale=1.0, mask=mask))[:, 0]
    np.testing.assert_allclose(p_IJ, expected_IJ / expected_IJ.sum(1, keepdims=True), rtol=1e-6)


def tiles_visited_and_seen(mask, everything, I, J):
  """Of each tile of queries, the tiles of keys that are visited, and those with a visible key."""
  L = len(everything.index_L)
  visible_IJ = np.asarray(mask.visible(Tile(everything, everything)))
  for i in range(L // I):
    count, tile = mask.key_tiles(everything.cut(i * I, I), J, L // J)
    seen = [visible_IJ[i * I : i * I + I, j * J : j * J + J].any() for j in range(L // J)]
    yield [int(tile(n)) for n in range(int(count))], [*np.flatnonzero(seen)[::-1]]


MASKS = {
  'causal': Mask(), 'window of 6': Mask(window=6), 'window of 1': Mask(window=1),
  'everything': Mask(causal=False), 'a sink': Mask(window=2, sinks=1),
  'more sinks than a tile': Mask(window=5, sinks=8), 'sinks without end': Mask(window=1, sinks=99),
  'chunks of 7': Mask(chunk=7), 'a memory': Mask(chunk=7, memory=9), 'a chunk': Mask(chunk=99),
  'both': Mask(window=3, chunk=10),
}  # fmt: skip


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
@pytest.mark.parametrize('sizes', [(4, 3), (3, 5), (1, 2)])
def test_tiles_out_of_sight_are_not_visited_and_those_in_sight_are(mask, sizes):
  for visited, seen in tiles_visited_and_seen(mask, rows(30), *sizes):
    assert visited == seen  # newest first


@pytest.mark.parametrize('mask', MASKS.values(), ids=MASKS)
def test_in_packed_rows_tiles_in_sight_are_visited_newest_first(mask):
  """Not these alone: documents of a batch begin anywhere, and its tiles are the same for all."""
  packed = rows(30, segments=np.repeat([1, 2, 3, 0], [2, 11, 9, 8])).with_begin()
  for visited, seen in tiles_visited_and_seen(mask, packed, 3, 5):
    assert set(seen) <= set(visited)
    assert visited == sorted(set(visited), reverse=True)


@pytest.mark.parametrize('mask', [Mask(window=2, sinks=2), Mask(chunk=4)])
@pytest.mark.parametrize('segments', [None, np.repeat([1, 2], [10, 13])])
@pytest.mark.parametrize('form', FORM)
def test_queries_from_the_middle_see_what_they_see_in_the_whole_row(rng, form, segments, mask):
  """Sinks and chunks count from where the document began, not from the first query given."""
  q_LHK, k_LGK, v_LGV = vectors(rng, 23, 2, 1)
  logits, part = Logits(scale=1.0, mask=mask), slice(15, 21)
  run = FORM[form]
  whole_LHV = run(q_LHK, k_LGK, v_LGV, *[rows(23, segments=segments)] * 2, logits)
  query = rows(6, 15, None if segments is None else segments[part])
  part_LHV = run(q_LHK[part], k_LGK, v_LGV, query, rows(23, segments=segments), logits)
  np.testing.assert_allclose(part_LHV, whole_LHV[part], atol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'window': 0}, 'window of 0 keys leaves a query nothing to see'),
    ({'window': 3, 'causal': False}, 'A window of 3 keys is defined for causal attention only'),
    ({'memory': 3}, 'A memory of 3 keys lies before a chunk. Give memory >= 0'),
    ({'chunk': 0}, 'chunk of 0 tokens leaves a query nothing to see'),
    ({'chunk': 3, 'causal': False}, 'A chunk of 3 keys is defined for causal attention only'),
    ({'sinks': 2}, '2 sinks without a window: every key is seen already'),
    ({'sinks': -1, 'window': 2}, 'Give sinks >= 0'),
    ({'sinks': 2, 'window': 2, 'chunk': 4}, 'the first keys lie outside all chunks but one'),
  ],
)
def test_masks_that_mean_nothing_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    Mask(**settings)


@functools.cache
def gradients(form, Lq, Lk, start, sizes, window, contiguous, segmented, H=2, G=1, null=False):
  """Output and all gradients of a form with a score that has parameters and features."""
  rng = np.random.default_rng(7)
  q_LHK, k_LGK, v_LGV = vectors(rng, Lq, H, G, Lk=Lk)
  c_LH = jnp.asarray(np.cumsum(rng.normal(size=(Lk, H)), 0), jnp.float32)
  weight_LHV = jnp.asarray(rng.normal(size=(Lq, H, V)), jnp.float32)
  segment_L = np.sort(rng.integers(3, size=Lk)) if segmented else None

  def score(slope_H, strength, s_HIJ, tile):
    return forget(strength, repel(slope_H, s_HIJ, tile), tile)

  logits = Logits(scale=0.5, mask=Mask(window=window), score=score)
  operator = dense if form == 'dense' else functools.partial(tiled, sizes=sizes)

  def total(q_LHK, k_LGK, v_LGV, cq_LH, ck_LH, temperature, operands, null_H):
    segment_I = None if segment_L is None else segment_L[start : start + Lq]
    query = rows(Lq, start, segment_I, {'c_LH': cq_LH}, contiguous)
    key = rows(Lk, 0, segment_L, {'c_LH': ck_LH}, contiguous)
    out_LHV = operator(
      q_LHK, k_LGK, v_LGV, query, key, logits, temperature, operands, null_H=null_H
    )
    return jnp.sum(out_LHV * weight_LHV), out_LHV

  arguments = (
    q_LHK, k_LGK, v_LGV, c_LH[start : start + Lq], c_LH, jnp.float32(1.3),
    (jnp.asarray(rng.normal(size=H), jnp.float32), jnp.float32(0.8)),
    jnp.asarray(rng.normal(size=H), jnp.float32) if null else None,
  )  # fmt: skip
  (_, out_LHV), grads = jax.jit(jax.value_and_grad(total, range(8), has_aux=True))(*arguments)
  return out_LHV, grads


CASES = {
  'one token': (1, 1, 0, (1, 1), None, True, False),
  'two tokens': (2, 2, 0, (64, 128), None, True, False),
  'one short of a tile': (127, 127, 0, (64, 128), None, True, False),
  'one more than a tile': (129, 129, 0, (64, 128), None, True, True),
  'tiles that do not divide': (23, 23, 0, (5, 7), None, True, True),
  'wide tiles of queries': (23, 23, 0, (16, 3), None, False, False),
  'a window': (23, 23, 0, (4, 3), 5, True, True),
  'a window of one': (23, 23, 0, (4, 5), 1, False, False),
  'a window longer than the row': (23, 23, 0, (4, 5), 100, True, False),
  'the last queries of a row': (6, 23, 17, (4, 5), None, True, True),
  'the last query of a row, windowed': (1, 23, 22, (4, 5), 9, True, False),
  'queries from the middle': (6, 23, 9, (4, 5), 4, False, True),
}


# With a null logit by default: the third of them, a window and queries from the middle among them.
@pytest.mark.parametrize(
  ('case', 'null'),
  [
    pytest.param(
      name, null, id=f'{name}-null' if null else name,
      marks=[pytest.mark.slow] * (null and n % 3 != 0),
    )
    for n, name in enumerate([*CASES][::-1])
    for null in (False, True)
  ],
)
def test_tiled_equals_dense_in_values_and_gradients(case, null, tolerance):
  """To queries, keys, values, features of both, temperature and parameters of the score; and to
  logits that join the softmax."""
  Lq, Lk, start, sizes, window, contiguous, segmented = CASES[case]
  ours = gradients('tiled', Lq, Lk, start, sizes, window, contiguous, segmented, null=null)
  theirs = gradients('dense', Lq, Lk, start, None, window, False, segmented, null=null)
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    size = max(1, float(jnp.abs(expected).max()))
    # A number per token sums over keys or queries, one that all tokens share over all pairs.
    terms = Lk if got.shape[:1] in ((Lq,), (Lk,)) else Lq * Lk
    np.testing.assert_allclose(got, expected, atol=size * tolerance(terms))
  if Lk > 1:
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(theirs)) or window == 1


def test_the_gradient_of_bfloat16_features_is_summed_in_float32(rng):
  """Over 64 tiles of queries: a total in bfloat16 would stop growing."""
  L = 256
  q_LHK, k_LGK, v_LGV = vectors(rng, L, 1, 1)
  v_LGV = v_LGV.at[:, :, 0].set(jnp.arange(L)[:, None] < 20)
  c_L = jnp.asarray(rng.normal(size=L), jnp.bfloat16)

  def score(s_HIJ, tile):
    return s_HIJ + tile.key.features_L.astype(jnp.float32)

  @functools.partial(jax.jit, static_argnums=1)
  @jax.grad
  def gradient(c_L, form):
    logits = Logits(scale=1.0, score=score)
    return form(q_LHK, k_LGK, v_LGV, rows(L), rows(L, features=c_L), logits)[..., 0].sum()

  got_L = gradient(c_L, functools.partial(tiled, sizes=(4, L)))
  exact_L = gradient(c_L.astype(jnp.float32), dense)
  assert got_L.dtype == jnp.bfloat16
  # A part of each tile is rounded, and their sum: half a unit of either.
  np.testing.assert_allclose(np.float32(got_L[:20]), exact_L[:20], rtol=2**-8)


def test_in_tiles_no_gradient_reaches_a_later_token_or_one_out_of_the_window(rng):
  q_LHK, k_LGK, v_LGV = vectors(rng, 11, 2, 1)
  logits = Logits(scale=1.0, mask=Mask(window=4))

  def out_L(k_LGK, v_LGV):
    return tiled(q_LHK, k_LGK, v_LGV, rows(11), rows(11), logits, sizes=(4, 3))[:, :, 0].sum(-1)

  visible_IJ = np.asarray(logits.mask.visible(Tile(rows(11), rows(11))))
  for slope_IJGK in jax.jit(jax.jacrev(out_L, (0, 1)))(k_LGK, v_LGV):
    reach_IJ = np.abs(slope_IJGK).max((2, 3))
    assert (reach_IJ[~visible_IJ] == 0).all()
    assert (reach_IJ[visible_IJ][1:] > 0).all()  # but for the first token, alone with its key


def test_bfloat16_vectors_have_float32_logits_in_both_forms(rng, tolerance):
  L, seen = 40, []
  q_LHK, k_LGK, v_LGV = vectors(rng, L, 2, 1, jnp.bfloat16)

  def watch(s_HIJ, tile):
    seen.append(s_HIJ.dtype)
    return s_HIJ

  exact_LHV = by_definition(q_LHK, k_LGK, v_LGV, rows(L), rows(L), 1.0)
  for form in FORM.values():
    got_LHV = form(q_LHK, k_LGK, v_LGV, rows(L), rows(L), Logits(scale=1.0, score=watch))
    assert got_LHV.dtype == jnp.bfloat16
    # Weights and the result are rounded to bfloat16, a half unit each.
    bound = float(jnp.finfo(jnp.bfloat16).eps) * np.abs(np.float64(v_LGV)).max()
    np.testing.assert_allclose(np.float64(got_LHV), exact_LHV, atol=bound)
  assert set(seen) == {jnp.dtype('float32')}


def test_large_logits_neither_overflow_nor_vanish(rng, tolerance):
  """Logits of some thousands, of both signs, across tiles: only their differences matter."""
  q_LHK, k_LGK, v_LGV = vectors(rng, 12, 1, 1)
  for shift in (-5e3, 5e3):
    k_LGK = k_LGK.at[..., 0].set(shift)
    q_LHK = q_LHK.at[..., 0].set(1.0)
    exact_LHV = by_definition(q_LHK, k_LGK, v_LGV, rows(12), rows(12), 1.0)
    for form in FORM.values():
      got_LHV = form(q_LHK, k_LGK, v_LGV, rows(12), rows(12), Logits(scale=1.0))
      np.testing.assert_allclose(got_LHV, exact_LHV, atol=5e3 * tolerance(K))


@pytest.mark.parametrize(('I', 'J'), [(1, 1), (3, 5), (5, 3), (4, 1), (1, 4)])
def test_a_value_per_diagonal_is_spread_over_the_tile_and_summed_back(rng, I, J):
  bias_HN = np.float32(rng.normal(size=(2, I + J - 1)))
  g_HIJ = np.float32(rng.normal(size=(2, I, J)))
  got_HIJ, pull = jax.vjp(lambda x: spread(x, I, J), jnp.asarray(bias_HN))
  sums_HN, got_HIJ = np.zeros(bias_HN.shape), np.asarray(got_HIJ)
  for h, i, j in np.ndindex(2, I, J):
    assert got_HIJ[h, i, j] == bias_HN[h, I - 1 - i + j]
    sums_HN[h, I - 1 - i + j] += g_HIJ[h, i, j]
  np.testing.assert_allclose(pull(jnp.asarray(g_HIJ))[0], sums_HN, atol=1e-5)


@pytest.mark.parametrize(('I', 'J'), [(1, 1), (1, 4), (5, 3), (32, 8), (33, 64), (70, 5)])
def test_queries_meet_the_table_along_the_diagonals(rng, I, J, tolerance):
  q_HIK = np.float32(rng.normal(size=(2, I, K)))
  table_HKM = np.float32(rng.normal(size=(2, K, I + J)))
  got_HIJ = np.asarray(along_diagonals(jnp.asarray(q_HIK), jnp.asarray(table_HKM)))
  assert got_HIJ.shape == (2, I, J)
  for h, i, j in np.ndindex(2, I, J):
    exact = np.float64(q_HIK[h, i]) @ table_HKM[h, :, I - 1 - i + j]
    assert abs(got_HIJ[h, i, j] - exact) < tolerance(K)


@pytest.mark.parametrize(
  ('Lq', 'Lk', 'start', 'sizes', 'mask'),
  [
    (23, 23, 0, (5, 7), Mask()),
    (23, 23, 0, (4, 3), Mask(window=5)),
    (23, 23, 0, (8, 8), Mask(causal=False)),
    (6, 23, 17, (4, 5), Mask()),
    (1, 23, 22, (4, 5), Mask(window=9)),
    (6, 23, 9, (4, 5), Mask()),
  ],
)
def test_a_tile_gets_its_part_of_a_table_by_distance(rng, Lq, Lk, start, sizes, mask, tolerance):
  """Values and gradients are those of the same function of every pair's distance; the table is
  made once, for all distances at most."""
  q_LHK, k_LGK, v_LGV = vectors(rng, Lq, 2, 1, Lk=Lk)
  weight_LHV, sizes_seen = rng.normal(size=(Lq, 2, V)), []

  def waves(wave_K, r_X):
    return jnp.sin(r_X[..., None] * wave_K) + 0.1 * r_X[..., None]

  def table(wave_K, r_R):
    sizes_seen.append(len(r_R))
    return {'wave_RK': waves(wave_K, r_R)}

  def score(wave_K, s_HIJ, tile):
    q_HIK = jnp.swapaxes(tile.query.features_L, 0, 1)
    if not tile.contiguous:
      assert tile.table_M is None
      return s_HIJ + jnp.einsum('hik,ijk->hij', q_HIK, waves(wave_K, tile.distance_IJ))
    table_KM = tile.table_M['wave_RK'].T
    return s_HIJ + along_diagonals(q_HIK, jnp.broadcast_to(table_KM, (2, *table_KM.shape)))

  logits = Logits(scale=0.5, mask=mask, score=score, table=table)

  def total(form, contiguous, q_LHK, features_L, wave_K):
    query = rows(Lq, start, features=features_L, contiguous=contiguous)
    key = rows(Lk, contiguous=contiguous)
    out_LHV = form(q_LHK, k_LGK, v_LGV, query, key, logits, 1.3, (wave_K,))
    return jnp.sum(out_LHV * weight_LHV), out_LHV

  run = jax.jit(jax.value_and_grad(total, (2, 3, 4), has_aux=True), static_argnums=(0, 1))
  arguments = q_LHK, 0.3 * q_LHK, jnp.asarray(rng.normal(size=K), jnp.float32)
  expected = run(dense, False, *arguments)
  assert not sizes_seen
  for form in (dense, functools.partial(tiled, sizes=sizes)):
    for got, exact in zip(
      jax.tree.leaves(run(form, True, *arguments)), jax.tree.leaves(expected), strict=True
    ):
      size = max(1, float(jnp.abs(exact).max()))
      np.testing.assert_allclose(got, exact, atol=size * tolerance(Lq * Lk))
  whole = sum(-(-length // size) * size for length, size in zip((Lq, Lk), sizes, strict=True))
  assert sizes_seen == [Lq + Lk, whole]


def test_positions_that_skip_are_seen_by_a_bias_unless_they_were_promised_not_to(rng):
  q_LHK, k_LGK, v_LGV = vectors(rng, 9, 1, 1)
  slope_H, pos_L = jnp.array([0.7]), np.arange(9) ** 2
  logits = Logits(scale=1.0, score=repel)
  bias = lambda h, i, j: -0.7 * abs(pos_L[i] - pos_L[j]) ** 0.5
  exact_LHV = by_definition(q_LHK, k_LGK, v_LGV, rows(9), rows(9), 1.0, bias=bias)
  for form in FORM.values():
    run = functools.partial(form, q_LHK, k_LGK, v_LGV)
    skips, promised = rows(9, pos=pos_L), rows(9, pos=pos_L, contiguous=True)
    np.testing.assert_allclose(run(skips, skips, logits, 1.0, (slope_H,)), exact_LHV, atol=1e-5)
    wrong_LHV = run(promised, promised, logits, 1.0, (slope_H,))
    assert np.abs(wrong_LHV - exact_LHV).max() > 0.01


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_rows_of_a_batch_are_attended_one_by_one(rng, form):
  q_BLHK, k_BLGK, v_BLGV = (
    jnp.stack(pair) for pair in zip(vectors(rng, 9, 2, 1), vectors(rng, 9, 2, 1), strict=True)
  )
  segment_BL = jnp.asarray([[1] * 9, [1] * 4 + [2] * 5])
  pos_BL = jnp.asarray([[*range(9)], [*range(4), *range(5)]])
  logits = Logits(scale=0.5, score=repel)
  slope_H = jnp.array([0.3, 0.6])
  batch = Rows(index_L=jnp.arange(9), pos_L=pos_BL, segment_L=segment_BL)
  got_BLHV = attend(
    q_BLHK, k_BLGK, v_BLGV, batch, batch, logits, 1.2, (slope_H,), form
  )
  for b in range(2):
    row = rows(9, segments=segment_BL[b], pos=pos_BL[b])
    alone_LHV = dense(q_BLHK[b], k_BLGK[b], v_BLGV[b], row, row, logits, 1.2, (slope_H,))
    np.testing.assert_allclose(got_BLHV[b], alone_LHV, atol=1e-6)


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_a_logit_without_a_value_is_not_sharpened_with_the_queries(rng, form, tolerance):
  """Also where the temperature is in the queries, and for every row of a batch."""
  pairs = zip(vectors(rng, 9, 2, 1), vectors(rng, 9, 2, 1), strict=True)
  q_BLHK, k_BLGK, v_BLGV = (jnp.stack(pair) for pair in pairs)
  null_H = np.float32([0.5, -0.3])
  batch = Rows(index_L=jnp.arange(9), pos_L=jnp.tile(jnp.arange(9), (2, 1)), contiguous=True)
  got_BLHV = attend(
    q_BLHK, k_BLGK, v_BLGV, batch, batch, Logits(scale=0.5), 2.0, (), form, jnp.asarray(null_H)
  )
  for b in range(2):
    exact = functools.partial(
      by_definition, q_BLHK[b], k_BLGK[b], v_BLGV[b], rows(9), rows(9), 0.5, 2.0, None, None
    )
    np.testing.assert_allclose(got_BLHV[b], exact(null_H), atol=tolerance(9 * K))
    assert np.abs(got_BLHV[b] - exact(2 * null_H)).max() > 0.01
  with pytest.raises(ValueError, match=r"'cudnn' knows no null logit. Use 'tiled'"):
    attend(
      q_BLHK, k_BLGK, v_BLGV, batch, batch, Logits(scale=0.5), 2.0, (), 'cudnn', jnp.asarray(null_H)
    )


PLAIN = {
  'columns': 0, 'packed': False, 'length': 256, 'width': 64,
  'dtype': jnp.bfloat16,
}  # fmt: skip


@pytest.mark.parametrize(
  ('platform', 'changes', 'form', 'why'),
  [
    ('cpu', {}, 'tiled', 'no fused kernel on cpu'),
    ('gpu', {}, 'cudnn', 'fused kernel of gpu'),
    ('gpu', {'dtype': jnp.float32}, 'tiled', 'not cudnn: it takes bfloat16 or float16'),
    ('gpu', {'packed': True}, 'tiled', 'not cudnn: it takes packed documents only as'),
    ('gpu', {'width': 128}, 'cudnn', 'fused kernel of gpu'),
    ('gpu', {'width': 136}, 'tiled', 'heads of up to 128, not 136'),
    (
      'gpu', {'width': 128, 'columns': 6}, 'tiled', 'up to 128, not 134'
    ),
    ('gpu', {'columns': None}, 'tiled', 'not cudnn: the scheme changes logits'),
    ('gpu', {'unknown': 'sinks'}, 'tiled', 'not cudnn: it knows no sinks'),
    ('gpu', {'unknown': 'chunks', 'columns': None}, 'tiled', 'not cudnn: it knows no chunks'),
    ('tpu', {'unknown': 'chunks'}, 'tiled', 'not splash: it knows no chunks'),
    ('gpu', {'unknown': 'null logit'}, 'tiled', 'not cudnn: it knows no null logit'),
    ('cpu', {'unknown': 'sinks'}, 'tiled', 'no fused kernel on cpu'),
    ('gpu', {'columns': 6}, 'cudnn', 'bias as 6 columns'),
    ('tpu', {}, 'splash', 'fused kernel of tpu'),
    ('tpu', {'dtype': jnp.float32}, 'splash', 'fused kernel of tpu'),
    ('tpu', {'packed': True}, 'splash', 'fused kernel of tpu'),
    ('tpu', {'length': 200}, 'tiled', 'multiples of 128, not 200'),
    ('tpu', {'columns': None}, 'tiled', 'not splash: the scheme changes logits'),
    ('tpu', {'columns': 6}, 'splash', 'bias as 6 columns'),
    ('tpu', {'columns': 448}, 'splash', 'bias as 448 columns'),
    ('tpu', {'columns': 449}, 'tiled', 'not splash: heads of up to 512 pay, not of 513'),
    ('tpu', {'width': 128, 'columns': 768}, 'tiled', 'not of 896'),
  ],
)
def test_the_form_follows_from_platform_type_and_scheme(platform, changes, form, why):
  choice = choose('auto', platform=platform, **{**PLAIN, **changes})
  assert choice.form == form
  assert why in choice.why
  assert choice.fused == (form in ('cudnn', 'splash'))


@pytest.mark.parametrize(
  ('form', 'platform', 'changes', 'text'),
  [
    ('cudnn', 'cpu', {}, 'needs an NVIDIA GPU, and this is cpu. Use .auto'),
    ('cudnn', 'gpu', {'packed': True}, 'packed documents'),
    ('cudnn', 'gpu', {'columns': None}, 'no column can carry'),
    ('cudnn', 'gpu', {'unknown': 'sinks'}, "cannot run here: it knows no sinks. Use 'auto'"),
    ('splash', 'tpu', {'unknown': 'memory of segments'}, 'it knows no memory of segments'),
    ('cudnn', 'gpu', {'dtype': jnp.float32}, 'bfloat16 or float16'),
    ('splash', 'gpu', {}, 'needs a TPU, and this is gpu'),
    ('splash', 'tpu', {'length': 100}, 'multiples of 128, not 100'),
    ('flash', 'gpu', {}, "No attention form 'flash'.*auto, dense, tiled, cudnn, splash"),
  ],
)
def test_a_form_that_cannot_run_is_refused_with_the_reason(form, platform, changes, text):
  with pytest.raises(ValueError, match=text):
    choose(form, platform=platform, **{**PLAIN, **changes})


@pytest.mark.parametrize('form', ['dense', 'tiled'])
def test_a_form_that_was_asked_for_is_taken(form):
  assert choose(form, platform='gpu', **PLAIN).form == form


def test_a_fused_form_refuses_a_score_and_what_it_cannot_mask(rng):
  q_BLHK, k_BLGK, v_BLGV = (x[None] for x in vectors(rng, 8, 1, 1))
  batch = Rows(index_L=jnp.arange(8), pos_L=jnp.arange(8)[None])
  for form in FORMS[2:]:
    run = functools.partial(attend, q_BLHK, k_BLGK, v_BLGV, batch, batch, form=form)
    for hook in ('score', 'walk', 'read'):
      with pytest.raises(ValueError, match=f"'{form}' cannot run a score"):
        run(Logits(scale=1.0, **{hook: repel}))
    for mask in (Mask(window=2, sinks=1), Mask(chunk=4)):
      with pytest.raises(ValueError, match=f"'{form}' knows neither sinks nor chunks. Use 'tiled'"):
        run(Logits(scale=1.0, mask=mask))


@pytest.mark.parametrize('form', ['cudnn', 'splash'])
def test_the_temperature_of_a_fused_form_is_not_rounded_to_bfloat16(rng, form, monkeypatch):
  """1.3 would become 1.296875; rounding its products instead leaves no error on average."""
  given = {}
  monkeypatch.setattr(
    posjax.attend, form, lambda q_BLHK, k, v, rows_B, logits: given.update(q=q_BLHK)
  )
  q_BLHK = jnp.asarray(rng.normal(size=(1, 500, 4, 8)), jnp.bfloat16)
  batch = Rows(index_L=jnp.arange(500), pos_L=jnp.arange(500)[None])
  attend(q_BLHK, q_BLHK, q_BLHK, batch, batch, Logits(scale=1.0), jnp.float32(1.3), (), form)
  before, after = np.float64(q_BLHK), np.float64(given['q'])
  assert given['q'].dtype == jnp.bfloat16
  assert abs((after * before).sum() / (before**2).sum() / 1.3 - 1) < 2**-9 / 500**0.5


@pytest.mark.slow
@pytest.mark.parametrize(
  ('window', 'segmented', 'causal'),
  [(None, False, True), (5, True, True), (None, False, False), (128, False, True)],
)
def test_splash_equals_dense_in_values_and_gradients(rng, window, segmented, causal, tolerance):
  """Its program, interpreted: scale, groups of heads, windows, documents, widths it must fill."""
  L, H, G = 256, 4, 2
  q_BLHK, k_BLGK, v_BLGV = (x[None] for x in vectors(rng, L, H, G))
  w_BLHV = jnp.asarray(rng.normal(size=(1, L, H, V)), jnp.float32)
  segment_BL = jnp.asarray(np.repeat([1, 2, 3, 0], L // 4))[None] if segmented else None
  batch = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L)[None], segment_L=segment_BL)
  logits = Logits(scale=0.6, mask=Mask(causal=causal, window=window))

  def total(form, q_BLHK, k_BLGK, v_BLGV):
    if form == 'dense':
      out_BLHV = attend(q_BLHK, k_BLGK, v_BLGV, batch, batch, logits, form='dense')
    else:
      out_BLHV = splash(q_BLHK, k_BLGK, v_BLGV, batch, logits, interpret=True)
    return jnp.sum(out_BLHV * w_BLHV), out_BLHV

  run = jax.jit(jax.value_and_grad(total, (1, 2, 3), has_aux=True), static_argnums=0)
  (_, got_BLHV), got = run('splash', q_BLHK, k_BLGK, v_BLGV)
  (_, expected_BLHV), expected = run('dense', q_BLHK, k_BLGK, v_BLGV)
  np.testing.assert_allclose(got_BLHV, expected_BLHV, atol=tolerance(L))
  for ours, theirs in zip(got, expected, strict=True):
    size = max(1, float(jnp.abs(theirs).max()))
    np.testing.assert_allclose(ours, theirs, atol=size * tolerance(L))


def test_rows_grow_by_rows_that_nobody_sees():
  grown = rows(3, features=jnp.ones((3, 2))).padded(5)
  np.testing.assert_array_equal(grown.index_L, [0, 1, 2, 3, 4])
  np.testing.assert_array_equal(grown.segment_L, [0, 0, 0, -1, -1])
  assert grown.features_L.shape == (5, 2)
  visible_IJ = np.asarray(Mask(causal=False).visible(Tile(grown, grown)))
  assert not visible_IJ[:3, 3:].any()
