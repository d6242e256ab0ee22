"""Extensions that follow the length of the text, in both modes."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition
from posjax.attention import Layer
from posjax.decoder import Decoder, check_length, init_params
from posjax.extension import extend
from posjax.positions import Dims
from posjax.rotary import rotate

L, K, TRAINED, THETA = 20, 8, 8, 100.0
DIMS = Dims(width=16, heads=2, kv_heads=2, head_width=K, length=TRAINED)
SHORT, LONG = (1.0, 1.1, 1.2, 1.3), (1.0, 2.0, 3.0, 4.0)
METHODS = [
  ('dynamic_linear', {}),
  ('dynamic_ntk', {}),
  ('dynamic_ntk', {'gain': 3.0}),
  ('dynamic_yarn', {'fast': 4.0, 'slow': 0.5}),
  ('longrope', {'factor': 4.0, 'short': SHORT, 'long': LONG}),
]
IDS = [' '.join([name, *settings]) for name, settings in METHODS]


def trained(name='rope'):
  return composition.make({'name': name, 'theta': THETA}).spectrum(DIMS)


def extended(name, settings, **more):
  return extend(trained(), name=name, trained_length=TRAINED, **{'length': L, **settings, **more})


def by_hand(name, length, *, gain=1.0, fast=32.0, slow=1.0, factor=None, short=None, long=None):
  """Frequencies and amplitude at one length, in Python floats."""
  w = [THETA ** (-2 * f / K) for f in range(K // 2)]
  s = max(1, length / TRAINED)
  if name == 'dynamic_linear':
    return [x / s for x in w], 1.0
  if name == 'dynamic_ntk':
    base = THETA * max(1, gain * length / TRAINED - (gain - 1)) ** (K / (K - 2))
    return [base ** (-2 * f / K) for f in range(K // 2)], 1.0
  if name == 'longrope':
    divisors = long if length > TRAINED else short
    amplitude = math.sqrt(1 + math.log(factor) / math.log(TRAINED))
    return [x / d for x, d in zip(w, divisors, strict=True)], amplitude
  at = lambda turns: K * math.log(TRAINED / (2 * math.pi * turns)) / (2 * math.log(THETA))
  low, high = max(math.floor(at(fast)), 0), min(math.ceil(at(slow)), K - 1)
  keep = [1 - min(1, max(0, (f - low) / (high - low))) for f in range(K // 2)]
  return [x * k + x / s * (1 - k) for x, k in zip(w, keep, strict=True)], 0.1 * math.log(s) + 1


@pytest.mark.parametrize('length', [1, TRAINED, TRAINED + 1, L])
@pytest.mark.parametrize(('name', 'settings'), METHODS, ids=IDS)
def test_exact_is_the_formula_at_the_length_of_the_text(name, settings, length):
  spectrum = extended(name, settings, length=length)
  frequency_F, amplitude = by_hand(name, length, **settings)
  np.testing.assert_allclose(spectrum.frequency_F, frequency_F, rtol=1e-13)
  np.testing.assert_allclose(spectrum.amplitude, amplitude, rtol=1e-15)
  assert spectrum.temperature == 1
  if length <= TRAINED and name != 'longrope':
    np.testing.assert_allclose(spectrum.frequency_F, trained().frequency_F, rtol=1e-15)


@pytest.mark.parametrize('prefill', [1, 5, 13])
@pytest.mark.parametrize(('name', 'settings'), METHODS, ids=IDS)
def test_as_deployed_gives_the_logits_of_decoding_with_cached_keys(rng, name, settings, prefill):
  """A cache, token by token: each turned once, for the length when it came, and never again."""
  q_LK, k_LK = rng.normal(size=(2, L, K))
  turn = lambda x_K, at, length: turned(x_K, at, *by_hand(name, length, **settings))
  cache, exact_LL = [], np.zeros((L, L))
  for n in range(L):
    length = max(n + 1, prefill)
    cache.append(turn(k_LK[n], n, length))
    exact_LL[n, : n + 1] = np.array(cache) @ turn(q_LK[n], n, length)

  spectrum = extended(name, settings, mode='as_deployed', prefill=prefill)
  assert spectrum.frequency_F.shape == (L, K // 2)
  q, k = (
    rotate(jnp.float32(x_LK)[:, None], spectrum.frequency_F, jnp.arange(L), spectrum.amplitude)
    for x_LK in (q_LK, k_LK)
  )
  ours_LL = np.tril(np.float64(q[:, 0]) @ np.float64(k[:, 0]).T)
  np.testing.assert_allclose(ours_LL, exact_LL, atol=1e-4)
  if name == 'longrope' and prefill > TRAINED:
    return  # all tokens came past the switch
  whole = extended(name, settings)  # the exact mode: other keys, other logits
  q, k = (
    rotate(jnp.float32(x_LK)[:, None], whole.frequency_F, jnp.arange(L), whole.amplitude)
    for x_LK in (q_LK, k_LK)
  )
  assert np.abs(np.tril(np.float64(q[:, 0]) @ np.float64(k[:, 0]).T) - exact_LL).max() > 0.1


def turned(x_K, at, frequency_F, amplitude):
  y_K, F = np.empty(K), K // 2
  for f in range(F):
    c, s = math.cos(at * frequency_F[f]), math.sin(at * frequency_F[f])
    y_K[f], y_K[f + F] = x_K[f] * c - x_K[f + F] * s, x_K[f + F] * c + x_K[f] * s
  return amplitude * y_K


@pytest.mark.parametrize(('name', 'settings'), METHODS, ids=IDS)
def test_a_text_that_came_whole_is_the_same_in_both_modes(name, settings):
  exact = extended(name, settings)
  deployed = extended(name, settings, mode='as_deployed', prefill=L)
  for field in ('frequency_F', 'amplitude'):
    ours, theirs = getattr(deployed, field), getattr(exact, field)
    np.testing.assert_allclose(ours, np.broadcast_to(theirs, np.shape(ours)), rtol=1e-15)


@pytest.mark.parametrize('scheme', ['rope', 'partial', 'prope', 'pope'])
def test_a_decoder_reads_frequencies_of_each_position(scheme):
  """As deployed, the last token's logits are those of a decoder that saw the text grow; a program
  made for so many positions refuses more of them."""
  model = Decoder(
    pattern=(Layer(scheme=composition.make({'name': scheme, 'theta': THETA})),), length=TRAINED,
    vocabulary=16, width=16, layers=1, heads=2, kv_heads=2, head_width=K, mlp_width=16,
    dtype='float32',
  )  # fmt: skip
  settings = {'name': 'dynamic_ntk', 'trained_length': TRAINED}
  tokens_BL = jax.random.randint(jax.random.key(1), (1, L), 0, 16)
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  rng = np.random.default_rng(1)
  params = {'params': jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)}
  logits = jax.jit(
    lambda spectrum: model.apply(params, tokens_BL, jax.tree.map(jnp.float32, spectrum))
  )
  deployed = extend(model.spectrum(), **settings, length=L, mode='as_deployed')
  whole = extend(model.spectrum(), **settings, length=L, mode='as_deployed', prefill=L)
  exact = extend(model.spectrum(), **settings, length=L)
  np.testing.assert_allclose(logits(whole), logits(exact), atol=1e-5)
  difference_L = np.abs(np.asarray(logits(deployed) - logits(model.spectrum()))).max((0, 2))
  assert difference_L[:TRAINED].max() < 1e-5 < 1e-3 < difference_L[TRAINED:].max()
  check_length(model, deployed, L)
  with pytest.raises(ValueError, match=rf'numbers for {L} tokens, but the sequence has {L + 1}'):
    check_length(model, deployed, L + 1)


@pytest.mark.parametrize(('settings', 'text'), [
  ({'mode': 'deployed'}, "no mode 'deployed'.*exact, as_deployed"),
  ({'prefill': 0}, 'prefill = 0 tokens. Use both >= 1'),
  ({'length': None}, 'needs length'),
  ({'gain': 0.5}, 'gain = 0.5. Use gain >= 1'),
])  # fmt: skip
def test_what_is_no_length_and_no_mode_is_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    extended('dynamic_ntk', settings)


def test_a_scheme_that_counts_in_another_way_too_cannot_be_deployed_linearly():
  settings = {'name': 'dynamic_linear', 'trained_length': TRAINED, 'length': L}
  assert extend(trained('xpos'), **settings).rate == TRAINED / L
  with pytest.raises(ValueError, match="Use mode 'exact'"):
    extend(trained('xpos'), **settings, mode='as_deployed')
