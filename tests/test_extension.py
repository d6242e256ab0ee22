import dataclasses
import math

import numpy as np
import pytest

from posjax.extension import METHODS, Spectrum, applicable, extend

SIZES = [  # rotated dimensions, theta, trained length
  (128, 10_000.0, 4096),
  (64, 500_000.0, 8192),
  (32, 10_000.0, 256),
  (4, 100.0, 64),
]
FACTORS = [1.5, 2.0, 16.0]


def rotary(d, theta):
  """Frequencies of the paper, one power after the other."""
  return Spectrum(frequency_F=np.array([theta ** (-2 * i / d) for i in range(d // 2)]))


def yarn_as_published(d, theta, L, s, *, fast=32, slow=1, truncate=True, first=None):
  """Peng et al. 2023, as their code computes it (LlamaYaRNScaledRotaryEmbedding), in Python floats.

  first: dimensions the ramp is computed from, where that is (wrongly) not d.
  """
  r = first or d
  def correction(turns):
    return r * math.log(L / (turns * 2 * math.pi)) / (2 * math.log(theta))
  low, high = correction(fast), correction(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, r - 1)
  if low == high:
    high += 0.001
  frequencies = []
  for i in range(d // 2):
    extrapolated = 1 / theta ** (2 * i / d)
    interpolated = 1 / (s * theta ** (2 * i / d))
    mask = 1 - min(1, max(0, (i - low) / (high - low)))
    frequencies.append(interpolated * (1 - mask) + extrapolated * mask)
  return np.array(frequencies)


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize(('d', 'theta', 'L'), SIZES)
def test_linear_divides_every_rate_and_nothing_else(d, theta, L, factor):
  trained = dataclasses.replace(
    rotary(d, theta), slope_H=np.array([0.5, 0.25]), rate=1.0, temperature=1.7
  )
  spectrum = extend(trained, name='linear', factor=factor, trained_length=L)
  expected = [theta ** (-2 * i / d) / factor for i in range(d // 2)]
  np.testing.assert_allclose(spectrum.frequency_F, expected, rtol=1e-14)
  np.testing.assert_allclose(spectrum.slope_H, [0.5 / factor, 0.25 / factor], rtol=1e-15)
  assert spectrum.rate == 1 / factor
  assert spectrum.temperature == 1.7


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize(('d', 'theta', 'L'), SIZES)
def test_ntk_raises_the_base_so_that_only_the_slowest_wave_is_interpolated(d, theta, L, factor):
  spectrum = extend(rotary(d, theta), name='ntk', factor=factor, trained_length=L)
  base = theta * factor ** (d / (d - 2))
  expected = np.array([base ** (-2 * i / d) for i in range(d // 2)])
  np.testing.assert_allclose(spectrum.frequency_F, expected, rtol=1e-13)
  assert spectrum.frequency_F[0] == 1
  np.testing.assert_allclose(spectrum.frequency_F[-1] * factor, theta ** (-(d - 2) / d), rtol=1e-13)
  assert spectrum.temperature == 1
  # The exponent is d / (d - 2), neither 1 nor that of d pairs.
  for wrong in (theta * factor, theta * factor ** (2 * d / (2 * d - 2))):
    assert abs(wrong ** (-(d - 2) / d) / expected[-1] - 1) > 1e-3


@pytest.mark.parametrize('truncate', [True, False])
@pytest.mark.parametrize(('fast', 'slow'), [(32.0, 1.0), (16.0, 2.0)])
@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize(('d', 'theta', 'L'), SIZES)
def test_yarn_is_what_its_authors_compute(d, theta, L, factor, fast, slow, truncate):
  spectrum = extend(
    rotary(d, theta), name='yarn', factor=factor, trained_length=L, fast=fast, slow=slow,
    truncate=truncate,
  )
  expected = yarn_as_published(d, theta, L, factor, fast=fast, slow=slow, truncate=truncate)
  np.testing.assert_allclose(spectrum.frequency_F, expected, rtol=1e-13)
  np.testing.assert_allclose(spectrum.temperature, (0.1 * math.log(factor) + 1) ** 2, rtol=1e-15)


def test_yarn_of_llama_ramps_between_the_pairs_20_and_46():
  s = 16.0
  trained = rotary(128, 10_000.0).frequency_F
  ours = extend(rotary(128, 10_000.0), name='yarn', factor=s, trained_length=4096).frequency_F
  share = ours / trained
  np.testing.assert_allclose(share[:21], 1, rtol=1e-14)
  assert (np.diff(share[20:47]) < 0).all()
  np.testing.assert_allclose(share[46:], 1 / s, rtol=1e-14)
  np.testing.assert_allclose(share[33], (1 + 1 / s) / 2, rtol=1e-14)  # half way: linear in index

  half_width = yarn_as_published(128, 10_000.0, 4096, s, first=64)
  assert np.abs(half_width / ours - 1).max() > 0.5
  divided_twice = ours / s
  assert np.abs(divided_twice / ours - 1).min() > 0.5
  by_turns = np.clip((4096 * trained / (2 * math.pi) - 1) / 31, 0, 1)  # the paper's text
  assert np.abs(trained * (by_turns + (1 - by_turns) / s) / ours - 1).max() > 0.1


def test_yarn_of_llama_at_16_times_the_length_multiplies_logits_by_1_63():
  m = 1.2772588722239782  # 0.1 ln 16 + 1
  spectrum = extend(rotary(128, 10_000.0), name='yarn', factor=16.0, trained_length=4096)
  np.testing.assert_allclose(spectrum.temperature, m * m, rtol=1e-15)
  assert abs(spectrum.temperature - math.sqrt(m)) > 0.1  # 1.130
  assert abs(spectrum.temperature - m) > 0.1


def test_yarn_takes_a_given_attention_factor_instead():
  spectrum = extend(
    rotary(32, 10_000.0), name='yarn', factor=4.0, trained_length=256, attention_factor=1.5
  )
  assert spectrum.temperature == 2.25


def test_yarn_multiplies_the_temperature_a_model_already_has():
  trained = dataclasses.replace(rotary(32, 10_000.0), temperature=2.0)
  spectrum = extend(trained, name='yarn', factor=4.0, trained_length=256, attention_factor=1.5)
  assert spectrum.temperature == 4.5


def test_yarn_with_a_ramp_of_no_width_is_a_step():
  settings = {'fast': 4.0, 'slow': 4.0, 'truncate': False}
  spectrum = extend(rotary(32, 10_000.0), name='yarn', factor=4.0, trained_length=256, **settings)
  expected = yarn_as_published(32, 10_000.0, 256, 4.0, **settings)
  np.testing.assert_allclose(spectrum.frequency_F, expected, rtol=1e-13)
  assert set(np.round(spectrum.frequency_F / rotary(32, 10_000.0).frequency_F, 9)) == {1.0, 0.25}


@pytest.mark.parametrize(
  ('spectrum', 'settings', 'text'),
  [
    (rotary(8, 1e4), {'name': 'yran', 'factor': 2.0, 'trained_length': 8}, "'yran'. .*yarn"),
    (rotary(8, 1e4), {'name': 'ntk', 'trained_length': 8}, "'ntk' needs factor"),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0}, "'ntk' needs trained_length"),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 0.5, 'trained_length': 8}, 'factor = 0.5.*shorten'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': math.nan, 'trained_length': 8}, 'factor = nan'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 0}, 'trained_length = 0'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 8, 'fast': 3},
     "no setting 'fast'. It takes: factor, trained_length"),
    (Spectrum(), {'name': 'linear', 'factor': 2.0, 'trained_length': 8}, 'neither freq.*none'),
    (Spectrum(slope_H=np.ones(2)), {'name': 'yarn', 'factor': 2.0, 'trained_length': 8},
     'changes frequencies.*Use: none, linear'),
    (rotary(2, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 8}, 'at least two freq'),
    (Spectrum(frequency_F=np.array([1.0, 0.5, 0.4])),
     {'name': 'yarn', 'factor': 2.0, 'trained_length': 8}, 'fall by one ratio'),
  ],
)  # fmt: skip
def test_what_cannot_be_extended_is_refused_with_the_reason(spectrum, settings, text):
  with pytest.raises(ValueError, match=text):
    extend(spectrum, **settings)


def test_methods_that_change_frequencies_apply_to_frequencies_only():
  assert applicable(rotary(8, 1e4)) == list(METHODS)
  assert applicable(Spectrum(slope_H=np.ones(2))) == ['none', 'linear']
  assert applicable(Spectrum(rate=1.0)) == ['none', 'linear']
  assert applicable(Spectrum()) == ['none']


@pytest.mark.parametrize('name', METHODS)
def test_a_factor_of_one_changes_nothing_and_a_factor_near_one_next_to_nothing(name):
  trained = rotary(32, 10_000.0)
  for factor, rtol in ((1, 0), (1.0, 0), (1 + 1e-9, 1e-8)):
    settings = {} if name == 'none' else {'factor': factor, 'trained_length': 256}
    spectrum = extend(trained, name=name, **settings)
    np.testing.assert_allclose(spectrum.frequency_F, trained.frequency_F, rtol=rtol)
    np.testing.assert_allclose(spectrum.temperature, 1, rtol=rtol)


def test_a_factor_without_a_method_is_refused_and_names_the_methods():
  with pytest.raises(ValueError, match='factor 4 would leave everything'):
    extend(Spectrum(frequency_F=np.array([1.0, 0.1])), name='none', factor=4)
  with pytest.raises(ValueError, match='this scheme has none'):
    extend(Spectrum(), name='none', factor=4)
  assert extend(Spectrum(), name='none', factor=1.0, trained_length=8) == Spectrum()
