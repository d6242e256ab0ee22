"""Abacus: digits know their place within their number."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.extension import Spectrum
from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abacus(Scheme):
  """x[l] += table[place[l]], place = 1, 2, ... within each run of digits, 0 for all other tokens
  (McLeish et al. 2024, arXiv:2405.17399, sec. 3).

  While training, a number drawn from 0 .. `shift`, the same for a whole step, is added to the
  places of digits, so that all rows of the table are learned; evaluation adds none. Places line up
  the digits of operands if numbers are written with the least significant digit first. Documents
  do not continue each other's numbers, and a row that starts within a number counts from there.
  What is not a digit has no position: combine it, as the paper does, with a scheme that gives one.

  first_digit: token of the digit 0; those of 1 to 9 follow it. 48 is its byte.
  longest: digits of the longest number; a place past the table is not a number, where JAX would
    clamp silently.
  shift: the largest number added while training; the authors' is 99.
  deviation: of the normal initialisation, in units of the embedded tokens.
  """

  first_digit: int = 48
  longest: int = 128
  shift: int = 99
  deviation: float = 0.02

  reads_positions = False

  def __post_init__(self):
    if self.first_digit < 0 or self.longest < 1 or self.shift < 0:
      raise ValueError(
        f'Abacus with first_digit {self.first_digit}, longest {self.longest} and shift '
        f'{self.shift}. Use first_digit >= 0, longest >= 1 and shift >= 0.'
      )

  @property
  def embed_reads(self) -> int:
    return self.longest + self.shift

  def init(self, key, dims):
    shape = (1 + self.longest + self.shift, dims.width)
    return {'table_PD': self.deviation * jax.random.normal(key, shape)}

  def spectrum(self, dims):
    return Spectrum(offset=0.0)

  def sample(self, spectrum, key):
    drawn = jax.random.randint(key, (), 0, self.shift + 1)
    return dataclasses.replace(spectrum, offset=drawn.astype(jnp.float32))

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    place_L = self.place(tokens_L, pos_L)
    row_L = jnp.where(place_L > 0, place_L + jnp.asarray(spectrum.offset).astype(jnp.int32), 0)
    beyond_L1 = (row_L >= len(params['table_PD']))[:, None]
    place_LD = params['table_PD'][jnp.minimum(row_L, len(params['table_PD']) - 1)]
    return x_LD + jnp.where(beyond_L1, jnp.nan, place_LD).astype(x_LD.dtype)

  def place(self, tokens_L, pos_L):
    """1, 2, ... within each run of digits, 0 elsewhere; int32."""
    digit_L = (tokens_L >= self.first_digit) & (tokens_L < self.first_digit + 10)
    index_L = jnp.arange(len(tokens_L))
    # A document starts where positions do not go on: its digits are no part of the number before.
    starts_L = pos_L <= jnp.concatenate([pos_L[:1], pos_L[:-1]])
    before_L = jnp.where(digit_L, jnp.where(starts_L, index_L - 1, -1), index_L)
    return jnp.where(digit_L, index_L - jax.lax.cummax(before_L), 0)
