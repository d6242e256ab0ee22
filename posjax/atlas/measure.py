"""What a scheme does, in numbers: its logits on a probe, over distance, and how extensions move it.

A spectrum is a `Spectrum`, or a pytree of them where schemes are combined.

Letters: L tokens, I/J queries/keys, H heads, G key heads, K head width, R distances 0 .. L - 1,
F frequencies, D model width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from posjax.attend import Logits, Mask, Rows, Tile
from posjax.attend.rows import weights as softmax
from posjax.attention import encoded, scored
from posjax.extension import Spectrum, applicable, extend, takes
from posjax.positions import Dims, Scheme

REACH = 4  # everything is measured out to so many trained lengths
TEXT = b'7+35=42; 689+1234=1923; '  # of the probe, again and again: some schemes read tokens
WORDS = {  # of the places where schemes act
  'embed': 'input', 'query': 'queries', 'key': 'keys', 'score': 'logits', 'walk': 'logits',
  'read': 'values', 'features': 'content',
}  # fmt: skip


@functools.partial(jax.jit, static_argnames=('scheme', 'mask'))
def score_map(
  scheme: Scheme, params, spectrum, x_LD, q_LHK, k_LGK, mask: Mask, pos_L=None, cap=None
):
  """s_HIJ: the logits that attention would softmax, hidden keys at -1e30. Memory H x L x L.

  pos_L: None counts 0, 1, 2, ...; cap: of posjax.attention.Layer.

  The only caller of a scheme's hooks of attention in this package, as posjax.attention and
  posjax.attend.dense do.
  """
  L, H, K = q_LHK.shape
  position, scale = (params, spectrum), K**-0.5
  place_L = jnp.arange(L)
  if pos_L is None:
    rows = Rows(index_L=place_L, pos_L=place_L, contiguous=True)
  else:
    rows = Rows(index_L=place_L, pos_L=pos_L)
  q_LHK, k_LGK, query, key = encoded(
    scheme, position, x_LD, q_LHK, k_LGK, rows, scale, columns=False
  )
  k_LHK = jnp.repeat(k_LGK, H // k_LGK.shape[1], axis=1)
  raw_HIJ = jnp.einsum('ihk,jhk->hij', q_LHK, k_LHK, precision='highest')
  logits = scored(Logits(scale=scale, mask=mask), scheme, cap)
  key = logits.prepared(position, key, len(k_LHK))
  table_M = logits.tabled(position, query, key)
  tile = Tile(query.with_begin(), key.with_begin(), mask, table_M)
  temperature = scheme.temperature(spectrum, H)
  return logits(temperature, position, raw_HIJ, tile, logits.begin(position, query))[0]


def added_to_input(scheme: Scheme, params, spectrum, length: int, width: int) -> np.ndarray:
  """wave_LD, what the scheme makes of tokens whose vectors are 0; zeros where it leaves them.

  The only caller of `embed` in this package.
  """
  tokens_L = jnp.asarray(np.resize(np.frombuffer(TEXT, np.uint8), length), jnp.int32)
  nothing_LD = jnp.zeros((length, width))
  return np.asarray(scheme.embed(params, spectrum, nothing_LD, tokens_L, jnp.arange(length)))


def acts_on(scheme: Scheme) -> tuple[str, ...]:
  """Where the scheme acts, in WORDS; empty if nowhere."""
  return tuple(dict.fromkeys(word for hook, word in WORDS.items() if scheme.overrides(hook)))


def probe(scheme: Scheme, params, spectrum, dims: Dims, length: int):
  """(x_LD, q_LHK, k_LGK, content_HIJ) of a text in which nothing speaks but position.

  All queries and keys are ones: equal, and of the variance that a norm would give. Where the scheme
  acts on the input they are what it adds to nothing, key head g and its queries reading dimensions
  gK to gK + K - 1. Where only content tells keys apart, for what walks along them or acts on
  queries alone, keys are noise; content_HIJ is their logits without positions, and elsewhere 0. So
  is x, which gates may read. Noise is normal, of variance 1, and the same on every call.
  """
  G, K, rng = dims.kv_heads, dims.head_width, np.random.default_rng(0)
  group, shape = dims.heads // G, (length, G, K)
  x_LD = rng.normal(size=(length, dims.width)).astype(np.float32)
  wave_LD = added_to_input(scheme, params, spectrum, length, dims.width)
  if wave_LD.any():
    k_LGK = np.resize(wave_LD.T, (G * K, length)).T.reshape(shape)
    return x_LD, np.repeat(k_LGK, group, axis=1), k_LGK, np.float32(0)
  q_LHK = np.ones((length, dims.heads, K), np.float32)
  if scheme.walks or (scheme.overrides('query') and not scheme.overrides('key')):
    k_LGK = rng.normal(size=shape).astype(np.float32)
    return x_LD, q_LHK, k_LGK, np.repeat(k_LGK.sum(-1).T, group, axis=0)[:, None] / K**0.5
  return x_LD, q_LHK, q_LHK[:, :G], np.float32(0)


def probe_map(
  scheme: Scheme, params, spectrum, dims: Dims, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """(s_HIJ, position_HIJ): the probe's logits, and those less the logits of its content."""
  spectrum = on_device(spectrum)
  x_LD, q_LHK, k_LGK, content_HIJ = probe(scheme, params, spectrum, dims, length)
  s_HIJ = np.asarray(score_map(scheme, params, spectrum, x_LD, q_LHK, k_LGK, Mask()))
  return s_HIJ, s_HIJ - content_HIJ


def on_device(spectrum):
  """In float32, as the model takes it; one type, so that a sweep compiles once."""
  return jax.tree.map(jnp.float32, spectrum)


def weights(s_HIJ: np.ndarray, null_H=None) -> np.ndarray:
  """p_HIJ, the softmax over keys, and a null logit if there is one; exactly 0 where hidden."""
  return np.asarray(softmax(s_HIJ, null_H))


def along_diagonals(s_HIJ: np.ndarray) -> np.ndarray:
  """mean_HR over all queries i >= r of s[h,i,i-r]; far distances have few queries."""
  R = s_HIJ.shape[-1]
  return np.stack([np.diagonal(s_HIJ, -r, 1, 2).mean(-1, dtype=np.float64) for r in range(R)], -1)


def kernel(s_HIJ: np.ndarray) -> np.ndarray:
  """kernel_HR, the mean over queries i of logit[h,i,i-r] - logit[h,i,i], in nats.

  Above the query's own key: what all keys of a query share, softmax ignores.
  """
  own_HI1 = np.diagonal(s_HIJ, axis1=1, axis2=2)[..., None]
  return along_diagonals(s_HIJ - own_HI1)


def share_beyond(weight_HR: np.ndarray, length: int) -> np.ndarray:
  """share_H of their weight that queries past `length` tokens send `length` tokens back or more, to
  distances that training never met; weight_HR as `along_diagonals` of weights."""
  R = weight_HR.shape[-1]
  queries_R = R - np.arange(R)
  return (weight_HR * queries_R)[..., length:].sum(-1) / max(R - length, 1)


def wavelengths(spectrum) -> tuple[str, np.ndarray] | None:
  """(unit, wave_F): tokens in which each wave turns once, 2 pi / frequency; without waves, those in
  which each slope costs one nat, 1 / slope; None where the spectrum has neither."""
  spectra = jax.tree.leaves(spectrum, is_leaf=lambda x: isinstance(x, Spectrum))
  numbers = lambda field: [
    np.asarray(getattr(one, field), np.float64)
    for one in spectra
    if getattr(one, field) is not None
  ]
  if frequencies := numbers('frequency_F'):
    return 'wavelength (tokens)', 2 * np.pi / np.concatenate(frequencies)
  if slopes := numbers('slope_H'):
    return 'tokens in which a head loses one nat', 1 / np.concatenate(slopes)
  return None


def reach(length: int, capacity: float) -> int:
  """Tokens out to which to measure: REACH trained lengths, or all there are positions for."""
  return int(min(REACH * length, capacity))


def extended(spectrum, length: int, *factors: float) -> dict[str, Any]:
  """{'linear ×4': spectrum} factor by factor, of each method that applies and needs only that."""
  return {
    f'{name} ×{factor:g}': extend(spectrum, name=name, factor=factor, trained_length=length)
    for factor in factors
    for name in stretching(spectrum)
  }


def stretching(spectrum) -> list[str]:
  """The methods that apply and need nothing but a factor and the trained length."""
  needs = lambda name: {key for key, p in takes(name).items() if p.default is p.empty}
  return [name for name in applicable(spectrum) if needs(name) == {'factor', 'trained_length'}]
