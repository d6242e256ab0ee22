"""Segments with a memory, against a decoder that reads one after the other and keeps a cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import first_of_each_kind

from posjax import positions
from posjax.attend import Mask
from posjax.attention import Layer
from posjax.decoder import Decoder

V, H, G, K, LAYERS = 17, 4, 2, 6, 2
SIZES = {
  'length': 32, 'vocabulary': V, 'width': 8, 'layers': LAYERS, 'heads': H, 'kv_heads': G,
  'head_width': K, 'mlp': 'plain', 'mlp_width': 12, 'dtype': 'float32',
}  # fmt: skip
CASES = {  # segment, memory, tokens of the row
  'as long as a segment': (4, 4, 12),
  'not a multiple': (4, 4, 11),
  'longer than two segments': (4, 9, 15),
  'shorter than a segment': (4, 2, 10),
  'of one token': (3, 1, 8),
  'none': (4, 0, 10),
  'a row within one segment': (16, 4, 9),
}


def decoder(name, segment, memory, **changes):
  layer = Layer(scheme=positions.make(name), segment=segment, memory=memory)
  return Decoder(pattern=(layer,), **SIZES | changes)


@functools.cache
def random_params(name):
  """Weights of about the initial size, norms away from 1."""
  model, rng = decoder(name, None, 0), np.random.default_rng(1)
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 4), int), model.spectrum())
  return jax.tree.map(lambda x: jnp.float32(0.4 * rng.normal(size=x.shape)), shapes['params'])


def alibi(weights, shared, q_K, h, distance):
  """(what is added to the query of the content, what is added to the product), float64."""
  return 0, -(2.0 ** (-8 * (h + 1) / H)) * distance * K**0.5


def transformer_xl(weights, shared, q_K, h, distance):
  angle_F = distance / 10_000 ** (2 * np.arange(4) / SIZES['width'])
  projected_K = np.concatenate([np.sin(angle_F), np.cos(angle_F)]) @ weights['distance_DHK'][:, h]
  return shared['u_HK'][h], (q_K + shared['v_HK'][h]) @ projected_K


BIASES = {'alibi': alibi, 'xl': transformer_xl}


def segment_by_segment(
  params, tokens_L, name, segment, memory, *, document_L=None, pos_L=None, shift=0, held=None,
  keys_too=False,
):  # fmt: skip
  """(logits_LV, cache): float64, one segment after the other, loops over tokens and heads.

  cache: inputs of every layer and token, and their keys and values, {(layer, place): ...}.
  held: one whose inputs are remembered instead; with keys_too, its keys and values.
  shift: what is added to the distance of what is remembered.
  """
  p, L = jax.tree.map(np.float64, params), len(tokens_L)
  document_L = np.zeros(L, int) if document_L is None else document_L
  pos_L = np.arange(L) if pos_L is None else pos_L
  rms = lambda x, weights: x / np.sqrt((x * x).mean() + 1e-6) * weights['scale_D']
  layers = [jax.tree.map(lambda w: w[n], p['blocks']['layer_0']) for n in range(LAYERS)]  # noqa: B023
  inputs, heads, logits_LV = {}, {}, np.zeros((L, V))
  for start in range(0, L, segment):
    own = range(start, min(start + segment, L))
    remembered = range(max(0, start - memory), start)
    x = {i: p['embedding_VD'][tokens_L[i]] * SIZES['width'] ** 0.5 for i in own}
    for n, layer in enumerate(layers):
      weights = layer['attention']

      def keys_and_values(x_D):
        y = rms(x_D, layer['attention_norm'])  # noqa: B023
        return [(y @ weights[f'{kind}_DX']).reshape(G, K) for kind in ('key', 'value')]  # noqa: B023

      inputs |= {(n, i): x[i] for i in own}
      seen = {}
      for j in remembered:
        old = keys_and_values((held[0] if held else inputs)[n, j])
        seen[j] = held[1][n, j] if keys_too else old
      seen |= {i: keys_and_values(x[i]) for i in own}
      heads |= {(n, i): seen[i] for i in own}
      after = {}
      for i in own:
        q_HK = (rms(x[i], layer['attention_norm']) @ weights['query_DX']).reshape(H, K)
        places = [j for j in seen if j <= i and document_L[j] == document_L[i]]
        out = []
        for h in range(H):
          s_J = []
          for j in places:
            distance = pos_L[i] - pos_L[j] + (shift if j < start else 0)
            more_K, product = BIASES[name](
              layer.get('position'), p.get('position'), q_HK[h], h, distance
            )
            s_J.append(((q_HK[h] + more_K) @ seen[j][0][h // (H // G)] + product) / K**0.5)
          weight_J = np.exp(np.array(s_J) - max(s_J))
          weight_J /= weight_J.sum()
          values = [seen[j][1][h // (H // G)] for j in places]
          out.append(sum(w * v for w, v in zip(weight_J, values, strict=True)))
        y = x[i] + np.concatenate(out) @ weights['output_XD']
        up = rms(y, layer['mlp_norm']) @ layer['mlp']['up_DM']
        gelu = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        after[i] = y + gelu @ layer['mlp']['down_MD']
      x = after
    for i in own:
      logits_LV[i] = rms(x[i], p['final_norm']) @ p['head_DV']
  return logits_LV, (inputs, heads)


def tokens(L):
  return np.random.default_rng(L).permutation(V)[:L]


@pytest.mark.parametrize('form', [pytest.param('dense', marks=pytest.mark.slow), 'tiled'])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('name', BIASES)
def test_segments_side_by_side_have_the_logits_of_one_after_the_other(name, case, form, tolerance):
  segment, memory, L = CASES[case]
  model, params = decoder(name, segment, memory, attention=form), random_params(name)
  run = functools.partial(segment_by_segment, params, tokens(L), name, segment)
  got_LV = jax.jit(model.apply)({'params': params}, tokens(L)[None], model.spectrum())[0]
  exact_LV, _ = run(memory)
  atol = np.abs(exact_LV).max() * tolerance(L * 12)
  np.testing.assert_allclose(got_LV, exact_LV, atol=atol)
  if memory and segment < L:
    unshifted, _ = run(memory, shift=-memory)  # queries numbered from 0, and so are their memories
    forgetful, _ = run(0)
    one_more, _ = run(memory + 1)
    in_one_piece, _ = segment_by_segment(params, tokens(L), name, L, 0)
    for wrong_LV in (unshifted, forgetful, one_more, in_one_piece):
      assert np.abs(wrong_LV - exact_LV)[segment:].max() > 100 * atol


@pytest.mark.parametrize('form', [pytest.param('dense', marks=pytest.mark.slow), 'tiled'])
@pytest.mark.parametrize('name', BIASES)
def test_a_memory_ends_where_its_document_begins(name, form, tolerance):
  """Documents begin within a segment and at its first token; positions restart, or skip."""
  segment, memory, L = 4, 6, 15
  model, params = decoder(name, segment, memory, attention=form), random_params(name)
  document_BL = np.repeat([[1, 2, 3, 0], [4, 4, 5, 5]], [6, 2, 5, 2], axis=1)
  pos_BL = np.array([[*range(6), *range(2), *range(5), *range(2)], [*range(8), *range(3, 24, 3)]])
  tokens_BL = np.stack([tokens(L), tokens(L)[::-1]])
  got_BLV = jax.jit(model.apply)(
    {'params': params}, tokens_BL, model.spectrum(), pos_BL, document_BL
  )
  run = functools.partial(segment_by_segment, params, name=name, segment=segment, memory=memory)
  for b in range(2):
    exact_LV, _ = run(tokens_BL[b], document_L=document_BL[b], pos_L=pos_BL[b])
    atol = np.abs(exact_LV).max() * tolerance(L * 12)
    np.testing.assert_allclose(got_BLV[b], exact_LV, atol=atol)
    leaky_LV, _ = run(tokens_BL[b], pos_L=pos_BL[b])
    counted_LV, _ = run(tokens_BL[b], document_L=document_BL[b])
    assert np.abs(leaky_LV - exact_LV).max() > 100 * atol
    assert b == 0 or np.abs(counted_LV - exact_LV).max() > 100 * atol


@pytest.mark.parametrize('name', BIASES)
def test_gradients_are_those_with_the_memory_held_fixed(name, tolerance):
  """Of every parameter, along a random direction, by differences in float64: what is remembered
  stays as it was, the weights that read it do not. Holding its keys and values, too, is wrong."""
  segment, memory, L = 3, 5, 9
  model, params = decoder(name, segment, memory, attention='tiled'), random_params(name)
  rng = np.random.default_rng(3)
  weight_LV = rng.normal(size=(L, V))

  @jax.jit
  @jax.grad
  def gradient(params):
    logits_BLV = model.apply({'params': params}, tokens(L)[None], model.spectrum())
    return jnp.sum(logits_BLV[0] * weight_LV)

  kept = segment_by_segment(params, tokens(L), name, segment, memory)[1]
  leaves, tree = jax.tree.flatten(jax.tree.map(np.float64, params))
  paths = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)]
  for n, grad in enumerate(jax.tree.leaves(gradient(params))):
    direction = rng.normal(size=grad.shape)

    def slope(step=1e-4, **how):
      ends = []
      for sign in (1, -1):
        moved = [x + sign * step * direction if m == n else x for m, x in enumerate(leaves)]  # noqa: B023
        logits_LV, _ = segment_by_segment(
          jax.tree.unflatten(tree, moved), tokens(L), name, segment, memory, **how
        )
        ends.append((logits_LV * weight_LV).sum())
      return (ends[0] - ends[1]) / (2 * step)

    exact, size = slope(held=kept), np.abs(grad * direction).sum()
    atol = size * tolerance(L * 12)
    np.testing.assert_allclose((grad * direction).sum(), exact, atol=atol, err_msg=paths[n])
    if paths[n] in ('key_DX', 'value_DX'):
      assert abs(slope(held=kept, keys_too=True) - exact) > 100 * atol
    elif paths[n] == 'embedding_VD':
      assert abs(slope() - exact) > 100 * atol


@pytest.mark.parametrize('name', first_of_each_kind())
def test_what_is_remembered_counts_but_no_gradient_flows_into_it(name):
  """Of the last segment's loss to the vector of each token: exactly none outside the segment."""
  segment, memory, L = 4, 3, 12
  model = decoder(name, segment, memory, layers=1, head_width=8, attention='dense')
  spectrum = model.spectrum()
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens(L)[None], spectrum)['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.float32(0.4 * rng.normal(size=x.shape)), shapes)
  weight_SV = rng.normal(size=(segment, V))

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def last(params, tokens_L):
    logits_LV = model.apply({'params': params}, tokens_L[None], spectrum)[0]
    return jnp.sum(logits_LV[-segment:] * weight_SV), logits_LV[-segment:]

  (_, logits_SV), grad = last(params, tokens(L))
  reach_L = np.abs(grad['embedding_VD'][tokens(L)]).max(-1)
  assert (reach_L[:-segment] == 0).all()
  assert (reach_L[-segment:] > 0).all()
  for back, counts in ((memory, True), (memory + 1, False)):
    other_L = tokens(L).copy()
    other_L[L - segment - back] = np.setdiff1d(np.arange(V), other_L)[0]
    (_, other_SV), _ = last(params, other_L)
    change = np.abs(other_SV[0] - logits_SV[0]).max()
    assert change > 1e-4 if counts else change == 0


def test_layers_with_sinks_and_layers_with_a_memory_take_turns():
  scheme = positions.Scheme()
  sinks = Layer(scheme=scheme, mask=Mask(window=3, sinks=1))
  pattern = Layer(scheme=scheme, segment=4, memory=4), sinks
  model = Decoder(pattern=pattern, **SIZES)
  logits_BLV, _ = jax.eval_shape(
    model.init_with_output, jax.random.key(0), tokens(10)[None], model.spectrum()
  )
  assert logits_BLV.shape == (1, 10, V)


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'memory': 4}, 'memory of 4 tokens belongs to segments. Set segment'),
    ({'segment': 0}, 'Segments of 0 tokens'),
    ({'segment': 4, 'memory': -1}, 'a memory of -1 cannot be'),
    ({'segment': 4, 'mask': Mask(chunk=4)}, 'both cut a row'),
  ],
)
def test_memories_that_cannot_be_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    Layer(scheme=positions.Scheme(), **settings)
