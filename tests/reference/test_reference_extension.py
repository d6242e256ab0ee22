"""Extensions against the frequencies and attention factors of transformers."""

import math

import numpy as np
import pytest

from posjax.extension import Spectrum, extend
from posjax.rotary import geometric_frequencies

# The reference raises theta to a float32 exponent, off by eps / 2 times ln(theta) = 13 and more.
RTOL = 12 * np.finfo(np.float32).eps


def trained(case):
  return Spectrum(frequency_F=geometric_frequencies(case.rotary, case.theta), amplitude=1.0)


def close(frequency_F, case):
  return np.allclose(frequency_F, case.frequency_F, rtol=RTOL, atol=0)


def yarn_settings(case):
  names = {'beta_fast': 'fast', 'beta_slow': 'slow', 'truncate': 'truncate'}
  settings = {ours: vars(case)[theirs] for theirs, ours in names.items() if theirs in vars(case)}
  if hasattr(case, 'mscale'):  # DeepSeek's: m(s, mscale) / m(s, mscale_all_dim)
    m = lambda weight: 0.1 * weight * math.log(case.factor) + 1
    settings['attention_factor'] = m(case.mscale) / m(case.mscale_all_dim)
  elif case.attention_factor == 1.5:  # asked for by the config
    settings['attention_factor'] = 1.5
  return settings


def test_linear_gives_the_frequencies_of_transformers(published):
  for case in published('extension-linear').cases:
    settings = {'factor': case.factor, 'trained_length': case.trained_length}
    spectrum = extend(trained(case), name='linear', **settings)
    assert close(spectrum.frequency_F, case)
    assert spectrum.amplitude == case.attention_factor == 1
    assert not close(spectrum.frequency_F / case.factor, case)  # divided twice


def test_ntk_gives_the_frequencies_that_dynamic_ntk_has_at_its_target(published):
  """With a gain of 1, dynamic NTK raises the base by length / trained_length."""
  count = 0
  for case in published('extension-dynamic').cases:
    if case.factor == 1:
      d, s = case.rotary, case.length / case.trained_length
      spectrum = extend(trained(case), name='ntk', factor=s, trained_length=case.trained_length)
      assert close(spectrum.frequency_F, case)
      assert spectrum.amplitude == case.attention_factor == 1
      for exponent in (1, 2 * d / (2 * d - 2), (d - 2) / d):  # for d / (d - 2)
        assert not close(geometric_frequencies(d, case.theta * s**exponent), case)
      count += 1
  assert count == 4


def test_yarn_gives_the_frequencies_and_the_temperature_of_transformers(published):
  for case in published('extension-yarn').cases:
    spectrum = extend(
      trained(case), name='yarn', factor=case.factor, trained_length=case.trained_length,
      **yarn_settings(case),
    )  # fmt: skip
    assert close(spectrum.frequency_F, case)
    np.testing.assert_allclose(spectrum.amplitude, case.attention_factor, rtol=1e-15)


def yarn_with_a_mistake(case, wrong):
  """Frequencies, and what multiplies a logit."""
  w_F, s, d = trained(case).frequency_F, case.factor, case.rotary
  factor = 0.1 * math.log(s) + 1
  if wrong == 'root of the attention factor':
    factor = math.sqrt(factor)
  width = d // 2 if wrong == 'ramp of half the width' else d
  index = lambda turns: (
    width * math.log(case.trained_length / (turns * 2 * math.pi)) / (2 * math.log(case.theta))
  )
  low, high = index(32), index(1)
  if getattr(case, 'truncate', True) != (wrong == 'rounded the other way'):
    low, high = math.floor(low), math.ceil(high)
  keep_F = 1 - np.clip((np.arange(d // 2) - max(low, 0)) / (min(high, d - 1) - max(low, 0)), 0, 1)
  if wrong == 'ramp in turns':
    keep_F = np.clip((case.trained_length * w_F / (2 * math.pi) - 1) / 31, 0, 1)
  w_F = w_F * (keep_F + (1 - keep_F) / s)
  return (w_F / s if wrong == 'positions divided as well' else w_F), factor**2


@pytest.mark.parametrize(
  'wrong',
  [
    'ramp of half the width', 'positions divided as well', 'root of the attention factor',
    'rounded the other way', 'ramp in turns',
  ],
)  # fmt: skip
def test_known_mistakes_give_other_numbers_than_yarn_of_llama_and_gpt_oss(published, wrong):
  big = [case for case in published('extension-yarn').cases if case.rotary >= 64]
  assert len(big) == 2
  for case in big:
    w_F, temperature = yarn_with_a_mistake(case, None)
    assert close(w_F, case) and math.isclose(temperature, case.attention_factor**2)
    w_F, temperature = yarn_with_a_mistake(case, wrong)
    assert not (close(w_F, case) and math.isclose(temperature, case.attention_factor**2))


def test_dynamic_ntk_gives_the_frequencies_of_transformers(published):
  for case in published('extension-dynamic').cases:
    spectrum = extend(
      trained(case), name='dynamic_ntk', gain=case.factor, trained_length=case.trained_length,
      length=case.length,
    )  # fmt: skip
    assert close(spectrum.frequency_F, case)
    assert spectrum.amplitude == case.attention_factor == 1


def test_llama3_gives_the_frequencies_of_transformers(published):
  for case in published('extension-llama3').cases:
    spectrum = extend(
      trained(case), name='llama3', factor=case.factor, trained_length=case.trained_length,
      low_freq_factor=case.low_freq_factor, high_freq_factor=case.high_freq_factor,
    )  # fmt: skip
    assert close(spectrum.frequency_F, case)
    assert spectrum.amplitude == case.attention_factor == 1


def test_longrope_gives_the_frequencies_and_the_attention_factor_of_transformers(published):
  for case in published('extension-longrope').cases:
    spectrum = extend(
      trained(case), name='longrope', trained_length=case.trained_length,
      length=getattr(case, 'length', 1),  # the reference takes the short factors without one
      factor=case.factor or case.maximum / case.trained_length, short=case.short_factor,
      long=case.long_factor,
      attention_factor=1.25 if case.attention_factor == 1.25 else None,  # asked for by the config
    )  # fmt: skip
    assert close(spectrum.frequency_F, case)
    np.testing.assert_allclose(spectrum.amplitude, case.attention_factor, rtol=1e-15)
