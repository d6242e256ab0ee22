"""Attention in numbers is what the weights say that the streamed sums never store."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs.eval import attention as settings
from posjax.atlas import trained
from posjax.attend import Logits, Mask, Rows, summarise
from posjax.config import load
from posjax.decoder import init_params
from posjax.evaluation import attention
from posjax.experiment import build
from posjax.extension import extend

NUMBERS = attention.NUMBERS


def by_weights(p_HIJ, seen_IJ, sinks):
  """The numbers [I, H] from weights, in float64."""
  p_HIJ = np.where(seen_IJ, np.float64(p_HIJ), 0)
  I, J = seen_IJ.shape
  back_IJ = np.arange(I)[:, None] - np.arange(J)
  log_HIJ = np.log(np.where(p_HIJ > 0, p_HIJ, 1))
  entropy_IH = -(p_HIJ * log_HIJ).sum(-1).T
  keys_I1 = seen_IJ.sum(1)[:, None]
  most_I1 = np.log(np.maximum(keys_I1, 2))
  return {
    'distance': (p_HIJ * back_IJ).sum(-1).T,
    'entropy': entropy_IH,
    'spread': np.where(keys_I1 > 1, entropy_IH / most_I1, 0),
    'sink': p_HIJ[..., :sinks].sum(-1).T,
  }


# --- one sequence ---------------------------------------------------------------------------------

MASKS = {
  'causal': Mask(),
  'window': Mask(window=5),
  'window of 1': Mask(window=1),
  'sinks': Mask(window=3, sinks=2),
  'chunks': Mask(chunk=4),
}


@pytest.mark.parametrize('null', [False, True], ids=['', 'null'])
@pytest.mark.parametrize('sizes', [(4, 3), (13, 13), None])
@pytest.mark.parametrize('case', MASKS)
def test_sums_over_tiles_are_those_over_all_weights(rng, tolerance, case, sizes, null):
  """Two query heads for each key head; logits of tens, so that maxima matter; distances are the
  text's, at positions that are not places. What a null logit takes is a sink's."""
  L, H, G, K, sinks, temperature = 13, 4, 2, 8, 3, np.float32([1, 2, 0.5, 1])
  q_LHK, k_LGK = (np.float32(2 * rng.normal(size=(L, n, K))) for n in (H, G))
  slope_H = np.float32(rng.normal(size=H))
  score = lambda slope_H, s_HIJ, tile: s_HIJ + slope_H[:, None, None] * tile.distance_IJ
  rows = Rows(index_L=jnp.arange(L), pos_L=2 * jnp.arange(L))
  logits = Logits(scale=0.7, mask=MASKS[case], score=score)
  null_H = np.float32(10 * rng.normal(size=H)) if null else None
  found = summarise(
    q_LHK, k_LGK, rows, rows, jnp.arange(L) < sinks, logits, temperature, (slope_H,), sizes, null_H
  )

  s_HIJ = 0.7 * np.einsum('ihk,jhk->hij', np.float64(q_LHK), np.repeat(k_LGK, 2, axis=1))
  i_I1, j_J = np.arange(L)[:, None], np.arange(L)
  s_HIJ = (s_HIJ + slope_H[:, None, None] * 2 * (i_I1 - j_J)) * temperature[:, None, None]
  seen_IJ = {
    'causal': j_J <= i_I1,
    'window': (j_J <= i_I1) & (i_I1 - j_J < 5),
    'window of 1': j_J == i_I1,
    'sinks': (j_J <= i_I1) & ((i_I1 - j_J < 3) | (j_J < 2)),
    'chunks': (j_J <= i_I1) & (j_J // 4 == i_I1 // 4),
  }[case]
  top_HI1 = s_HIJ.max(-1, keepdims=True, where=seen_IJ, initial=-np.inf)
  e_HIJ = np.where(seen_IJ, np.exp(np.where(seen_IJ, s_HIJ - top_HI1, 0)), 0)
  expected = by_weights(e_HIJ / e_HIJ.sum(-1, keepdims=True), seen_IJ, sinks)
  if null:
    taken_HI1 = np.exp(null_H[:, None, None] - top_HI1)
    p_HIJ = e_HIJ / (e_HIJ.sum(-1, keepdims=True) + taken_HI1)
    expected['sink'] = 1 - p_HIJ[..., sinks:].sum(-1).T
  assert set(found) == set(NUMBERS)
  for name, x_LH in found.items():
    assert x_LH.shape == (L, H)
    size = L if name == 'distance' else 1
    np.testing.assert_allclose(x_LH, expected[name], atol=size * tolerance(L * K), err_msg=name)


def test_even_weights_have_a_spread_of_one_and_look_halfway_back():
  L = 12
  rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L), contiguous=True)
  nothing = jnp.zeros((L, 1, 4))
  found = summarise(nothing, nothing, rows, rows, jnp.arange(L) < 1, Logits(scale=1.0))
  seen_L = np.arange(1, L + 1)
  np.testing.assert_allclose(found['distance'][:, 0], (seen_L - 1) / 2, rtol=1e-6)
  np.testing.assert_allclose(found['entropy'][:, 0], np.log(seen_L), rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(found['spread'][:, 0], seen_L > 1, rtol=1e-6)
  np.testing.assert_allclose(found['sink'][:, 0], 1 / seen_L, rtol=1e-6)


# --- a model --------------------------------------------------------------------------------------

LONG, TRAINED, SINKS = 150, 32, 2  # several tiles, the last of which are not whole
MODELS = {  # config, settings, extension
  'rope': ('rope', (), {}),
  'groups of heads': ('rope', ('model.kv_heads=2',), {}),
  'linear bias': ('alibi', (), {}),
  'buckets': ('t5', (), {}),
  'gates': ('fox', (), {}),
  'counts along keys': ('cope', (), {}),
  'products along keys': ('path', (), {}),
  'tables of content': ('shaw', (), {}),
  'what each layer learns': ('xl', (), {}),
  'two schemes at once': ('rope_fox', (), {}),
  'a pattern of layers': ('irope', (), {}),
  'layers left over': ('irope', ('model.layers=5',), {}),
  'a window': ('alibi', ('model.window=20',), {}),
  'chunks': ('rope', ('model.chunk=40',), {}),
  'a memory of segments': ('xl', ('model.segment=40', 'model.memory=24'), {}),
  'gates with a memory': ('fox', ('model.segment=40', 'model.memory=24'), {}),
  'sampled positions': ('randomized', (), {}),
  'yarn': ('rope', (), {'name': 'yarn', 'factor': 4.0, 'trained_length': TRAINED}),
  'dynamic': ('rope', (), {
    'name': 'dynamic_ntk', 'mode': 'as_deployed', 'trained_length': TRAINED,
  }),
  'log n': ('rope', (), {'name': 'log_n', 'trained_length': TRAINED}),
  'rerope': ('rope', (), {'name': 'rerope', 'window': 16}),
  'dual chunk': ('rope', (), {'name': 'dual_chunk', 'trained_length': TRAINED}),
  'streaming': ('rope', (), {'name': 'streaming', 'window': 20, 'sinks': 4}),
  'a null logit': ('rope', ('model.null_logit=true',), {}),
  'linear on a pattern': ('irope', (), {
    'name': 'linear', 'factor': 4.0, 'trained_length': TRAINED,
  }),
}  # fmt: skip


def seen_by(layer):
  """seen_IJ of a whole row."""
  i_I1, j_J = np.arange(LONG)[:, None], np.arange(LONG)
  seen_IJ, mask = j_J <= i_I1, layer.mask
  if mask.window is not None:
    seen_IJ &= (i_I1 - j_J < mask.window) | (j_J < mask.sinks)
  if mask.chunk is not None:
    seen_IJ &= i_I1 // mask.chunk == j_J // mask.chunk
  if layer.segment is not None:
    seen_IJ &= j_J >= i_I1 // layer.segment * layer.segment - layer.memory
  return seen_IJ


def null_of(params, stack, place, repetition):
  null_RH = trained.layers.null_logits(params, stack, place)
  return None if null_RH is None else null_RH[repetition]


SLOW = {'layers left over', 'two schemes at once', 'tables of content', 'linear on a pattern',
        'chunks', 'dynamic'}  # fmt: skip


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW or n % 2))
    for n, case in enumerate(MODELS)
  ],
)
def test_every_head_is_seen_as_its_dense_weights_say(case, rng, tolerance):
  file, words, recipe = MODELS[case]
  config = load(f'configs/{file}.py:smoke', [f'--config.{word}' for word in words])
  config.model.vocabulary, config.model.attention = 32, 'tiled'
  model = build(config)
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  params = jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)
  spectrum = model.spectrum()
  if recipe:
    spectrum = extend(spectrum, **{'length': LONG, **recipe})
  spectrum = jax.tree.map(jnp.float32, spectrum)
  token_BL = rng.integers(0, 32, (2, LONG)).astype(np.int32)
  plain = case != 'sampled positions'
  pos_L = np.arange(LONG) if plain else np.sort(rng.permutation(400)[:LONG])
  batch = {'tokens': token_BL, 'positions': np.tile(pos_L, (2, 1)).astype(np.int32)}

  @jax.jit
  def look(params, spectrum, batch):
    found = attention.look(model, params, spectrum, batch, sinks=SINKS, contiguous=plain)
    return found, trained.projected(model, params, spectrum, token_BL, batch['positions'])

  found, stacks = look(params, spectrum, batch)
  run = trained.Trained(name='', config=config, model=model, params=params, documents=None)
  worst = dict.fromkeys(NUMBERS, 0.0)
  for n in range(model.layers):
    stack, repetition, place = trained.layers.place(model, n)
    layer = model.pattern[place].under(spectrum[place], model.scale)
    seen_IJ = seen_by(layer)
    for b in range(2):
      vectors = [x[repetition, b] for x in stacks[stack][place]]
      p_HIJ = trained.weights_of(
        model.pattern[place], run.position(n), spectrum[place], *vectors,
        None if plain else jnp.asarray(pos_L), null_H=null_of(params, stack, place, repetition),
      )  # fmt: skip
      among_HI1 = p_HIJ.sum(-1, keepdims=True)
      expected = by_weights(p_HIJ / among_HI1, seen_IJ, SINKS)
      expected['sink'] = 1 - p_HIJ[..., SINKS:].sum(-1).T
      assert (among_HI1.min() < 0.99) == (case == 'a null logit')
      for name in NUMBERS:
        mean_H = expected[name][LONG // 4 :].mean(0)
        assert found[name].shape == (2, model.layers, model.heads)
        error = np.abs(found[name][b, n] - mean_H).max()
        worst[name] = max(worst[name], error / (LONG if name == 'distance' else 1))
  assert max(worst.values()) < tolerance(LONG), worst


# --- an evaluation --------------------------------------------------------------------------------


class Documents:
  bytes_per_token = 1.0

  def __len__(self):
    return 3

  def __getitem__(self, index):
    return np.arange((65, 40, 90)[index], dtype=np.int32)


def numbers(spectrum, batch):
  """Distances count windows from the document's beginning; sinks tell the recipe."""
  first_B = batch['tokens'][:, 0]
  of = lambda x_B: np.tile(np.float32(x_B)[:, None, None], (1, 2, 3))
  return {'distance': of(first_B), 'entropy': of(first_B * 0), 'spread': of(first_B * 0),
          'sink': of(first_B * 0 + spectrum)}  # fmt: skip


def stretch(recipe, length):
  if recipe['name'] == 'linear' and length > 16:
    raise ValueError('Too far.')
  return recipe.get('factor', 1.0)


def config(**changes) -> ConfigDict:
  made = settings.get_config('smoke')
  made.update({'multiples': (1, 2, 4), **changes})
  return made


def run(numbers=numbers, **changes):
  return attention.evaluate(numbers, stretch, Documents(), config(**changes), trained_length=16)


def test_every_length_reads_the_same_text_in_whole_windows_side_by_side():
  results = run()
  assert (results['documents'], results['short_documents']) == (2, 1)
  rows = {(row['length'], row['recipe']): row for row in results['rows']}
  for length, windows, distance in ((16, 8, 24), (32, 4, 16), (64, 2, 0)):
    row = rows[length, 'none']
    assert row['windows'] == windows
    assert row['distance'] == [[distance] * 3] * 2  # of windows that begin at 0, length, ...
  assert rows[64, 'yarn']['sink'] == [[4.0] * 3] * 2 and rows[64, 'yarn']['factor'] == 4.0
  assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_what_a_window_lacks_of_a_whole_one_is_not_read():
  """Of 64 tokens, 48 in windows of 24, two by two: the last rows are filled up, and not counted."""
  sizes = []

  def counted(spectrum, batch):
    sizes.append(batch['tokens'].shape)
    return numbers(spectrum, batch)

  results = run(counted, multiples=(1.5, 4), trained=False, batch_tokens=24 * 3)
  assert sizes[:2] == [(3, 24)] * 2
  (row,) = [r for r in results['rows'] if (r['length'], r['recipe']) == (24, 'none')]
  assert row['windows'] == 4 and row['distance'] == [[12.0] * 3] * 2


def test_a_recipe_that_makes_no_sense_is_reported_and_the_others_go_on():
  results = run()
  assert [(r['length'], r['recipe'], r['reason']) for r in results['refused']] == [
    (32, 'linear', 'Too far.'), (64, 'linear', 'Too far.'),
  ]  # fmt: skip
  assert len(results['rows']) == 7


def test_numbers_that_are_none_are_refused_and_so_are_all_recipes_together():
  def broken(spectrum, batch):
    return {name: x * math.nan for name, x in numbers(spectrum, batch).items()}

  with pytest.raises(ValueError, match=r'refuses all .* no finite attention at 16 tokens'):
    run(broken)


def test_settings_that_measure_nothing_are_refused():
  with pytest.raises(ValueError, match=r'span of 0\.5 longest lengths holds no window'):
    run(span=0.5)
  with pytest.raises(ValueError, match=r'0 sinks weigh nothing\. Use --eval\.sinks >= 1'):
    run(sinks=0)
