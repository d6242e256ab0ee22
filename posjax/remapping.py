"""A scheme whose far keys are seen from other places than their own (posjax/extension/far.py).

Near pairs keep the product of query and key that the attention operator computes. For each kind of
far pair, queries and keys are turned once more, for the places where they then stand, and a tile
that has such pairs computes their logits again. What the scheme adds to logits stays as it is.

Letters: L tokens, I/J query/key rows of a tile, H query heads, G key heads, K head width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from posjax.around import Around
from posjax.attend import Tile
from posjax.attend.branches import anywhere
from posjax.composition import Parts
from posjax.extension import Far, spectra
from posjax.positions import Scheme


def far_of(spectrum: Any) -> Far | None:
  """What a layer's spectra say of far keys. Raises ValueError where they disagree."""
  found = [one.far for one in spectra(spectrum) if one.far is not None]
  if any(type(one) is not type(found[0]) for one in found):
    raise ValueError('Schemes of one layer see far keys in different ways. Extend them by one.')
  return found[0] if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remapped(Around):
  """`scheme`, its far logits computed anew; `scale` is that of the products.

  Raises ValueError for a scheme that counts along the keys: it would count near logits.
  """

  scale: float

  factorises = False

  def __post_init__(self):
    if self.scheme.walks:
      raise ValueError(
        'A scheme that counts along the keys needs every logit as trained: far keys cannot be seen '
        'from other places. Use an extension that only changes numbers, e.g. linear.'
      )

  def overrides(self, hook):
    return hook == 'score' or self.scheme.overrides(hook)

  def prepare(self, params, spectrum, key, J):
    theirs, turned = key.features_L
    key = dataclasses.replace(key, features_L=theirs)
    return self.scheme.prepare(params, spectrum, key, J), turned

  def continued(self, features_L, gap):
    (own_L, turned), (theirs, _) = features_L, gap
    return self.scheme.continued(own_L, theirs), turned

  def features(self, params, spectrum, x_LD, q_LHK, k_LGK, rows):
    own = self.scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows)
    turned = [
      (
        moved(self.scheme, 'query', params, spectrum, q_LHK, rows.pos_L, query_L),
        moved(self.scheme, 'key', params, spectrum, k_LGK, rows.pos_L, key_L),
      )
      for query_L, key_L in far_of(spectrum).places(rows.pos_L)
    ]
    return tuple(zip(own, zip(*turned, strict=True), strict=True))

  def score(self, params, spectrum, s_HIJ, tile):
    far = far_of(spectrum)
    kind_IJ = far.kind(tile.query.pos_L, tile.key.pos_L)
    for n, (q_IHK, k_JGK) in enumerate(self.turned(tile), start=1):
      far_IJ = kind_IJ == n

      def again(s_HIJ, q_IHK, k_JGK, far_IJ=far_IJ):
        return jnp.where(far_IJ, self.scale * grouped(q_IHK, k_JGK), s_HIJ)

      some = anywhere(far_IJ & tile.visible_IJ)
      s_HIJ = jax.lax.cond(some, again, lambda s_HIJ, *_: s_HIJ, s_HIJ, q_IHK, k_JGK)
    return self.scheme.score(params, spectrum, s_HIJ, own(tile))

  def read(self, params, spectrum, p_HIJ, tile):
    return self.scheme.read(params, spectrum, p_HIJ, own(tile))

  def turned(self, tile: Tile):
    """(q_IHK, k_JGK) for each kind of far pair."""
    return zip(tile.query.features_L[1], tile.key.features_L[1], strict=True)


def moved(scheme: Scheme, hook: str, params, spectrum, x_LHK, pos_L, far_L):
  """Queries, or keys, by the scheme's hook: what rotates has them at far_L, whatever else acts on
  them where they are, at pos_L."""
  if isinstance(scheme, Around) and isinstance(scheme.scheme, Parts):
    raise ValueError(
      'In latent attention, and before model.qk_norm_after, far keys are seen from other places by '
      'a single scheme only. Use one, or an extension that changes numbers, e.g. linear.'
    )
  if not isinstance(scheme, Parts):
    place_L = pos_L if spectrum.far is None else far_L
    return getattr(scheme, hook)(params, spectrum, x_LHK, place_L)
  return scheme.through(x_LHK, [
    lambda x_LHK, each=each: moved(each[0], hook, *each[1:], x_LHK, pos_L, far_L)
    for each in scheme.each(params, spectrum)
  ])


def own(tile: Tile) -> Tile:
  """The tile as the scheme itself knows it."""
  cut = lambda rows: dataclasses.replace(rows, features_L=rows.features_L[0])
  return dataclasses.replace(tile, query=cut(tile.query), key=cut(tile.key))


def grouped(q_IHK, k_JGK):
  """s_HIJ = q[h] . k[g(h)], float32."""
  (I, H, K), (J, G, _) = q_IHK.shape, k_JGK.shape
  q_GIK = q_IHK.reshape(I, G, H // G, K).transpose(1, 2, 0, 3).reshape(G, H // G * I, K)
  s_GIJ = jnp.einsum('gik,jgk->gij', q_GIK, k_JGK, preferred_element_type=jnp.float32)
  return s_GIJ.reshape(H, I, J)
