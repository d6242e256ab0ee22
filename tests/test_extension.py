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


TURNED = dataclasses.replace(rotary(8, 1e4), amplitude=1.0)


@pytest.mark.parametrize(
  ('spectrum', 'settings', 'text'),
  [
    (rotary(8, 1e4), {'name': 'yran', 'factor': 2.0}, r"'yran'. Did you mean 'yarn'\? There are"),
    (rotary(8, 1e4), {'name': 'ntk', 'trained_length': 8}, "'ntk' needs factor"),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0}, "'ntk' needs trained_length"),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 0.5, 'trained_length': 8}, 'factor = 0.5.*shorten'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': math.nan, 'trained_length': 8}, 'factor = nan'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 0}, 'trained_length = 0'),
    (rotary(8, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 8, 'fast': 3},
     "no setting 'fast'.* It takes: factor, trained_length"),
    (rotary(8, 1e4), {'name': 'yarn', 'facotr': 2.0, 'trained_length': 8},
     r"no setting 'facotr'. Did you mean 'factor'\? It takes: attention_factor, factor"),
    (rotary(8, 1e4), {'name': 'yarn', 'factor': 2.0, 'trained_length': 8, 'fast': 1.0, 'slow': 2.0},
     'fast > slow > 0'),
    (rotary(8, 1e4), {'name': 'yarn', 'factor': 2.0, 'trained_length': 8, 'slow': 0.0},
     'fast > slow > 0'),
    (rotary(8, 1e4),
     {'name': 'by_parts', 'factor': 2.0, 'trained_length': 8, 'fast': 1.0, 'slow': 1.0},
     'both 1.0 turns. Use fast > slow'),
    (rotary(8, 1e4),
     {'name': 'yarn', 'factor': 2.0, 'trained_length': 8, 'attention_factor': -1.0},
     'attention_factor = -1.0.*attention_factor > 0'),
    (rotary(8, 1e4), {'name': 'rescale', 'divisors': (1.0,) * 4, 'temperature': 0.0},
     'temperature = 0.0.*temperature > 0'),
    (TURNED, {'name': 'rescale', 'divisors': (1.0,) * 4, 'start': -1, 'length': 8},
     'keep -1 positions.*start >= 0'),
    (TURNED, {'name': 'rescale', 'divisors': (1.0,) * 4, 'start': 2}, 'known length'),
    (TURNED, {'name': 'longrope', 'factor': 2.0, 'trained_length': 1, 'length': 8,
              'short': (1.0,) * 4, 'long': (2.0,) * 4}, 'trained_length = 1, whose logarithm'),
    ((dataclasses.replace(TURNED, fixed=True), Spectrum()),
     {'name': 'yarn', 'factor': 2.0, 'trained_length': 8},
     "'extended': False in config.layers. Use: none, log_n"),
    (Spectrum(), {'name': 'linear', 'factor': 2.0, 'trained_length': 8}, 'neither freq.*log_n'),
    (Spectrum(slope_H=np.ones(2)), {'name': 'yarn', 'factor': 2.0, 'trained_length': 8},
     'changes frequencies.*Use: none, linear, log_n'),
    (rotary(2, 1e4), {'name': 'ntk', 'factor': 2.0, 'trained_length': 8}, 'at least two freq'),
    (Spectrum(frequency_F=np.array([1.0, 0.5, 0.4])),
     {'name': 'yarn', 'factor': 2.0, 'trained_length': 8}, 'fall by one ratio'),
  ],
)  # fmt: skip
def test_what_cannot_be_extended_is_refused_with_the_reason(spectrum, settings, text):
  with pytest.raises(ValueError, match=text):
    extend(spectrum, **settings)


STRETCHING = ['linear', 'ntk', 'by_parts', 'ntk_by_parts', 'yarn', 'llama3']


def test_methods_apply_to_what_they_change():
  frequencies = ['rescale', 'rebase']
  rotating = [
    'drop', 'log_n', 'dynamic_linear', 'dynamic_ntk', 'dynamic_yarn', 'longrope', 'rerope',
    'self_extend', 'dual_chunk', 'streaming',
  ]  # fmt: skip
  assert applicable(TURNED) == list(METHODS) == ['none', *STRETCHING, *frequencies, *rotating]
  assert applicable(rotary(8, 1e4)) == ['none', *STRETCHING, *frequencies, 'log_n']
  assert applicable(Spectrum(slope_H=np.ones(2))) == ['none', 'linear', 'log_n']
  assert applicable(Spectrum(rate=1.0)) == ['none', 'linear', 'log_n']
  assert applicable(Spectrum()) == ['none', 'log_n']
  assert applicable(Spectrum(rate=1.0, fixed=True)) == ['none']


@pytest.mark.parametrize('name', STRETCHING)
def test_a_factor_of_one_changes_nothing_and_a_factor_near_one_next_to_nothing(name):
  trained = rotary(32, 10_000.0)
  for factor, rtol in ((1, 0), (1.0, 0), (1 + 1e-9, 1e-8)):
    spectrum = extend(trained, name=name, factor=factor, trained_length=256)
    np.testing.assert_allclose(spectrum.frequency_F, trained.frequency_F, rtol=rtol)
    np.testing.assert_allclose(spectrum.temperature, 1, rtol=rtol)


def test_a_factor_without_a_method_is_refused_and_names_the_methods():
  with pytest.raises(ValueError, match=r'factor 4 would leave everything.*linear, ntk'):
    extend(Spectrum(frequency_F=np.array([1.0, 0.1])), name='none', factor=4)
  assert extend(Spectrum(), name='none', factor=1.0, trained_length=8) == Spectrum()


def test_what_a_config_always_has_is_no_setting_of_methods_that_take_none():
  """`config.extension` has a factor of 1 and no trained length, whatever the method."""
  spectrum = extend(TURNED, name='drop', factor=1.0, trained_length=None, length=64)
  assert not spectrum.frequency_F.any()
  with pytest.raises(ValueError, match="has no setting 'factor'"):
    extend(TURNED, name='drop', factor=2.0)


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize(('fast', 'slow'), [(32.0, 1.0), (4.0, 1.0), (8.0, 0.5)])
@pytest.mark.parametrize(('d', 'theta', 'L'), SIZES)
def test_by_parts_stretches_each_wave_by_its_turns(d, theta, L, factor, fast, slow):
  spectrum = extend(
    rotary(d, theta), name='by_parts', factor=factor, trained_length=L, fast=fast, slow=slow
  )
  for w, ours in zip(rotary(d, theta).frequency_F, spectrum.frequency_F, strict=True):
    turns = L / (2 * math.pi / w)
    gamma = 0 if turns < slow else 1 if turns > fast else (turns - slow) / (fast - slow)
    np.testing.assert_allclose(ours, (1 - gamma) * w / factor + gamma * w, rtol=1e-13)
  assert spectrum.temperature == 1


def test_llama3_is_by_parts_between_one_and_four_turns_under_its_own_names():
  settings = {'factor': 8.0, 'trained_length': 8192}
  trained = rotary(128, 500_000.0)
  ours = extend(trained, name='llama3', **settings, low_freq_factor=2.0, high_freq_factor=3.0)
  parts = extend(trained, name='by_parts', **settings, slow=2.0, fast=3.0)
  np.testing.assert_array_equal(ours.frequency_F, parts.frequency_F)
  default = extend(trained, name='llama3', **settings)
  parts = extend(trained, name='by_parts', **settings, slow=1.0, fast=4.0)
  np.testing.assert_array_equal(default.frequency_F, parts.frequency_F)


def ntk_by_parts_as_released(d, theta, L, s):
  """jquesnelle/yarn, LlamaPartNTKScaledRotaryEmbedding, in Python floats."""
  def mask(low_turns, high_turns, i):
    at = lambda turns: d * math.log(L / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = max(math.floor(at(low_turns)), 0), min(math.ceil(at(high_turns)), d - 1)
    return 1 - min(1, max(0, (i - low) / (high - low + 0.001 * (high == low))))
  frequencies = []
  for i in range(d // 2):
    base, raised = theta ** (-2 * i / d), (theta * s ** (d / (d - 2))) ** (-2 * i / d)
    mixed = base / s * (1 - mask(1.25, 0.75, i)) + raised * mask(1.25, 0.75, i)
    frequencies.append(mixed * (1 - mask(16, 2, i)) + base * mask(16, 2, i))
  return np.array(frequencies)


@pytest.mark.parametrize('factor', FACTORS)
@pytest.mark.parametrize(('d', 'theta', 'L'), SIZES)
def test_ntk_by_parts_is_what_was_released_before_yarn(d, theta, L, factor):
  spectrum = extend(rotary(d, theta), name='ntk_by_parts', factor=factor, trained_length=L)
  expected = ntk_by_parts_as_released(d, theta, L, factor)
  np.testing.assert_allclose(spectrum.frequency_F, expected, rtol=1e-12)


def test_yarn_multiplies_what_is_rotated_and_deepseek_all_dimensions():
  turned = dataclasses.replace(rotary(32, 10_000.0), amplitude=1.0)
  settings = {'name': 'yarn', 'factor': 40.0, 'trained_length': 4096}
  plain = extend(turned, **settings)
  assert (plain.amplitude, plain.temperature) == (0.1 * math.log(40) + 1, 1.0)
  given = extend(turned, **settings, attention_factor=1.5)
  assert (given.amplitude, given.temperature) == (1.5, 1.0)
  v2 = extend(turned, **settings, mscale=0.707, mscale_all_dim=0.707)
  assert v2.amplitude == 1.0
  np.testing.assert_allclose(v2.temperature, (0.0707 * math.log(40) + 1) ** 2, rtol=1e-15)
  both = extend(turned, **settings, mscale=1.0, mscale_all_dim=0.5)
  np.testing.assert_allclose(
    both.amplitude, (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1), rtol=1e-15
  )
  np.testing.assert_allclose(both.temperature, (0.05 * math.log(40) + 1) ** 2, rtol=1e-15)
  for odd in ({'mscale': 1.0}, {'mscale': 1.0, 'mscale_all_dim': 1.0, 'attention_factor': 2.0}):
    with pytest.raises(ValueError, match='Give the first two, or the third'):
      extend(turned, **settings, **odd)


@pytest.mark.parametrize(('theta', 'trained_theta'), [(5e5, 1e4), (1e4, 100.0)])
def test_another_base_is_that_of_frequencies_made_with_it(theta, trained_theta):
  spectrum = extend(
    rotary(32, trained_theta), name='rebase', theta=theta, trained_theta=trained_theta
  )
  np.testing.assert_allclose(spectrum.frequency_F, rotary(32, theta).frequency_F, rtol=1e-12)
  with pytest.raises(ValueError, match=r'no powers of. Set trained_theta'):
    extend(rotary(32, trained_theta), name='rebase', theta=theta, trained_theta=5000.0)


def test_divisors_stretch_each_wave_and_must_be_as_many_and_positive():
  spectrum = extend(
    rotary(6, 1e4), name='rescale', divisors=(1.0, 2.0, 8.0), temperature=1.25
  )
  np.testing.assert_allclose(
    spectrum.frequency_F, rotary(6, 1e4).frequency_F / [1, 2, 8], rtol=1e-15
  )
  assert spectrum.temperature == 1.25
  with pytest.raises(ValueError, match='2 divisors for 3 frequencies'):
    extend(rotary(6, 1e4), name='rescale', divisors=(1.0, 2.0))
  with pytest.raises(ValueError, match='not above 0'):
    extend(rotary(6, 1e4), name='rescale', divisors=(1.0, 2.0, 0.0))


def test_a_length_to_compare_logarithms_with_is_two_or_more():
  assert extend(Spectrum(), name='log_n', trained_length=64).log_length == math.log(64)
  with pytest.raises(ValueError, match=r'trained_length = 1. Use 2'):
    extend(Spectrum(), name='log_n', trained_length=1)
