"""Decoding with a cache equals the pass over the whole row, for every scheme and every layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import NAMES, make

from posjax import composition, positions
from posjax.attend import Mask
from posjax.attention import Layer
from posjax.cache import LayerCache
from posjax.decoder import Decoder, init_params
from posjax.decoding import advance, empty, unstacked
from posjax.extension import extend
from posjax.latent import Latent

V, L = 64, 20
PIECES = [8, 8, 1, 1, 1, 1]
# By default one scheme for each thing that a cache must know: tokens of before, keys as they are
# turned, a state along the keys, keys that later tokens turn. The others are slow.
KINDS = ('abacus', 'rope', 'cope', 'path')


def slow(names, *by_default):
  return [pytest.param(n, marks=[pytest.mark.slow] * (n not in by_default)) for n in names]


def build(*layers, **settings):
  sizes = {
    'length': 64, 'vocabulary': V, 'width': 16, 'layers': len(layers), 'heads': 4, 'kv_heads': 2,
    'head_width': 8, 'mlp_width': 24, 'dtype': 'float32', 'attention': 'dense',
  }  # fmt: skip
  model = Decoder(pattern=layers, **(sizes | settings))
  params = init_params(model, jax.random.key(0))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
  return model, jax.tree.unflatten(tree, moved)


def decoded(model, params, spectrum, tokens_BL, pieces, *, counts=None, size=None, **cache):
  """logits_BLV, from pieces of so many tokens each."""
  weights = unstacked(model, params)
  spectrum = jax.tree.map(jnp.float32, spectrum)
  B, L = tokens_BL.shape
  cache = empty(model, weights, spectrum, batch=B, size=size or L, **cache)
  step = jax.jit(functools.partial(advance, model))
  found, at = [], 0
  for S in pieces:
    hidden_BSD, cache = step(
      weights, spectrum, cache, tokens_BL[:, at : at + S], jnp.full(B, S, jnp.int32)
    )
    found.append(model.apply({'params': weights['ends']}, hidden_BSD, method='logits'))
    at += S
  assert at == L
  return jnp.concatenate(found, axis=1), cache


def whole(model, params, spectrum, tokens_BL):
  spectrum = jax.tree.map(jnp.float32, spectrum)
  return jax.jit(model.apply)({'params': params}, tokens_BL, spectrum)


@pytest.fixture
def tokens_BL(rng):
  return jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)


@pytest.mark.parametrize('name', slow(NAMES, *KINDS))
def test_a_prefill_in_pieces_and_steps_equal_the_whole_row(name, tokens_BL):
  model, params = build(Layer(scheme=make(name)))
  found_BLV, _ = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


SEES = {  # slots that a layer needs of 20
  'window': ({'mask': Mask(window=5)}, 5),
  'window longer than the row': ({'mask': Mask(window=30)}, L),
  'window and sinks': ({'mask': Mask(window=4, sinks=2)}, 6),
  'chunk': ({'mask': Mask(chunk=6)}, 6),
  'window in chunks': ({'mask': Mask(chunk=8, window=3)}, 3),
  'segments': ({'segment': 4}, 4),
  'segments and memory': ({'segment': 4, 'memory': 3}, 7),
}

@pytest.mark.parametrize('name', slow(('rope', 'fox', 'cope', 't5'), 'fox'))
@pytest.mark.parametrize(
  'sees', slow(SEES, 'window and sinks', 'segments and memory')
)
def test_a_layer_that_sees_less_keeps_no_more_than_it_sees(name, sees, tokens_BL):
  settings, slots = SEES[sees]
  layers = Layer(scheme=make(name), **settings), Layer(scheme=make('none'))
  model, params = build(*layers)
  found_BLV, cache = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
  assert [layer.slots for layer in cache.layers] == [slots, L]


@pytest.mark.parametrize('mask', slow([Mask(), Mask(window=6)]), ids=['', 'window'])
def test_clamped_distances_are_those_of_a_cache_too(mask, tokens_BL):
  layer = Layer(scheme=positions.make('xl', clamp=3, untied=True, deviation=0.5), mask=mask)
  model, params = build(layer, layer)
  found_BLV, _ = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
  np.testing.assert_allclose(
    whole(model.clone(attention='tiled'), params, model.spectrum(), tokens_BL), expected_BLV,
    atol=2e-5,
  )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rope', 'shaw', 'cope', 'xl'])
def test_a_logit_without_a_value_joins_the_softmax_of_a_cache_too(name, tokens_BL):
  """Of steps, and of pieces that are read in tiles; where all is kept, and where not."""
  layers = (
    Layer(scheme=make(name), null_logit=True, mask=Mask(window=5)),
    Layer(scheme=make(name), null_logit=True),
  )
  model, params = build(*layers)
  assert params['blocks']['layer_1']['attention']['null_H'].shape == (1, 4)
  found_BLV, _ = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('sees', ['window', 'chunk'])
def test_what_looks_back_at_inputs_does_so_from_a_ring_of_slots_too(sees, tokens_BL):
  model, params = build(Layer(scheme=make('path'), **SEES[sees][0]))
  found_BLV, _ = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('other', ['pope', 'cope', 'fox'])
@pytest.mark.parametrize('mask', [Mask(), Mask(window=6)], ids=['', 'window'])
def test_keys_that_later_tokens_turn_stand_beside_others(other, mask, tokens_BL):
  """Of heads of their own: wider ones, ones that count along the keys, ones that keep gates."""
  parts = {'name': 'path'}, {'name': other}
  scheme = composition.make({'name': 'heads', 'parts': parts})
  model, params = build(Layer(scheme=scheme, mask=mask))
  found_BLV, _ = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


def test_a_memory_of_segments_is_refused_to_what_looks_back(tokens_BL):
  model, params = build(Layer(scheme=make('path'), segment=4, memory=4))
  with pytest.raises(ValueError, match=r'PaTH looks 2 tokens back.*Use model\.segment = None'):
    decoded(model, params, model.spectrum(), tokens_BL, PIECES)


FAR = {
  'rerope': {'window': 6},
  'self_extend': {'window': 6, 'group': 2},
  'dual_chunk': {'trained_length': 12},
  'streaming': {'window': 5, 'sinks': 2},
  'log_n': {'trained_length': 4},
  'yarn': {'trained_length': 8, 'factor': 3.0},
  'dynamic_ntk': {'trained_length': 4, 'length': L, 'mode': 'as_deployed', 'prefill': 8},
}


@pytest.mark.parametrize('name', slow(FAR, 'streaming', 'dynamic_ntk'))
def test_an_extended_model_decodes_as_it_reads_the_whole_row(name, tokens_BL):
  model, params = build(Layer(scheme=make('rope')))
  spectrum = extend(model.spectrum(), name=name, **FAR[name])
  found_BLV, _ = decoded(model, params, spectrum, tokens_BL, PIECES)
  expected_BLV = whole(model, params, spectrum, tokens_BL)
  assert np.abs(expected_BLV - whole(model, params, model.spectrum(), tokens_BL)).max() > 1e-3
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['yarn', 'rerope', 'log_n'])
def test_norms_after_the_scheme_come_after_every_way_to_turn(name, tokens_BL):
  """They undo a scale, as YaRN's, but for the one by length; far keys have them where they stand;
  a cache keeps keys with them, or as projected."""
  layer = Layer(scheme=make('rope'), qk_norm_after=0.1)
  model, params = build(layer, layer)
  settings = {'yarn': {'attention_factor': 3.0}}.get(name, {})
  spectrum = extend(model.spectrum(), name=name, **FAR[name] | settings)
  expected_BLV = whole(model, params, spectrum, tokens_BL)
  for turned in (True, False)[: 1 if name == 'rerope' else 2]:
    found_BLV, _ = decoded(model, params, spectrum, tokens_BL, PIECES, turned=turned)
    np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
  plain = Layer(scheme=make('rope'))
  without_BLV = whole(model.clone(pattern=(plain, plain)), params, spectrum, tokens_BL)
  assert np.abs(expected_BLV - without_BLV).max() > 1e-3
  as_trained_BLV = whole(model, params, model.spectrum(), tokens_BL)
  assert np.abs(expected_BLV - as_trained_BLV).max() > 1e-3


def test_norms_after_the_scheme_are_refused_where_logits_come_from_keys_as_projected(tokens_BL):
  with pytest.raises(ValueError, match=r'PaTH computes logits from keys as projected.*qk_norm_a'):
    build(Layer(scheme=make('path'), qk_norm_after=0.1))


def test_keys_kept_as_projected_are_turned_by_the_spectrum_of_each_step(tokens_BL):
  """One layer: what keys are projected from hangs on no spectrum, so that the last row of a pass
  over all tokens so far is what a step must find."""
  model, params = build(Layer(scheme=make('rope')), dtype='float32')
  weights = unstacked(model, params)

  def spectrum_at(length):
    settings = {'trained_length': 4, 'length': length}
    exact = extend(model.spectrum(), name='dynamic_ntk', **settings)
    return jax.tree.map(jnp.float32, exact)

  cache = empty(model, weights, spectrum_at(8), batch=2, size=L, turned=False)
  step = jax.jit(functools.partial(advance, model))
  _, cache = step(weights, spectrum_at(8), cache, tokens_BL[:, :8], jnp.full(2, 8, jnp.int32))
  for n in range(8, 12):
    one_B = jnp.ones(2, jnp.int32)
    hidden_B1D, cache = step(weights, spectrum_at(n + 1), cache, tokens_BL[:, n : n + 1], one_B)
    found_BV = model.apply({'params': weights['ends']}, hidden_B1D, method='logits')[:, 0]
    expected_BLV = whole(model, params, spectrum_at(n + 1), tokens_BL[:, : n + 1])
    np.testing.assert_allclose(found_BV, expected_BLV[:, -1], atol=1e-4)


@pytest.mark.parametrize(
  'sees', slow(['whole', 'window and sinks', 'segments and memory'], 'window and sinks')
)
@pytest.mark.parametrize(
  'name', slow(['rope', 'configs/rope_fox.py', 'abacus', 'path'], 'configs/rope_fox.py')
)
def test_rows_of_different_length_decode_as_each_does_alone(name, sees, tokens_BL):
  if name == 'path' and sees != 'whole':
    return  # sinks and memories are refused
  settings = {} if sees == 'whole' else SEES[sees][0]
  model, params = build(Layer(scheme=make(name), **settings))
  weights, spectrum = unstacked(model, params), jax.tree.map(jnp.float32, model.spectrum())
  step = jax.jit(functools.partial(advance, model))
  lengths = np.array([3, 13])

  def run(tokens_BL, lengths):
    cache = empty(model, weights, spectrum, batch=len(lengths), size=L)
    for at in range(0, 16, 8):
      count_B = jnp.asarray(np.clip(lengths - at, 0, 8), jnp.int32)
      hidden_BSD, cache = step(weights, spectrum, cache, tokens_BL[:, at : at + 8], count_B)
    found = []
    for n in range(5):
      # The token after the prompt is drawn from the row, whichever place it is at.
      new_B1 = tokens_BL[:, n : n + 1]
      count_B = jnp.ones(len(lengths), jnp.int32)
      hidden_BSD, cache = step(weights, spectrum, cache, new_B1, count_B)
      found.append(hidden_BSD)
    return jnp.concatenate(found, axis=1), cache.length_B

  together_BLD, length_B = run(tokens_BL, lengths)
  np.testing.assert_array_equal(length_B, lengths + 5)
  for n in range(2):
    alone_1LD, _ = run(tokens_BL[n : n + 1], lengths[n : n + 1])
    np.testing.assert_allclose(together_BLD[n], alone_1LD[0], atol=1e-5)


def test_a_cache_holds_what_its_shape_says_and_nothing_else(tokens_BL):
  """Keys and values of 2 heads of 8, the gates of 4 heads of FoX: float32."""
  layers = Layer(scheme=make('rope')), Layer(scheme=make('fox'), mask=Mask(window=5))
  model, params = build(*layers)
  weights, spectrum = unstacked(model, params), jax.tree.map(jnp.float32, model.spectrum())
  cache = empty(model, weights, spectrum, batch=3, size=40)
  per_token = 2 * 2 * 8 * 4
  assert cache.bytes == 3 * (40 * per_token + 5 * (per_token + 4 * 4))


@pytest.mark.parametrize(
  'length, expected',
  [
    (0, [-1, -1, -1, -1, -1]),
    (1, [0, -1, -1, -1, -1]),
    (4, [0, 1, 2, 3, -1]),
    (5, [0, 1, 2, 3, 4]),
    (6, [0, 1, 5, 3, 4]),  # of three slots that are shared, the oldest is given to the newest
    (9, [0, 1, 8, 6, 7]),
  ],
)
def test_pinned_tokens_keep_their_slots_and_the_others_share_the_rest_in_turn(length, expected):
  cache = LayerCache(
    key_GRK=jnp.zeros((2, 5, 4)), value_GRV=None, features_R=None, past_TD=jnp.zeros((0, 8)),
    pinned=2, whole=False, turned=True,
  )  # fmt: skip
  np.testing.assert_array_equal(cache.places(jnp.int32(length)), expected)
  for slot, place in enumerate(expected):
    if place >= 0:
      assert cache.slot(jnp.int32(place)) == slot


def test_one_program_decodes_rows_of_all_lengths(tokens_BL):
  model, params = build(Layer(scheme=make('rope')))
  weights, spectrum = unstacked(model, params), jax.tree.map(jnp.float32, model.spectrum())
  step = jax.jit(functools.partial(advance, model))
  cache = empty(model, weights, spectrum, batch=2, size=40)
  for n in range(20):
    _, cache = step(weights, spectrum, cache, tokens_BL[:, n : n + 1], jnp.ones(2, jnp.int32))
  assert step._cache_size() == 1


ATTENTION = {
  'multi-head': {'kv_heads': 16},
  'one key head': {'kv_heads': 1},
  'latent': {'kv_heads': 16, 'latent': Latent(width=16, slice=8, decode='absorbed')},
}


def step_memory(scheme, size: int, **settings):
  """(bytes kept, of them written in place, temporary bytes) of a compiled step of two rows."""
  model = Decoder(
    pattern=(Layer(scheme=scheme),), length=size, vocabulary=V, width=16, layers=2, heads=16,
    head_width=8, mlp_width=24, dtype='float32', **{'kv_heads': 2} | settings,
  )  # fmt: skip
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  weights = jax.eval_shape(lambda key: unstacked(model, init_params(model, key)), jax.random.key(0))
  cache = jax.eval_shape(functools.partial(empty, model, batch=2, size=size), weights, spectrum)
  new = jnp.zeros((2, 1), jnp.int32), jnp.ones(2, jnp.int32)
  step = jax.jit(functools.partial(advance, model), donate_argnums=2)
  memory = step.lower(weights, spectrum, cache, *new).compile().memory_analysis()
  return cache.bytes, memory.alias_size_in_bytes, memory.temp_size_in_bytes


@pytest.mark.parametrize(
  ('name', 'settings'),
  [
    *(pytest.param('rope', settings, id=name) for name, settings in ATTENTION.items()),
    *(pytest.param(*one.values, {}, marks=one.marks) for one in slow(NAMES, 'path')),
  ],
)
def test_a_step_copies_nothing_it_keeps_and_adds_a_few_numbers_to_each_logit(name, settings):
  """In the compiled program: the cache is written in place, and what else grows with it is eight
  numbers for each logit at most. PaTH took 148, and ever more, when it turned queries each time."""
  measured = np.array([step_memory(make(name), size, **settings) for size in (1024, 2048, 4096)])
  kept, in_place, temporary = np.diff(measured, axis=0).T
  np.testing.assert_array_equal(in_place, kept)
  logits = 2 * 16 * np.array([1024, 2048])  # of a layer: two rows, 16 heads
  assert np.all(temporary <= 8 * 4 * logits)
