"""Rotary settings of a config.json, in both of their spellings, and back.

  {'rope_parameters': {'rope_theta': 1e4, 'rope_type': 'yarn', 'factor': 4.0}}       since 2025
  {'rope_theta': 1e4, 'rope_scaling': {'type': 'yarn', 'factor': 4.0}}               before

What a checkpoint calls a rope type is an extension here. Lengths are in tokens.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from posjax.interop.keys import REQUIRED, Keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotary:
  """What posjax calls it: a config's `position` and `extension`, and the length the model reads."""

  position: dict[str, Any]
  extension: dict[str, Any]
  length: int


def read(
  keys: Keys,
  head_width: int,
  *,
  theta: float = 10_000.0,
  theta_key: str = 'rope_theta',
  share: float | None = None,
  share_key: str = 'partial_rotary_factor',
  length_key: str = 'max_position_embeddings',
  length: int | Any = REQUIRED,
  original: int | None = None,
  renamed: dict[str, str] | None = None,
  kinds: Sequence[str] | None = None,
  temperate: bool = False,
) -> Rotary:
  """Rotary settings, after transformers' `modeling_rope_utils`.

  theta, length: the family's own where the config says nothing.
  share: of each head that turns, where the config says nothing; None: the family turns all of it.
  original: the family's own original_max_position_embeddings, where that is a key of its config.
  renamed: the family's own words for rope types. kinds: those that it has; None: all.
  temperate: whether mscale_all_dim is also a temperature of all logits.

  Raises ValueError, naming the key, for a type or setting posjax does not know.
  """
  scaling = keys.within('rope_scaling')
  inside = scaling if scaling.content else keys.within('rope_parameters')
  if scaling.content:
    keys.take('rope_parameters', None)
  longest = keys.whole(length_key, length)
  outer_theta = keys.number(theta_key, theta)
  theta = inside.number('rope_theta', outer_theta)
  if not theta > 1:
    raise inside.refuse('rope_theta', theta, 'It must be above 1.')
  position = _position(keys, inside, head_width, theta, share, share_key)

  inside.take('type', None)
  kind = inside.take('rope_type', inside.content.get('type') or 'default')
  kinds = tuple(KINDS) if kinds is None else kinds
  if isinstance(kind, str):
    kind = (renamed or {}).get(kind, kind)
  if kind not in kinds:
    raise inside.refuse('rope_type', kind, f'It can do: {", ".join(kinds)}.')
  inside.take('finetuned', None)  # YaRN's authors noted it; it changes nothing
  before = _original(keys, inside, longest, original)
  extension = KINDS[kind](inside, longest, before)
  if temperate:
    extension |= _temperature(inside, kind)
  inside.check_all_read()
  return Rotary(position=position, extension=extension, length=longest)


def _position(keys, inside, head_width, theta, share, share_key) -> dict[str, Any]:
  outer = keys.number(share_key, share)
  given = inside.number('partial_rotary_factor', outer)
  if share is None and given not in (None, 1):
    raise inside.refuse('partial_rotary_factor', given, 'This family turns whole heads.')
  turned = head_width if given is None else int(head_width * given)
  if turned < 2 or turned % 2 or turned > head_width:
    raise inside.refuse(
      'partial_rotary_factor', given, f'Of heads of {head_width} it turns {turned} dimensions, '
      'but they turn in pairs.',
    )  # fmt: skip
  if turned == head_width:
    return {'name': 'rope', 'theta': float(theta)}
  return {'name': 'partial', 'share': turned / head_width, 'theta': float(theta)}


def _original(keys, inside, longest, own) -> int:
  """Tokens that the weights were first trained at, for the types that ask for it."""
  name = 'original_max_position_embeddings'
  outer, inner = keys.whole(name, own), inside.whole(name, None)
  if outer is not None and inner not in (None, outer):
    raise inside.refuse(name, inner, f'Outside of it the same key is {outer}.')
  return outer or inner or longest


def _temperature(inside: Keys, kind: str) -> dict[str, Any]:
  """DeepSeek's convention, which takes the place of an attention factor (posjax's `yarn`)."""
  weights = {name: inside.number(name, 0) for name in ('mscale', 'mscale_all_dim')}
  if not weights['mscale_all_dim']:
    return {}
  if kind != 'yarn' or not weights['mscale'] or 'attention_factor' in inside:
    raise inside.refuse(
      'mscale_all_dim', weights['mscale_all_dim'], 'It can do it for yarn, with mscale and without '
      'attention_factor.',
    )  # fmt: skip
  return {'attention_factor': None} | {name: float(weight) for name, weight in weights.items()}


def _default(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  return {'name': 'none'}


def _linear(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  return {'name': 'linear', 'factor': _factor(inside), 'trained_length': longest}


def _dynamic(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  return {'name': 'dynamic_ntk', 'gain': _factor(inside), 'trained_length': longest}


def _yarn(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  factor = _factor(inside, longest / original)
  weights = [inside.number(name, 0) for name in ('mscale', 'mscale_all_dim')]
  grow = lambda weight: 0.1 * weight * math.log(factor) + 1
  usual = grow(weights[0]) / grow(weights[1]) if all(weights) else grow(1)
  return {
    'name': 'yarn', 'factor': factor, 'trained_length': original,
    'fast': float(inside.number('beta_fast', 0) or 32),
    'slow': float(inside.number('beta_slow', 0) or 1),
    'truncate': inside.flag('truncate', True),
    'attention_factor': _attention_factor(inside, usual, factor),
  }  # fmt: skip


def _longrope(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  factor = inside.number('factor', longest / original)
  usual = 1.0
  if factor > 1 and 'attention_factor' not in inside:
    if original == 1:
      raise inside.refuse(
        'original_max_position_embeddings', 1, 'Without attention_factor, its logarithm divides.'
      )
    usual = math.sqrt(1 + math.log(factor) / math.log(original))
  return {
    'name': 'longrope', 'factor': max(1.0, float(factor)), 'trained_length': original,
    'short': inside.numbers('short_factor'),
    'long': inside.numbers('long_factor'),
    'attention_factor': float(inside.number('attention_factor', usual)),
  }  # fmt: skip


def _llama3(inside: Keys, longest: int, original: int) -> dict[str, Any]:
  return {
    'name': 'llama3', 'factor': _factor(inside), 'trained_length': original,
    'low_freq_factor': float(inside.number('low_freq_factor')),
    'high_freq_factor': float(inside.number('high_freq_factor')),
  }  # fmt: skip


KINDS = {
  'default': _default, 'linear': _linear, 'dynamic': _dynamic, 'yarn': _yarn,
  'longrope': _longrope, 'llama3': _llama3,
}  # fmt: skip


def _factor(inside: Keys, default: float | Any = REQUIRED) -> float:
  factor = inside.number('factor', default)
  if not factor >= 1:
    raise inside.refuse('factor', factor, 'It must be 1 or more.')
  return float(factor)


def _attention_factor(inside: Keys, usual: float, factor: float) -> float:
  given = inside.number('attention_factor', usual)
  if factor == 1 and given != 1:
    raise inside.refuse('attention_factor', given, 'With a factor of 1 nothing is extended.')
  return float(given)


def write(
  position: dict[str, Any], extension: dict[str, Any], length: int, head_width: int
) -> dict[str, Any]:
  """The keys that `read` reads: rope_parameters and max_position_embeddings.

  Raises ValueError for an extension that transformers has no rope type for.
  """
  rope: dict[str, Any] = {'rope_theta': position['theta'], 'rope_type': 'default'}
  turned = head_width
  if position.get('share', 1) != 1:
    rope['partial_rotary_factor'] = position['share']
    turned = int(round(position['share'] * head_width, 6))
  settings = {key: value for key, value in extension.items() if value is not None}
  name, factor, trained = (settings.get(key) for key in ('name', 'factor', 'trained_length'))
  if name == 'none' or (factor == 1 and name in ('linear', 'ntk', 'yarn', 'llama3', 'by_parts')):
    return {'rope_parameters': rope, 'max_position_embeddings': length}
  if name not in WRITTEN:
    raise ValueError(
      f"Extension '{name}' has no rope type in transformers. These have one: {', '.join(WRITTEN)}."
    )
  rope |= WRITTEN[name](settings, rope['rope_theta'], turned)
  if rope['rope_type'] in ('dynamic', 'linear'):
    length = trained
  return {'rope_parameters': rope, 'max_position_embeddings': length}


def _renamed(kind: str, **names: str):
  """Settings as they are, under the names {theirs: ours}."""
  ours = {'factor': 'factor', 'original_max_position_embeddings': 'trained_length'} | names

  def write(settings, theta, turned):
    plain = lambda value: list(value) if isinstance(value, tuple) else value
    found = {key: plain(settings[own]) for key, own in ours.items() if own in settings}
    return {'rope_type': kind} | found

  return write


def _write_rescale(settings, theta, turned):
  """Found divisors as LongRoPE's, the same within the trained length and past it."""
  if settings.get('start'):
    raise ValueError("Extension 'rescale' that keeps a start of the text has no rope type.")
  if settings.get('temperature', 1) != 1:
    raise ValueError("Extension 'rescale' with a temperature of all logits has no rope type.")
  divisors = list(settings['divisors'])
  return {
    'rope_type': 'longrope', 'factor': 1.0, 'short_factor': divisors, 'long_factor': divisors,
    'attention_factor': settings.get('attention_factor', 1.0),
  }  # fmt: skip


WRITTEN = {
  'linear': lambda settings, theta, turned: {
    'rope_type': 'linear', 'factor': settings['factor'],
  },
  'dynamic_ntk': lambda settings, theta, turned: {
    'rope_type': 'dynamic', 'factor': settings.get('gain', 1.0),
  },
  # Both are the default type, of another base.
  'ntk': lambda settings, theta, turned: {
    'rope_theta': theta * settings['factor'] ** (turned / (turned - 2)),
  },
  'rebase': lambda settings, theta, turned: {'rope_theta': settings['theta']},
  'yarn': _renamed(
    'yarn', beta_fast='fast', beta_slow='slow', truncate='truncate', mscale='mscale',
    mscale_all_dim='mscale_all_dim', attention_factor='attention_factor',
  ),
  'longrope': _renamed(
    'longrope', short_factor='short', long_factor='long', attention_factor='attention_factor'
  ),
  'llama3': lambda settings, theta, turned: _renamed(
    'llama3', low_freq_factor='low_freq_factor', high_freq_factor='high_freq_factor'
  )({'low_freq_factor': 1.0, 'high_freq_factor': 4.0} | settings, theta, turned),
  # The same function by other names.
  'by_parts': lambda settings, theta, turned: _renamed(
    'llama3', low_freq_factor='slow', high_freq_factor='fast'
  )({'slow': 1.0, 'fast': 32.0} | settings, theta, turned),
  'rescale': _write_rescale,
}  # fmt: skip
