"""States that go along the keys, keys prepared for their tiles, and what is read beside values.

All by one made-up score that uses every freedom of these hooks at once, held against loops.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax.attend import Logits, Mask, Rows, attend, dense, tiled

K, V, F, SCALE = 4, 3, 2, 0.5


def start(numbers, query):
  """A state of two arrays, from features of the query and learned numbers."""
  a_HI = query.features_L['a_LH'].T
  sum_HIF = a_HI[..., None] ** jnp.arange(1, F + 1)
  return {'count_HI': numbers['first_H'][:, None] * a_HI, 'sum_HIF': sum_HIF}


def prepare(numbers, key, J):
  assert len(key.index_L) % J == 0
  return {'f_LF': jnp.tanh(key.features_L['f_LF'] @ numbers['mix_FF'])}


def after(x, axis):
  """Sums over all keys after each one, itself not included."""
  return jnp.flip(jnp.cumsum(jnp.flip(x, axis), axis), axis) - x


def walk(numbers, s_HIJ, tile, state):
  """Gates by content; their count, and a sum of features, over the keys after each one."""
  a_HI1, f_JF = tile.query.features_L['a_LH'].T[:, :, None], tile.key.features_L['f_LF']
  gate_HIJ = jax.nn.sigmoid(numbers['strength'] * s_HIJ + a_HI1 * f_JF[:, 0])
  gate_HIJ = jnp.where(tile.visible_IJ, gate_HIJ, 0)
  count_HIJ = state['count_HI'][..., None] + after(gate_HIJ, 2)
  sum_HIJF = state['sum_HIF'][:, :, None] + after(gate_HIJ[..., None] * f_JF, 2)
  s_HIJ += jnp.sin(count_HIJ) + jnp.einsum('hijf,jf->hij', jnp.tanh(sum_HIJF), f_JF)
  return s_HIJ, {
    'count_HI': state['count_HI'] + gate_HIJ.sum(-1),
    'sum_HIF': state['sum_HIF'] + gate_HIJ @ f_JF,
  }


def score(numbers, s_HIJ, tile):
  return numbers['steep'] * jnp.tanh(s_HIJ)


def read(numbers, p_HIJ, tile):
  """A product of a vector per key, and one that every pair has for itself."""
  a_IH, f_JF = tile.query.features_L['a_LH'], tile.key.features_L['f_LF']
  pair_IJV = jnp.sin(a_IH[:, :1, None] + f_JF[None, :, :1] * jnp.arange(V))
  return p_HIJ @ (f_JF @ numbers['read_FV']) + jnp.einsum('hij,ijv->hiv', p_HIJ, pair_IJV)


LOGITS = Logits(scale=SCALE, score=score, start=start, walk=walk, prepare=prepare, read=read)


def by_definition(vectors, features, temperature, numbers, query, sees):
  """The same in float64, one key after the other; sees(i, j) of indices."""
  to64 = lambda tree: jax.tree.map(np.float64, tree)
  (q_LHK, k_LGK, v_LGV), (a_LH, f_LF), n = to64(vectors), to64(features), to64(numbers)
  (Lq, H, _), Lk, G = q_LHK.shape, *k_LGK.shape[:2]
  f_LF = np.tanh(f_LF @ n['mix_FF'])
  out_LHV = np.zeros((Lq, H, V))
  for l, h in np.ndindex(Lq, H):
    i, g, a = int(query.index_L[l]), h // (H // G), a_LH[l, h]
    count, total_F, weight, rest = n['first_H'][h] * a, a ** np.arange(1, F + 1), {}, {}
    for j in reversed(range(Lk)):
      if not sees(i, j):
        continue
      s = SCALE * q_LHK[l, h] @ k_LGK[j, g]
      gate = 1 / (1 + np.exp(-(n['strength'] * s + a * f_LF[j, 0])))
      s += np.sin(count) + np.tanh(total_F) @ f_LF[j]
      count, total_F = count + gate, total_F + gate * f_LF[j]
      weight[j] = np.exp(temperature * n['steep'] * np.tanh(s))
      rest[j] = f_LF[j] @ n['read_FV'] + np.sin(a_LH[l, 0] + f_LF[j, 0] * np.arange(V))
    for j, w in weight.items():
      out_LHV[l, h] += w / sum(weight.values()) * (v_LGV[j, g] + rest[j])
  return out_LHV


def drawn(rng, Lq, Lk, first, H, G):
  """Vectors, features of both, temperature and learned numbers: all that has a derivative."""
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  vectors = draw(Lq, H, K), draw(Lk, G, K), draw(Lk, G, V)
  numbers = {
    'first_H': draw(H), 'mix_FF': draw(F, F), 'strength': draw(), 'steep': draw(),
    'read_FV': draw(F, V),
  }  # fmt: skip
  return vectors, (draw(Lq, H), draw(Lk, F)), jnp.float32(1.3), numbers


def rows(L, first=0, segment_L=None, **features):
  index_L = first + jnp.arange(L)
  segment_L = None if segment_L is None else jnp.asarray(segment_L)
  return Rows(index_L=index_L, pos_L=index_L, segment_L=segment_L, features_L=features)


DOCUMENTS = np.repeat([4, 7, 0], [9, 11, 3])
# Queries, the index of the first, tiles, mask, documents or None; always 23 keys.
CASES = {
  'one tile': (23, 0, (23, 23), Mask(), None),
  'tiles that do not divide': (23, 0, (5, 7), Mask(), DOCUMENTS),
  'a window': (23, 0, (4, 3), Mask(window=5), None),
  'sinks, and tiles that nobody visits': (23, 0, (2, 3), Mask(window=4, sinks=2), None),
  'sinks of documents': (23, 0, (4, 3), Mask(window=2, sinks=1), DOCUMENTS),
  'chunks': (23, 0, (3, 4), Mask(chunk=6), None),
  'chunks of documents': (23, 0, (5, 4), Mask(chunk=5), DOCUMENTS),
  'queries from the middle': (6, 11, (4, 5), Mask(), DOCUMENTS),
  'queries from the middle, with sinks': (6, 14, (4, 5), Mask(window=3, sinks=1), DOCUMENTS),
  'keys ahead': (23, 0, (4, 6), Mask(causal=False), DOCUMENTS),
}


def sees_of(mask, segment_L):
  """The mask in plain words."""

  def sees(i, j):
    begin = 0
    if segment_L is not None:
      if segment_L[i] != segment_L[j]:
        return False
      begin = int(np.flatnonzero(segment_L == segment_L[i])[0])
    if mask.causal and j > i:
      return False
    if mask.chunk is not None and (i - begin) // mask.chunk != (j - begin) // mask.chunk:
      return False
    return mask.window is None or i - j < mask.window or j - begin < mask.sinks

  return sees


# By default those that hold the others' difficulties, too.
@pytest.mark.parametrize(
  'case',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('one tile', 'a window', 'chunks')))
    for name in CASES
  ],
)
def test_walking_and_reading_in_tiles_is_the_definition_in_values_and_all_gradients(
  rng, tolerance, case
):
  """To vectors, features of both sides, temperature and learned numbers, those of `start` too."""
  Lq, first, sizes, mask, segment_L = CASES[case]
  arguments = drawn(rng, Lq, 23, first, H=4, G=2)
  g_LHV = jnp.asarray(rng.normal(size=(Lq, 4, V)), jnp.float32)
  logits = Logits(**{**vars(LOGITS), 'mask': mask})
  query = rows(Lq, first, None if segment_L is None else segment_L[first : first + Lq])

  def result(form, *arguments):
    def run(vectors, features, temperature, numbers):
      a_LH, f_LF = features
      both = rows(Lq, first, query.segment_L, a_LH=a_LH), rows(23, 0, segment_L, f_LF=f_LF)
      return form(*vectors, *both, logits, temperature, (numbers,))

    out_LHV, pull = jax.vjp(run, *arguments)
    return out_LHV, pull(g_LHV)

  ours = jax.jit(functools.partial(result, functools.partial(tiled, sizes=sizes)))(*arguments)
  theirs = jax.jit(functools.partial(result, dense))(*arguments)
  exact_LHV = by_definition(*arguments, query, sees_of(mask, segment_L))
  for got_LHV in (ours[0], theirs[0]):
    np.testing.assert_allclose(got_LHV, exact_LHV, atol=tolerance(23 * K))
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    size = max(1, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(got, expected, atol=size * tolerance(Lq * 23))
  assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(theirs))


@pytest.mark.slow
def test_rows_of_a_batch_are_walked_one_by_one(rng, tolerance):
  """Documents begin elsewhere in each; sinks make tiles visit all that may hold one."""
  vectors, (a_LH, f_LF), temperature, numbers = drawn(rng, 13, 13, 0, H=2, G=1)
  batch = lambda x: jnp.stack([x, x[::-1], jnp.roll(x, 4, axis=0)])
  segment_BL = np.stack([np.repeat([1, 2, 0], n) for n in ([4, 8, 1], [13, 0, 0], [1, 1, 11])])
  logits = Logits(**{**vars(LOGITS), 'mask': Mask(window=3, sinks=1)})
  x_B = jax.tree.map(batch, (vectors, a_LH, f_LF))

  def total(form, x_B, numbers):
    vectors_B, a_BLH, f_BLF = x_B
    index_L = jnp.arange(13)
    pos_BL = jnp.broadcast_to(index_L, (3, 13))
    both = [
      Rows(index_L=index_L, pos_L=pos_BL, segment_L=jnp.asarray(segment_BL), features_L=features)
      for features in ({'a_LH': a_BLH}, {'f_LF': f_BLF})
    ]
    out_BLHV = attend(*vectors_B, *both, logits, temperature, (numbers,), form)
    return jnp.sum(jnp.sin(out_BLHV)), out_BLHV

  run = jax.jit(jax.value_and_grad(total, (1, 2), has_aux=True), static_argnums=0)
  ours, theirs = run('tiled', x_B, numbers), run('dense', x_B, numbers)
  for b in range(3):
    vectors, *features = jax.tree.map(lambda x: x[b], x_B)  # noqa: B023
    sees = sees_of(logits.mask, segment_BL[b])
    exact_LHV = by_definition(vectors, features, temperature, numbers, rows(13), sees)
    np.testing.assert_allclose(ours[0][1][b], exact_LHV, atol=tolerance(13 * K))
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    size = max(1, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(got, expected, atol=size * tolerance(3 * 13 * 13))
