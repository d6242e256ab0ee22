"""What is drawn, when rows end, how text is shown, and what a cache refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import make
from test_decoding import V, build, whole

from posjax.attend import Mask
from posjax.attention import Layer
from posjax.data.tokenizers import Bytes
from posjax.decoding import Decoding
from posjax.extension import extend
from posjax.generation import NONE, Sampler, Stream, generate


@pytest.fixture(scope='module')
def model():
  return build(Layer(scheme=make('rope')), Layer(scheme=make('rope'), mask=Mask(window=6)))


@pytest.fixture(scope='module')
def begin(model):
  """Decoding of so many rows, empty; what was compiled for it before is used again."""
  decoder, params = model

  @functools.cache
  def make(batch, size, chunk):
    return Decoding(
      decoder, params, lambda length: decoder.spectrum(), batch=batch, size=size, chunk=chunk
    )

  def empty(batch=2, size=32, chunk=4):
    decoding = make(batch, size, chunk)
    decoding.restart()
    return decoding

  return empty


PROMPTS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7, 1, 8]


def test_greedy_text_is_what_the_whole_row_finds_likeliest_at_each_place(model, begin):
  decoder, params = model
  rows = [list(prompt) for prompt in PROMPTS]
  for token_B in generate(begin(), PROMPTS, new=5):
    for row, token in zip(rows, token_B, strict=True):
      row.append(int(token))
  spectrum = jax.tree.map(jnp.float32, decoder.spectrum())
  for row, prompt in zip(rows, PROMPTS, strict=True):
    logits_1LV = decoder.apply({'params': params}, jnp.asarray([row]), spectrum)
    likeliest = np.argmax(logits_1LV[0, len(prompt) - 1 : -1], axis=-1)
    np.testing.assert_array_equal(row[len(prompt) :], likeliest)


def test_a_row_ends_at_a_stop_token_and_the_others_go_on(begin):
  draw = lambda stop=(), batch=2: np.stack(list(
    generate(begin(batch), PROMPTS[:batch], new=6, sampler=Sampler(), stop=stop)
  ))  # fmt: skip
  free = draw()
  stop = int(free[1, 0])
  assert stop != free[0, 0] and stop not in free[:, 1]
  found = draw({stop})
  np.testing.assert_array_equal(found[:, 1], free[:, 1])
  np.testing.assert_array_equal(found[:, 0], [*free[:2, 0], NONE, NONE, NONE, NONE])
  alone = draw(batch=1)[:, 0]
  last = list(alone).index(alone[3])
  assert len(draw({int(alone[3])}, batch=1)) == last + 1  # nothing is left to go on


def test_the_same_seed_draws_the_same_text_and_another_does_not(begin):
  draw = lambda seed: np.stack(list(
    generate(begin(), PROMPTS, new=8, sampler=Sampler(), seed=seed)
  ))  # fmt: skip
  np.testing.assert_array_equal(draw(1), draw(1))
  assert (draw(1) != draw(2)).any()


LOGITS = np.log(np.array([[0.05, 0.5, 0.15, 0.3]]))


@pytest.mark.parametrize(
  'settings, expected',
  [
    ({}, [0.05, 0.5, 0.15, 0.3]),
    ({'temperature': 0.5}, [0.0025, 0.25, 0.0225, 0.09]),
    ({'top_k': 2}, [0, 0.5, 0, 0.3]),
    ({'top_k': 9}, [0.05, 0.5, 0.15, 0.3]),
    ({'top_p': 0.7}, [0, 0.5, 0, 0.3]),  # 0.5 is not enough, and 0.3 passes it
    ({'top_p': 0.45}, [0, 0.5, 0, 0]),
    ({'top_p': 1e-9}, [0, 0.5, 0, 0]),
    ({'top_k': 2, 'top_p': 0.6}, [0, 0.5, 0, 0]),  # of 0.8 that are left, 0.5 are 0.625
    ({'top_k': 3, 'top_p': 0.6}, [0, 0.5, 0, 0.3]),
  ],
)
def test_what_may_be_drawn_keeps_its_share_of_what_is_left(settings, expected):
  p_BV = jax.nn.softmax(Sampler(**settings).left(jnp.asarray(LOGITS)), axis=-1)
  np.testing.assert_allclose(p_BV[0], np.array(expected) / np.sum(expected), atol=1e-6)


def test_draws_come_as_often_as_their_probability_says():
  sampler = Sampler(top_k=2)
  token_B = sampler.draw(jnp.asarray(np.repeat(LOGITS, 4000, axis=0)), jax.random.key(0))
  share = np.bincount(token_B, minlength=4) / 4000
  np.testing.assert_allclose(share, [0, 0.625, 0, 0.375], atol=4 * (0.25 / 4000) ** 0.5)


def test_a_token_too_unlikely_to_be_seen_in_the_sum_of_all_may_still_be_drawn():
  """The likeliest one's probability rounds to 1."""
  for sampler in (Sampler(), Sampler(top_k=3)):
    assert np.isfinite(sampler.left(jnp.asarray([[0.0, 20.0, 0.0]]))).all()


@pytest.mark.parametrize('temperature', [1e-38, 1e-45])
def test_the_lowest_temperatures_draw_the_likeliest_token(temperature):
  sampler = Sampler(temperature=temperature)
  token_B = sampler.draw(jnp.asarray([[10.0, 20.0, 30.0], [5.0, 0.0, -5.0]]), jax.random.key(0))
  np.testing.assert_array_equal(token_B, [2, 0])


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'temperature': -1.0}, r'temperature of -1\.0.*Use 0'),
    ({'top_k': 0}, r'top_k = 0 leaves no token.*None for all'),
    ({'top_p': 0.0}, r'top_p = 0\.0.*0 < top_p <= 1'),
    ({'top_p': 1.5}, r'top_p = 1\.5'),
  ],
)
def test_a_sampler_that_cannot_be_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Sampler(**settings)


def test_a_cache_that_is_too_short_is_refused_before_anything_is_read(begin):
  decoding = begin(size=12)
  with pytest.raises(ValueError, match=r'11 tokens and 3 new ones need 13 places.*size >= 13'):
    next(generate(decoding, PROMPTS, new=3))
  assert decoding.lengths.max() == 0
  assert len(list(generate(decoding, PROMPTS, new=2))) == 2  # the last token needs no place
  with pytest.raises(ValueError, match=r'holds 12 tokens of a row, and one would have 13'):
    decoding.step([1, 1])


def test_a_batch_that_does_not_match_is_refused(begin):
  with pytest.raises(ValueError, match=r'3 rows of tokens for a cache of 2 rows.*batch = 3'):
    begin().read([[1], [2], [3]])
  with pytest.raises(ValueError, match=r'without tokens.*Begin rows with bos'):
    begin().read([[1, 2], []])


@pytest.mark.parametrize(
  'prompts, new, message',
  [
    ([[1], [2], [3]], 2, r'3 rows of tokens for a cache of 2 rows'),
    ([], 2, r'0 rows of tokens for a cache of 2 rows'),
    ([[1], []], 2, r'A row without tokens'),
    ([[1], [2]], 0, r'0 new tokens leave nothing to write.*new >= 1'),
    ([[1], [2.5]], 1, r'whole numbers, not float64 \[1\]'),
    ([[1], [2**32 + 1]], 1, r'There is no token 4294967297'),
  ],
)
def test_what_nothing_can_be_written_after_is_refused_before_anything_is_read(
  prompts, new, message, begin
):
  decoding = begin()
  with pytest.raises(ValueError, match=message):
    next(generate(decoding, prompts, new=new))
  assert decoding.lengths.max() == 0


def test_who_reads_must_be_said_of_each_row(begin):
  decoding = begin()
  with pytest.raises(ValueError, match=r'1 rows are said to read or not, of 2'):
    decoding.step([1, 2], [True])
  assert decoding.lengths.max() == 0


def test_rows_of_different_length_read_on_by_steps_only(begin):
  decoding = begin()
  decoding.read([[1, 2, 3], [4, 5]])
  with pytest.raises(ValueError, match=r'\[3, 2\] tokens cannot read on side by side.*`step`'):
    decoding.read([[1, 2], [3, 4]])
  decoding.read([[1], [3]])
  np.testing.assert_array_equal(decoding.lengths, [4, 3])


@pytest.fixture(scope='module')
def follows():
  """Two layers whose keys are turned anew for the length of the rows."""
  decoder, params = build(Layer(scheme=make('rope')), layers=2)
  settings = {'name': 'dynamic_ntk', 'trained_length': 4}
  spectrum_at = lambda length: extend(decoder.spectrum(), length=length, **settings)
  decoding = Decoding(decoder, params, spectrum_at, batch=2, size=16, chunk=4, turned=False)
  return decoder, params, spectrum_at, decoding


@pytest.mark.slow
def test_a_prompt_in_chunks_is_turned_for_its_whole_length(follows, rng):
  decoder, params, spectrum_at, decoding = follows
  tokens_BL = rng.integers(0, V, (2, 11))
  decoding.restart()
  expected_BLV = whole(decoder, params, spectrum_at(11), jnp.asarray(tokens_BL))
  np.testing.assert_allclose(decoding.read(tokens_BL), expected_BLV[:, -1], atol=1e-4)


@pytest.mark.slow
def test_keys_that_are_turned_for_the_length_of_a_row_need_rows_of_one_length(follows):
  *_, decoding = follows
  decoding.restart()
  with pytest.raises(ValueError, match=r'rows would have \[3, 2\] tokens.*one at a time'):
    decoding.read([[1, 2, 3], [4, 5]])
  decoding.read([[1, 2, 3], [4, 5, 6]])
  decoding.step([1, 1], [True, False])  # one row has ended
  with pytest.raises(ValueError, match=r'rows would have \[5, 4\] tokens'):
    decoding.step([1, 1])


def test_positions_must_last_for_the_whole_cache():
  decoder, params = build(Layer(scheme=make('learned')))
  with pytest.raises(ValueError, match=r'64 positions, but the sequence has 65 tokens'):
    Decoding(decoder, params, lambda length: decoder.spectrum(), batch=1, size=65)


def test_text_is_shown_as_soon_as_no_later_token_can_change_it():
  tokenizer = Bytes()
  stream = Stream(tokenizer.decode, tokenizer.encode('naïve '))
  shown = [stream.add(token) for token in tokenizer.encode('é€!')]
  assert shown == ['', 'é', '', '', '€', '!']
  stream.add(0xE2)
  assert stream.end() == '\ufffd'


def test_a_character_that_a_prompt_begins_is_shown_when_it_is_whole():
  tokenizer = Bytes()
  *begun, last = tokenizer.encode('naïve €')
  stream = Stream(tokenizer.decode, begun)
  assert stream.add(last) + stream.add(ord('!')) == '€!'


def test_tokens_of_a_prompt_are_within_the_vocabulary(begin):
  with pytest.raises(ValueError, match=rf'token {V}.*vocabulary of {V}'):
    begin(1).read([[1, V]])
