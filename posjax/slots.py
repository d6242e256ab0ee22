"""Slots: where a layer keeps what it keeps of each token, and which token has which.

Everything lies one key head after the other, so that a step of decoding reads it in place. Of a
layer that sees less than the row a new token takes the place of the oldest.

Letters: S new tokens of a row, R slots, T tokens before the new ones, Y = T + S, G key/value heads,
K head width, V value width, D model width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posjax.attend import Rows

NOBODY = -2  # segment of slots that are empty, and of tokens that are not there


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slots:
  """What one layer keeps of a row; of several, every array has a leading B.

  An axis of one row, or of one key head, is left out: XLA copies a whole array that has one before
  it writes a slot of it, so that a step would cost several times the cache.

  key_GRK: with all that hooks do to it, if `turned`; otherwise as projected, and every step turns
    all of them again, which is for spectra that change from step to step. float32 where later
    tokens change it.
  value_GRV: None where keys are values, too.
  features_R: what the scheme remembers of keys, a pytree of arrays [R, ...].
  past_TD: the layer's newest inputs, for schemes that look back at them.
  pinned: so many first tokens keep their slots; the others share the rest in turn.
  whole: no slot is ever used again.
  """

  key_GRK: jax.Array
  value_GRV: jax.Array | None
  features_R: Any
  past_TD: jax.Array
  pinned: int
  whole: bool
  turned: bool

  @property
  def slots(self) -> int:
    return self.key_GRK.shape[-2]

  def places(self, length) -> jax.Array:
    """place_R of the token that each slot holds after `length` tokens; -1: none."""
    ring = self.slots - self.pinned
    slot_R = jnp.arange(self.slots)
    newest = length - 1 - self.pinned
    # One division in all, none for each slot and head: they would cost as much as the products.
    back_R = jnp.mod(newest, ring) - (slot_R - self.pinned)
    back_R = jnp.where(back_R < 0, back_R + ring, back_R)
    place_R = jnp.where(slot_R < self.pinned, slot_R, self.pinned + newest - back_R)
    seen_R = jnp.where(slot_R < self.pinned, slot_R < length, back_R <= newest)
    return jnp.where(seen_R, place_R, -1)

  def slot(self, place) -> jax.Array:
    """Of the token at this place."""
    ring = self.slots - self.pinned
    return jnp.where(place < self.pinned, place, self.pinned + (place - self.pinned) % ring)

  def written(self, k_SGK, v_SGV, features_S, past_YD, rows: Rows) -> 'Slots':
    """With new tokens, as far as they are there and are not the oldest of too many."""
    R, T = self.slots, len(self.past_TD)
    count = jnp.sum(rows.segment_L != NOBODY)
    kept_S = rows.segment_L != NOBODY
    if len(k_SGK) > R - self.pinned:
      oldest = rows.index_L[0] + count - (R - self.pinned)
      kept_S &= (rows.index_L >= oldest) | (rows.index_L < self.pinned)
    slot_S = jnp.where(kept_S, self.slot(rows.index_L), R)
    heads_first = lambda old, new: old.at[..., slot_S, :].set(stored(new), mode='drop')
    return dataclasses.replace(
      self,
      key_GRK=heads_first(self.key_GRK, k_SGK),
      value_GRV=None if v_SGV is None else heads_first(self.value_GRV, v_SGV),
      features_R=jax.tree.map(
        lambda old, new: old.at[slot_S].set(new, mode='drop'), self.features_R, features_S
      ),
      past_TD=jax.lax.dynamic_slice_in_dim(past_YD, count, T),
    )


def heads(x_GRK: jax.Array | None) -> jax.Array | None:
  """With an axis for the only head."""
  return x_GRK[None] if x_GRK is not None and x_GRK.ndim == 2 else x_GRK


def stored(x_SGK: jax.Array) -> jax.Array:
  """One head after the other; one head alone without its axis."""
  return x_SGK[:, 0] if x_SGK.shape[1] == 1 else jnp.swapaxes(x_SGK, 0, 1)
