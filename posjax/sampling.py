"""Positions to train on other than 0, 1, 2, ..., so that a model meets those of longer texts.

`make(name='randomized', range=2048)` picks a class of this file. A sampler is called with a random
key and the batch's positions, and returns others in their order. The same draw serves all rows.
"""

import dataclasses
import difflib
import inspect

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
  """Positions as they are."""

  def __call__(self, key: jax.Array, pos_BL: jax.Array) -> jax.Array:
    del key
    return pos_BL

  def reach(self, length: int) -> int:
    """Tokens a scheme must have positions for, when rows have `length` tokens."""
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Randomized:
  """Position p becomes the p-th of L sorted, distinct numbers from [0, range) (Ruoss et al. 2023,
  arXiv:2305.16843, sec. 3).

  L is the length of the rows, at most `range`. As in the authors' code one draw serves the batch,
  and evaluation draws too: a model that never saw neighbours would not know contiguous positions.

  range: tokens, of the longest text the model shall read.
  """

  range: int

  def __post_init__(self):
    if self.range < 1:
      raise ValueError(f'Positions cannot be drawn from a range of {self.range}. Use one >= 1.')

  def __call__(self, key: jax.Array, pos_BL: jax.Array) -> jax.Array:
    length = pos_BL.shape[-1]
    self.reach(length)
    drawn_L = jnp.sort(jax.random.permutation(key, self.range)[:length])
    return drawn_L[pos_BL]

  def reach(self, length: int) -> int:
    """`range`. Raises ValueError where it is shorter than the rows."""
    if length > self.range:
      raise ValueError(
        f'{length} distinct positions cannot be drawn from {self.range}. '
        f'Set --config.sampling.range to {length} or more, or read shorter rows.'
      )
    return self.range


Sampler = Plain | Randomized
PLAIN = Plain()
SAMPLERS = {'none': Plain, 'randomized': Randomized}


def make(name: str, **settings) -> Sampler:
  """The sampler `name`. Raises ValueError where it, or a setting, is unknown or missing."""
  if name not in SAMPLERS:
    close = difflib.get_close_matches(name, SAMPLERS, n=1)
    meant = f"Did you mean '{close[0]}'? " if close else ''
    raise ValueError(f"No sampling '{name}'. {meant}There are: {', '.join(SAMPLERS)}.")
  takes = list(inspect.signature(SAMPLERS[name]).parameters)
  if set(settings) != set(takes):
    raise ValueError(
      f"Sampling '{name}' takes {', '.join(takes) or 'nothing'}, not "
      f'{", ".join(settings) or "nothing"}. Set --config.sampling accordingly.'
    )
  return SAMPLERS[name](**settings)
