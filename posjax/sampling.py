"""Positions to train on other than 0, 1, 2, ..., so that a model meets those of longer texts.

`make(name='randomized', range=2048)` picks a class of this file. A sampler is called with a random
key and the batch's positions, and returns others in their order. Its `evaluation` is the sampler
that the trained model is read with.
"""

import dataclasses
import difflib
import inspect
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
  """Positions as they are."""

  @property
  def evaluation(self) -> 'Plain':
    return self

  def __call__(self, key: jax.Array, pos_BL: jax.Array) -> jax.Array:
    del key
    return pos_BL

  def reach(self, length: int) -> int:
    """Tokens a scheme must have positions for, when rows have `length` tokens."""
    return length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Randomized:
  """Position p becomes the p-th of L sorted, distinct numbers from [0, range) (Ruoss et al. 2023,
  arXiv:2305.16843, sec. 3). The same draw serves all rows.

  L is the length of the rows, at most `range`. As in the authors' code one draw serves the batch,
  and evaluation draws too: a model that never saw neighbours would not know contiguous positions.

  range: tokens, of the longest text the model shall read.
  """

  range: int

  def __post_init__(self):
    if self.range < 1:
      raise ValueError(f'Positions cannot be drawn from a range of {self.range}. Use one >= 1.')

  @property
  def evaluation(self) -> 'Randomized':
    return self

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
  """Positional skip-wise training: a row's positions rise by one within chunks and jump between
  them, so that short rows hold the distances of long ones (Zhu et al. 2023, arXiv:2309.10400).

    pos' = pos + skip[n] in chunk n,   skip[0] = 0,   skip[n] ~ U{skip[n-1] .. range - L}

  A chunk but the last has U{1 .. ceil(L / chunks)} tokens; with two that is the authors' code.
  As in it the first chunk starts at 0 and evaluation reads plain positions.

  Unlike it: each row of each step draws anew (theirs: once per example, for all epochs); the text
  stays contiguous (theirs takes the second chunk's from further on in the document); each document
  of a packed row starts at 0, and is cut where the row's others are.

  range: tokens, of the longest text the model shall read, at least L, the length of the rows.
  chunks: 2 in the authors' code.
  """

  range: int
  chunks: int

  def __post_init__(self):
    if self.range < 1 or self.chunks < 2:
      raise ValueError(
        f'PoSE cannot skip within a range of {self.range} between {self.chunks} chunks. '
        'Use --config.sampling.range >= 1 and --config.sampling.chunks >= 2.'
      )

  @property
  def evaluation(self) -> Plain:
    return PLAIN

  def __call__(self, key: jax.Array, pos_BL: jax.Array) -> jax.Array:
    B, L = pos_BL.shape
    last = self.reach(L) - L
    begin_B1 = skip_B1 = jnp.zeros((B, 1), jnp.int32)
    skip_BL = jnp.zeros_like(pos_BL)
    for size_key, skip_key in jax.random.split(key, (self.chunks - 1, 2)):
      begin_B1 += jax.random.randint(size_key, (B, 1), 1, math.ceil(L / self.chunks) + 1)
      skip_B1 = jax.random.randint(skip_key, (B, 1), skip_B1, last + 1)
      skip_BL = jnp.where(pos_BL < begin_B1, skip_BL, skip_B1)
    return pos_BL + skip_BL

  def reach(self, length: int) -> int:
    """`range`. Raises ValueError where it is shorter than the rows."""
    if length > self.range:
      raise ValueError(
        f'Rows of {length} tokens leave no room for skips below {self.range}. '
        f'Set --config.sampling.range to {length} or more, or read shorter rows.'
      )
    return self.range


Sampler = Plain | Randomized | Pose
PLAIN = Plain()
SAMPLERS = {'none': Plain, 'randomized': Randomized, 'pose': Pose}


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
