"""Closed forms: spectra stretched by formulas, the same for every position.

`factor` is how many times longer than `trained_length` (tokens) the text gets. It may be an array
[P, 1], one for each position (extension/dynamic.py): frequencies are [P, F] then.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from posjax.extension.spectrum import Spectrum


def linear(spectrum: Spectrum, *, factor: float, trained_length: int) -> Spectrum:
  """Position interpolation: `factor` tokens take the place of one (Chen et al. 2023,
  arXiv:2306.15595, eq. 4).

    every rate per token / factor: frequencies, slopes, table rows

  For rotary schemes this is frequency / factor (positions stay as they are: scaling both would
  divide twice); for biases and tables the distance or position is what shrinks.
  """
  # A plain number stays one: an array in its place would be another type, and compile again.
  shrink = lambda x: None if x is None else x / factor
  return dataclasses.replace(
    spectrum,
    frequency_F=shrink(spectrum.frequency_F),
    slope_H=shrink(spectrum.slope_H),
    rate=shrink(spectrum.rate),
  )


def ntk(spectrum: Spectrum, *, factor: float, trained_length: int) -> Spectrum:
  """NTK-aware: raises the base, so that fast waves stay and the slowest is interpolated (bloc97
  2023, "NTK-Aware Scaled RoPE"; Peng et al. 2023, arXiv:2309.00071, sec. 3.1).

    theta' = theta factor^(d / (d - 2)), so  frequency'[f] = frequency[f] factor^(-f / (F - 1))

  with d = 2F rotated dimensions; the last pair becomes exactly `linear`. No temperature.
  """
  w_F = geometric(spectrum, 'ntk')
  F = len(w_F)
  return dataclasses.replace(spectrum, frequency_F=w_F * factor ** (-np.arange(F) / (F - 1)))


def by_parts(
  spectrum: Spectrum,
  *,
  factor: float,
  trained_length: int,
  fast: float = 32.0,
  slow: float = 1.0,
) -> Spectrum:
  """NTK-by-parts: stretches waves by how often they turn within the trained length (Peng et al.
  2023, arXiv:2309.00071, sec. 3.2, as the text has it).

    frequency'[f] = frequency[f] (keep[f] + (1 - keep[f]) / factor)
    keep[f] = (turns[f] - slow) / (fast - slow), clipped to [0, 1];  turns = length frequency / 2 pi

  Raises ValueError unless fast > slow > 0.
  """
  if fast == slow:
    raise ValueError(f'Nothing lies between fast and slow, both {fast} turns. Use fast > slow.')
  check_turns(fast, slow)
  w_F = as_trained(spectrum, 'by_parts')
  turns_F = trained_length * w_F / (2 * math.pi)
  keep_F = np.clip((turns_F - slow) / (fast - slow), 0, 1)
  return dataclasses.replace(spectrum, frequency_F=stretched(w_F, keep_F, factor))


def llama3(
  spectrum: Spectrum,
  *,
  factor: float,
  trained_length: int,
  low_freq_factor: float = 1.0,
  high_freq_factor: float = 4.0,
) -> Spectrum:
  """Llama 3's: `by_parts` between 1 and 4 turns, without a temperature (Meta 2024, `apply_scaling`
  in the released code). The settings have the names of its configs."""
  return by_parts(
    spectrum,
    factor=factor,
    trained_length=trained_length,
    fast=high_freq_factor,
    slow=low_freq_factor,
  )


def ntk_by_parts(spectrum: Spectrum, *, factor: float, trained_length: int) -> Spectrum:
  """NTK-by-parts as first released, before YaRN (bloc97 2023; `LlamaPartNTKScaledRotaryEmbedding`
  of jquesnelle/yarn): slow waves are `linear`, middle ones `ntk`, fast ones stay.

  Waves of 1.25 to 0.75 turns within the trained length go from `ntk` to `linear`, those of 16 to 2
  from the trained frequency to that; linearly in the index, between rounded ones. No temperature.
  """
  w_F = geometric(spectrum, 'ntk_by_parts')
  settings = {'factor': factor, 'trained_length': trained_length}
  raised_F, shrunk_F = (
    np.asarray(method(spectrum, **settings).frequency_F) for method in (ntk, linear)
  )
  slow_F = ramp(w_F, trained_length, 1.25, 0.75, truncate=True)
  fast_F = ramp(w_F, trained_length, 16.0, 2.0, truncate=True)
  mixed_F = raised_F * slow_F + shrunk_F * (1 - slow_F)
  return dataclasses.replace(spectrum, frequency_F=w_F * fast_F + mixed_F * (1 - fast_F))


def yarn(
  spectrum: Spectrum,
  *,
  factor: float,
  trained_length: int,
  fast: float = 32.0,
  slow: float = 1.0,
  truncate: bool = True,
  attention_factor: float | None = None,
  mscale: float | None = None,
  mscale_all_dim: float | None = None,
) -> Spectrum:
  """Stretches slow waves by `factor` and keeps fast ones (Peng et al. 2023, arXiv:2309.00071,
  sec. 3.2 and 3.4).

    frequency'[f] = frequency[f] (keep[f] + (1 - keep[f]) / factor)
    amplitude'    = amplitude attention_factor,      attention_factor = 0.1 ln(factor) + 1

  keep falls from 1 to 0 between the waves that turn `fast` and `slow` times within
  `trained_length` tokens; linearly in the index f, as in the authors' code (the paper: linearly in
  the number of turns). `truncate` rounds the two indices outward, as they do too. The authors
  multiply cosines and sines by attention_factor, of queries and keys: products of what is rotated
  get its square. Where nothing is rotated, the temperature gets it.

  mscale, mscale_all_dim: DeepSeek-V2's convention (its `modeling_deepseek.py`). With
  m(a) = 0.1 a ln(factor) + 1, attention_factor = m(mscale) / m(mscale_all_dim), and all dimensions,
  rotated or not, get the temperature m(mscale_all_dim)^2. Both or none.

  Raises ValueError for one of the two without the other, or beside attention_factor, and unless
  fast >= slow > 0.
  """
  given = [x is not None for x in (mscale, mscale_all_dim)]
  if any(given) and (not all(given) or attention_factor is not None):
    raise ValueError(
      f"Extension 'yarn' got mscale = {mscale}, mscale_all_dim = {mscale_all_dim} and "
      f'attention_factor = {attention_factor}. Give the first two, or the third, or none.'
    )
  w_F = geometric(spectrum, 'yarn')
  keep_F = ramp(w_F, trained_length, fast, slow, truncate=truncate)
  m = lambda weight: plain(0.1 * weight * np.log(factor) + 1)
  temperature = 1.0
  if all(given):
    attention_factor, temperature = m(mscale) / m(mscale_all_dim), m(mscale_all_dim) ** 2
  elif attention_factor is None:
    attention_factor = m(1)
  spectrum = dataclasses.replace(
    spectrum,
    frequency_F=stretched(w_F, keep_F, factor),
    temperature=spectrum.temperature * temperature,
  )
  return amplified(spectrum, attention_factor)


def rebase(spectrum: Spectrum, *, theta: float, trained_theta: float) -> Spectrum:
  """Another base of the wavelengths, for training that goes on ("adjusted base frequency", Xiong et
  al. 2023, arXiv:2309.16039, sec. 4.1).

    frequency'[f] = frequency[f]^(ln theta / ln trained_theta)

  Raises ValueError if the frequencies are not powers of trained_theta.
  """
  if not (theta > 1 and trained_theta > 1):
    raise ValueError(
      f"Extension 'rebase' got theta = {theta}, trained_theta = {trained_theta}. Use both above 1."
    )
  w_F = geometric(spectrum, 'rebase')
  pairs = math.log(trained_theta) / math.log(w_F[0] / w_F[1])
  if not (abs(pairs - round(pairs)) < 1e-6 and round(pairs) >= len(w_F)):
    raise ValueError(
      f"Extension 'rebase' got trained_theta = {trained_theta}, which the frequencies are no "
      'powers of. Set trained_theta to the theta of config.position.'
    )
  power = math.log(theta) / math.log(trained_theta)
  return dataclasses.replace(spectrum, frequency_F=w_F**power)


def drop(spectrum: Spectrum, *, temperature: float = 1.0) -> Spectrum:
  """No rotation any more: DroPE (Gelberg et al. 2025, arXiv:2512.12167), for a model that trains on
  for a while afterwards, at its own length, and then reads longer texts than it has seen.

  temperature: of all logits, a number of your own; 1 leaves them.
  """
  return dataclasses.replace(
    spectrum,
    frequency_F=np.zeros_like(spectrum.frequency_F),
    temperature=spectrum.temperature * temperature,
  )


def log_n(spectrum: Spectrum, *, trained_length: int) -> Spectrum:
  """q[m] *= max(1, ln(m + 1) / ln(trained_length)), which keeps the entropy of attention (Su 2021,
  kexue.fm/archives/8823; Chiang & Cholak 2022, arXiv:2202.12172).

  Queries as projected: what a scheme adds to logits stays. Raises ValueError for a length of 1.
  """
  if not trained_length > 1:
    raise ValueError(f"Extension 'log_n' got trained_length = {trained_length}. Use 2 or more.")
  return dataclasses.replace(spectrum, log_length=math.log(trained_length))


def geometric(spectrum: Spectrum, name: str) -> np.ndarray:
  """The frequencies, if they fall by one ratio, as the methods that raise a base assume."""
  w_F = np.asarray(spectrum.frequency_F, np.float64)
  if w_F.ndim != 1 or len(w_F) < 2 or not np.allclose(w_F[1:] / w_F[:-1], w_F[1] / w_F[0], 1e-9):
    raise ValueError(
      f"Extension '{name}' needs at least two frequencies that fall by one ratio, got {w_F}. "
      'Apply it to the spectrum as trained, not to one that was extended before.'
    )
  return w_F


def as_trained(spectrum: Spectrum, name: str) -> np.ndarray:
  """The frequencies, if they are the same for all positions."""
  w_F = np.asarray(spectrum.frequency_F, np.float64)
  if w_F.ndim != 1:
    raise ValueError(
      f"Extension '{name}' got frequencies for each position. Apply it to the spectrum as trained."
    )
  return w_F


def ramp(w_F: np.ndarray, trained_length: int, fast: float, slow: float, *, truncate: bool):
  """keep_F: from 1 to 0, linearly in f, between the waves that turn `fast` and `slow` times; a step
  where the two are one. Raises ValueError unless fast >= slow > 0."""
  check_turns(fast, slow)
  index = lambda turns: math.log(w_F[0] * trained_length / (2 * math.pi * turns)) / math.log(
    w_F[0] / w_F[1]
  )
  low, high = index(fast), index(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * len(w_F) - 1)  # 2F - 1, not F - 1: the authors' code
  if low == high:
    high += 0.001  # theirs too: no division by zero
  return 1 - np.clip((np.arange(len(w_F)) - low) / (high - low), 0, 1)


def check_turns(fast: float, slow: float) -> None:
  if not fast >= slow > 0:
    raise ValueError(
      f'Waves of {slow} turns are stretched in full and those of {fast} not at all: '
      'use fast > slow > 0.'
    )


def stretched(w_F, keep_F, factor):
  return w_F * (keep_F + (1 - keep_F) / factor)


def plain(x):
  """A number as Python's own: NumPy's is another type to a compiled program."""
  return x if np.ndim(x) else float(x)


def amplified(spectrum: Spectrum, attention_factor) -> Spectrum:
  """With what is rotated multiplied, or, where nothing is, all logits by the square."""
  if spectrum.amplitude is None:
    return dataclasses.replace(spectrum, temperature=spectrum.temperature * attention_factor**2)
  return dataclasses.replace(spectrum, amplitude=spectrum.amplitude * attention_factor)


def divisors_of(given: Sequence[float], w_F: np.ndarray, name: str) -> np.ndarray:
  divisor_F = np.asarray(given, np.float64)
  if divisor_F.shape != w_F.shape or not (divisor_F > 0).all():
    raise ValueError(
      f"Extension '{name}' got {divisor_F.size} divisors for {len(w_F)} frequencies"
      + ('' if (divisor_F > 0).all() else ', of which some are not above 0')
      + f'. Give {len(w_F)}, each above 0.'
    )
  return divisor_F
