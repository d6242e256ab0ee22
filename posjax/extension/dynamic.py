"""Extensions that follow the length of the text at hand, in two modes.

As a text grows past the trained length, these methods change the frequencies for all its tokens.

  exact: every key is turned for the current length, which is that of the whole row. It is what the
    formula says, what a pass over a whole text computes, and what decoding can only have by turning
    cached keys again at every step.
  as_deployed: keys stay as they were cached. Token n was turned for the length when it came,
    max(n + 1, prefill), and only later ones for later lengths: what decoding in most libraries
    computes (huggingface/transformers issue 25104).

`prefill`: tokens that came at once at the beginning, all turned for that length.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from posjax.extension import frequencies
from posjax.extension.spectrum import Spectrum

MODES = ('exact', 'as_deployed')


def dynamic_linear(
  spectrum: Spectrum, *, trained_length: int, length: int, mode: str = 'exact', prefill: int = 1
) -> Spectrum:
  """`linear` by max(1, length / trained_length) (jquesnelle/yarn,
  `LlamaDynamicScaledRotaryEmbedding`)."""
  method = functools.partial(frequencies.linear, spectrum, trained_length=trained_length)
  return _by_length(method, lambda x: x / trained_length, length, mode, prefill)


def dynamic_ntk(
  spectrum: Spectrum,
  *,
  trained_length: int,
  length: int,
  gain: float = 1.0,
  mode: str = 'exact',
  prefill: int = 1,
) -> Spectrum:
  """`ntk` by gain length / trained_length - (gain - 1), 1 up to the trained length (emozilla 2023,
  "Dynamically Scaled RoPE"; `_compute_dynamic_ntk_parameters` of transformers, whose `factor` is
  this gain, not how many times longer the text gets)."""
  if not gain >= 1:
    raise ValueError(f"Extension 'dynamic_ntk' got gain = {gain}. Use gain >= 1.")
  method = functools.partial(frequencies.ntk, spectrum, trained_length=trained_length)
  grow = lambda x: gain * x / trained_length - (gain - 1)
  return _by_length(method, grow, length, mode, prefill)


def dynamic_yarn(
  spectrum: Spectrum,
  *,
  trained_length: int,
  length: int,
  fast: float = 32.0,
  slow: float = 1.0,
  truncate: bool = True,
  mode: str = 'exact',
  prefill: int = 1,
) -> Spectrum:
  """`yarn` by max(1, length / trained_length), its attention factor too (Peng et al. 2023,
  arXiv:2309.00071, sec. 3.3; `LlamaDynamicYaRNScaledRotaryEmbedding` of jquesnelle/yarn)."""
  settings = {'trained_length': trained_length, 'fast': fast, 'slow': slow, 'truncate': truncate}
  method = functools.partial(frequencies.yarn, spectrum, **settings)
  return _by_length(method, lambda x: x / trained_length, length, mode, prefill)


def longrope(
  spectrum: Spectrum,
  *,
  factor: float,
  trained_length: int,
  length: int,
  short: Sequence[float],
  long: Sequence[float],
  attention_factor: float | None = None,
  mode: str = 'exact',
  prefill: int = 1,
) -> Spectrum:
  """A divisor for each wave, found by search; others past the trained length than within (Ding et
  al. 2024, arXiv:2402.13753; `_compute_longrope_parameters` of transformers).

    frequency'[f] = frequency[f] / (long[f] if length > trained_length else short[f])
    amplitude' = amplitude attention_factor,   attention_factor = sqrt(1 + ln factor / ln trained)

  The amplitude is the same within the trained length and past it. Raises ValueError for a trained
  length of 1, without an attention_factor.
  """
  w_F = frequencies.as_trained(spectrum, 'longrope')
  short_F, long_F = (frequencies.divisors_of(x, w_F, 'longrope') for x in (short, long))
  if attention_factor is None:
    if trained_length == 1:
      raise ValueError(
        "Extension 'longrope' got trained_length = 1, whose logarithm is 0. Use 2 or more."
      )
    attention_factor = math.sqrt(1 + math.log(factor) / math.log(trained_length))
  divisor_F = np.where(lengths(length, mode, prefill) > trained_length, long_F, short_F)
  divided = dataclasses.replace(spectrum, frequency_F=w_F / divisor_F)
  return frequencies.amplified(divided, attention_factor)


def rescale(
  spectrum: Spectrum,
  *,
  divisors: Sequence[float],
  temperature: float = 1.0,
  attention_factor: float = 1.0,
  start: int = 0,
  length: int | None = None,
) -> Spectrum:
  """A divisor for each wave: what `posjax.fit` finds, and LongRoPE's search.

    frequency'[f] = frequency[f] / divisors[f];  amplitude *= attention_factor

  temperature: multiplies all logits. start: so many positions at the beginning stay as trained
  (Ding et al. 2024, sec. 3.2; `rope_mixed` of microsoft/LongRoPE); needs `length`.
  """
  w_F = frequencies.as_trained(spectrum, 'rescale')
  changed = spectrum.rescaled(frequencies.divisors_of(divisors, w_F, 'rescale'), temperature)
  if start:
    if start < 0 or length is None or spectrum.amplitude is None:
      raise ValueError(
        f"Extension 'rescale' cannot keep {start} positions as trained: it does so where keys are "
        'rotated, in texts of a known length. Use start >= 0 there, and 0 otherwise.'
      )
    kept_P = np.arange(length) < start
    changed = dataclasses.replace(
      changed, frequency_F=np.where(kept_P[:, None], w_F, changed.frequency_F)
    )
    attention_factor = np.where(kept_P, 1.0, attention_factor)
  return frequencies.amplified(changed, attention_factor)


def _by_length(
  method: Callable[..., Spectrum], factor_of: Callable, length: int, mode: str, prefill: int
) -> Spectrum:
  factor = np.maximum(1.0, factor_of(lengths(length, mode, prefill)))
  if mode == 'exact':
    return method(factor=float(factor))
  spectrum = method(factor=factor)
  if isinstance(spectrum.rate, np.ndarray):
    raise ValueError(
      "Mode 'as_deployed' is for schemes that do nothing but rotate, and this one counts tokens in "
      "another way, too. Use mode 'exact'."
    )
  amplitude_P = np.broadcast_to(spectrum.amplitude, factor.shape)[:, 0]
  return dataclasses.replace(spectrum, amplitude=amplitude_P)


def lengths(length: int, mode: str, prefill: int) -> np.ndarray:
  """The length that each token was turned for, [P, 1]; or that of all of them, a number."""
  if mode not in MODES:
    raise ValueError(f"There is no mode '{mode}' of an extension. Use one of: {', '.join(MODES)}.")
  if not (length >= 1 and prefill >= 1):
    raise ValueError(f'Got length = {length} and prefill = {prefill} tokens. Use both >= 1.')
  if mode == 'exact':
    return np.asarray(length)
  return np.maximum(np.arange(length) + 1, min(prefill, length))[:, None]
