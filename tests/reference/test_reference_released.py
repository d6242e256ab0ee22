"""Extensions against the code that their authors released: frequencies, factors, weights."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import Spectrum, extend
from posjax.rotary import geometric_frequencies, rotate

RTOL = 12 * np.finfo(np.float32).eps  # theirs are float32: a power of theta, and what follows


def trained(case):
  frequency_F = geometric_frequencies(case.rotary, case.theta)
  return Spectrum(frequency_F=frequency_F, amplitude=1.0)


def assert_close(spectrum, case):
  np.testing.assert_allclose(spectrum.frequency_F, case.frequency_F, rtol=RTOL)
  if hasattr(case, 'attention_factor'):
    np.testing.assert_allclose(spectrum.amplitude, case.attention_factor, rtol=1e-6)


def test_yarn_is_that_of_jquesnelle(published):
  for case in published('yarn-jquesnelle').cases:
    more = {'attention_factor': case.attention_factor} if hasattr(case, 'attn_factor') else {}
    spectrum = extend(
      trained(case), name='yarn', factor=case.factor, trained_length=case.trained_length,
      fast=getattr(case, 'beta_fast', None), slow=getattr(case, 'beta_slow', None), **more,
    )  # fmt: skip
    assert_close(spectrum, case)


def test_dynamic_yarn_is_that_of_jquesnelle_past_the_length_it_starts_from(published):
  """The reference holds one factor up to its `maximum`: that of fine-tuning, or none."""
  beyond = 0
  for case in published('yarn-dynamic-jquesnelle').cases:
    settings = {'trained_length': case.trained_length}
    if case.length > case.maximum:
      settings |= {'name': 'dynamic_yarn', 'length': case.length}
      beyond += 1
    else:
      factor = case.maximum / case.trained_length if case.finetuned else 1.0
      settings |= {'name': 'yarn', 'factor': factor}
    assert_close(extend(trained(case), **settings), case)
  assert beyond >= 4


def test_ntk_is_that_of_jquesnelle(published):
  for case in published('ntk-jquesnelle').cases:
    assert_close(extend(trained(case), name='ntk', factor=case.factor, trained_length=1), case)


def test_dynamic_ntk_and_linear_are_those_of_jquesnelle(published):
  kinds = set()
  for case in published('ntk-dynamic-jquesnelle').cases:
    method = {'name': 'dynamic_linear'}
    if case.gain is not None:
      method = {'name': 'dynamic_ntk', 'gain': case.gain}
    settings = {'trained_length': case.trained_length, 'length': case.length}
    assert_close(extend(trained(case), **method, **settings), case)
    kinds.add(method['name'])
  assert kinds == {'dynamic_linear', 'dynamic_ntk'}


def test_ntk_by_parts_is_that_of_jquesnelle_and_not_that_of_the_paper(published):
  for case in published('ntk-parts-jquesnelle').cases:
    settings = {'factor': case.factor, 'trained_length': case.trained_length}
    assert_close(extend(trained(case), name='ntk_by_parts', **settings), case)
    paper = extend(trained(case), name='by_parts', **settings)
    assert np.abs(paper.frequency_F / case.frequency_F - 1).max() > 0.05


def test_yarn_is_that_of_deepseek_v3(published):
  """Cosines and sines as they are, and one scale for all dimensions."""
  for case in published('yarn-deepseek-v3').cases:
    spectrum = trained(case)
    if case.maximum > case.trained_length:
      spectrum = extend(
        spectrum, name='yarn', factor=case.factor, trained_length=case.trained_length,
        mscale=case.mscale, mscale_all_dim=case.mscale,
      )  # fmt: skip
    assert_close(spectrum, case)
    scale = (case.nope + case.rotary) ** -0.5 * spectrum.temperature
    np.testing.assert_allclose(scale, case.softmax_scale, rtol=1e-6)
    assert spectrum.amplitude == 1


def test_yarn_is_that_of_deepseek_v2(published):
  """A factor for what is rotated, and one for all dimensions."""
  for case in published('yarn-deepseek-v2').cases:
    spectrum = extend(
      trained(case), name='yarn', factor=case.factor, trained_length=case.trained_length,
      mscale=case.mscale, mscale_all_dim=case.mscale_all_dim,
    )  # fmt: skip
    assert_close(spectrum, case)
    scale = (case.nope + case.rotary) ** -0.5 * spectrum.temperature
    np.testing.assert_allclose(scale, case.softmax_scale, rtol=1e-6)


def test_longrope_is_that_of_microsoft(published):
  for case in published('longrope-microsoft').cases:
    factor = case.maximum / case.trained_length
    given = None if case.policy == 'su' else 0.1 * math.log(factor) + 1
    spectrum = extend(
      trained(case), name='longrope', factor=factor, trained_length=case.trained_length,
      length=case.maximum + 1, short=np.ones(case.rotary // 2), long=case.stretch_F,
      attention_factor=given,
    )  # fmt: skip
    assert_close(spectrum, case)


def test_divisors_that_grow_with_the_length_are_microsofts(published):
  for case in published('longrope-dynamic-microsoft').cases:
    grown = (case.length - case.trained_length) / (case.maximum - case.trained_length)
    divisors = 1 + (np.array(case.stretch_F) - 1) * grown
    spectrum = extend(
      trained(case), name='rescale', divisors=divisors, attention_factor=case.attention_factor
    )
    assert_close(spectrum, case)


def test_first_positions_stay_as_trained_as_in_microsofts_mixed_tables(published):
  for case in published('longrope-mixed-microsoft').cases:
    L = len(case.cos_LF)
    spectrum = extend(
      trained(case), name='rescale', divisors=case.stretch_F, start=case.start, length=L,
      attention_factor=case.attention_factor,
    )  # fmt: skip
    one_LHK = jnp.ones((L, 1, case.rotary)).at[..., case.rotary // 2 :].set(0)
    turned_LK = rotate(one_LHK, spectrum.frequency_F, jnp.arange(L), spectrum.amplitude)[:, 0]
    waves_LK = np.concatenate([case.cos_LF, case.sin_LF], axis=-1)
    np.testing.assert_allclose(turned_LK, waves_LK, atol=2e-6)


def seen(weights, case, dims, *recipes):
  """p_HIJ of RoPE after the recipes, one after the other."""
  _, G, K = np.shape(case.k_LGK)
  rope = positions.make('rope', theta=case.theta)
  spectrum = rope.spectrum(dims(heads=np.shape(case.q_LHK)[1], kv_heads=G, head_width=K))
  for recipe in recipes:
    spectrum = extend(spectrum, **recipe)
  return weights(rope, {}, spectrum, np.array(case.q_LHK), np.array(case.k_LGK))


def assert_same_weights(p_HIJ, case):
  np.testing.assert_allclose(p_HIJ, case.p_HIJ, atol=2e-6)


def log_n(case):
  if case.trained_length is None:
    return []
  return [{'name': 'log_n', 'trained_length': case.trained_length}]


def test_rerope_is_that_of_jquesnelle_and_multiplies_by_log_n(published, weights, dims):
  for case in published('rerope-jquesnelle').cases:
    p_HIJ = seen(weights, case, dims, {'name': 'rerope', 'window': case.window}, *log_n(case))
    assert_same_weights(p_HIJ, case)


def test_leaky_rerope_is_that_of_bojone(published, weights, dims):
  for case in published('rerope-leaky-bojone').cases:
    recipe = {'name': 'rerope', 'window': case.window, 'group': case.factor}
    assert_same_weights(seen(weights, case, dims, recipe, *log_n(case)), case)


def test_self_extend_is_that_of_longlm_where_groups_fill_its_window(published, weights, dims):
  refused = 0
  for case in published('self-extend-longlm').cases:
    recipe = {'name': 'self_extend', 'window': case.window, 'group': case.group}
    if case.window % case.group:
      refused += 1
      with pytest.raises(ValueError, match='does not divide'):
        seen(weights, case, dims, recipe)
      continue
    assert_same_weights(seen(weights, case, dims, recipe, *log_n(case)), case)
  assert refused == 1


def test_dual_chunks_are_those_of_chunkllama(published, weights, dims):
  for case in published('dual-chunk-chunkllama').cases:
    _, G, K = np.shape(case.k_LGK)
    rope = positions.make('rope', theta=case.theta)
    spectrum = extend(
      rope.spectrum(dims(heads=np.shape(case.q_LHK)[1], kv_heads=G, head_width=K)),
      name='dual_chunk', trained_length=max(case.trained_length, case.chunk), reach=case.chunk,
      local=case.local,
    )  # fmt: skip
    spectrum = dataclasses.replace(spectrum, temperature=case.attention_factor**2)
    p_HIJ = weights(rope, {}, spectrum, np.array(case.q_LHK), np.array(case.k_LGK))
    assert_same_weights(p_HIJ, case)


def test_streaming_is_that_of_mit_han_lab(published, weights, dims):
  """Where the reference evicts after a step, the step saw one key more."""
  for case in published('streaming-mit-han-lab').cases:
    recipe = {'name': 'streaming', 'sinks': case.start}
    recipe['window'] = case.recent + (case.evicts == 'after')
    if case.start:
      assert_same_weights(seen(weights, case, dims, recipe), case)
    else:
      with pytest.raises(ValueError, match='sinks = 0'):
        seen(weights, case, dims, recipe)
