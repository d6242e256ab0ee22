"""All numbers of a scheme's page."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from posjax.atlas import measure
from posjax.positions import Dims, Scheme

PLAIN = 'as trained'  # the recipe without extension


@dataclasses.dataclass(frozen=True, kw_only=True)
class Portrait:
  """A scheme in numbers. Each mapping goes from a recipe, PLAIN first, to numbers under it.

  name, about: what it is called, and what it is in one sentence; setting: sizes, in words.
  acts: where it acts, in words.
  length: trained tokens.
  maps: {recipe: p_HIJ}, weights of the probe out to the reach.
  kernels: {recipe: kernel_HR}, nats over distance, out to the reach or almost.
  waves: {recipe: wave_F}, tokens; empty for schemes without. wave_unit says what of.
  inputs: {recipe: wave_LD}, what is added to the input; empty for schemes that leave it alone.
  """

  name: str
  about: str
  setting: str
  acts: tuple[str, ...]
  length: int
  maps: Mapping[str, np.ndarray]
  kernels: Mapping[str, np.ndarray]
  waves: Mapping[str, np.ndarray]
  wave_unit: str
  inputs: Mapping[str, np.ndarray]


def portray(
  name: str,
  scheme: Scheme,
  params,
  recipes: Mapping[str, Any],
  further: Mapping[str, Any],
  dims: Dims,
  length: int,
  setting: str,
) -> Portrait:
  """Measures a scheme with these parameters under each recipe, and the waves of `further` ones.

  recipes, further: spectra. dims: sizes of the model; length: tokens it is trained on, which may be
  more than dims.length. Memory grows with heads x (REACH x length)^2.
  """
  maps, kernels, inputs, waves, unit = {}, {}, {}, {}, ''
  for recipe, spectrum in recipes.items():
    capacity = scheme.capacity(spectrum, dims)
    size = measure.reach(length, capacity)
    least = size // 16  # queries that a distance must have, or its mean is noise
    enough = int(min(size + least, capacity))
    s_HIJ, position_HIJ = measure.probe_map(scheme, params, spectrum, dims, enough)
    maps[recipe] = measure.weights(s_HIJ)[:, :size, :size]
    kernels[recipe] = measure.kernel(position_HIJ)[:, : min(size, enough - least)]
    wave_LD = measure.added_to_input(scheme, params, spectrum, size, dims.width)
    if wave_LD.any():
      inputs[recipe] = wave_LD
  for recipe, spectrum in {**recipes, **further}.items():
    if found := measure.wavelengths(spectrum):
      unit, waves[recipe] = found
  return Portrait(
    name=name,
    about=sys.modules[type(scheme).__module__].__doc__.splitlines()[0],
    setting=setting,
    acts=measure.acts_on(scheme),
    length=length,
    maps=maps,
    kernels=kernels,
    waves=waves,
    wave_unit=unit,
    inputs=inputs,
  )


def recipes_of(spectrum, length: int) -> dict[str, Any]:
  """PLAIN, and each extension by 4; a lone one by 2, 4 and 8."""
  by_four = measure.extended(spectrum, length, 4)
  more = by_four if len(by_four) > 1 else measure.extended(spectrum, length, 2, 4, 8)
  return {PLAIN: spectrum} | more
