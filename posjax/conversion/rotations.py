"""What a scheme does to queries and keys, as far as latents can stand in for it: rotations.

Letters: L tokens, G key/value heads, K head width, F pairs of a head that turn.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posjax.attend import Rows
from posjax.extension import spectra
from posjax.positions import Dims, Scheme
from posjax.rotary import rotate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turning:
  """How a layer turns queries and keys: pair (f, f + F) by pos * frequency[f], both times the
  amplitude. Dimensions past 2 F are left alone."""

  frequency_F: np.ndarray
  amplitude: float = 1.0


def turning(scheme: Scheme, dims: Dims, spectrum: Any) -> Turning:
  """What `scheme` does to queries and keys.

  Raises ValueError unless it turns all heads alike or leaves them alone, and reads no more of them:
  tried on numbers, since a scheme does not say.
  """
  pos_L = jnp.asarray([0, 1, 5, 1000, 50_000])  # near and far: some begin to act late
  of_heads = lambda heads: (len(pos_L), heads, dims.head_width)
  shapes = (len(pos_L), dims.width), of_heads(dims.heads), of_heads(dims.kv_heads)
  candidates = _turnings(spectrum, dims.head_width)

  @jax.jit
  def tried(key, spectrum):
    """Whether the features are the same for other queries and keys, and which candidates fit."""
    keys = jax.random.split(key, 4)
    x_LD, *both = (jax.random.normal(*pair) for pair in zip(keys[:3], shapes, strict=True))
    rows = Rows(index_L=pos_L, pos_L=pos_L)
    params = scheme.parameters(keys[3], dims)
    # Learned ones that begin at 0 would hide what they do.
    params = jax.tree.map(lambda x: x + jax.random.normal(keys[3], x.shape), params)
    features = lambda q_LHK, k_LGK: jax.tree.leaves(
      scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows)
    )
    doubled = features(*(2 * x for x in both))
    same = [(one == other).all() for one, other in zip(features(*both), doubled, strict=True)]
    hooks = scheme.query, scheme.key
    turned = [hook(params, spectrum, x, pos_L) for hook, x in zip(hooks, both, strict=True)]
    fits = [
      _equal(rotate(x, one.frequency_F, pos_L, one.amplitude), y)
      for one in candidates
      for x, y in zip(both, turned, strict=True)
    ]
    return same, fits

  if not (scheme.replaces_logits or scheme.reads):
    same, fits = tried(jax.random.key(0), jax.tree.map(jnp.float32, spectrum))
    for one, *both in zip(candidates, fits[::2], fits[1::2], strict=True):
      if all([*same, *both]):
        return one
  raise ValueError(
    f'{type(scheme).__name__} does more with queries and keys than to turn all of them alike, and '
    'latents cannot stand in for that. Convert a run whose scheme turns them, e.g. rope, or leaves '
    'them alone, e.g. alibi; or train with latents from the start: '
    '--config.model.latent.width=64.'
  )


def _turnings(spectrum: Any, head_width: int) -> list[Turning]:
  """Those that a scheme with this spectrum may do: none, or one of its rotations, of its own pairs
  or of all pairs of a head, the slowest by 0."""
  found = [Turning(frequency_F=np.zeros(0, np.float32))]
  for one in spectra(spectrum):
    if one.amplitude is not None and one.frequency_F.ndim == 1 and jnp.ndim(one.amplitude) == 0:
      own_F = np.asarray(one.frequency_F)
      if 2 * len(own_F) > head_width:
        continue
      for frequency_F in (own_F, np.pad(own_F, (0, head_width // 2 - len(own_F)))):
        found.append(Turning(frequency_F=frequency_F, amplitude=float(one.amplitude)))
  return found


def _equal(a, b):
  return jnp.allclose(a, b, atol=1e-5) if a.shape == b.shape else False
