"""What no decoder can be: fields with values that are unknown, or that contradict each other.

Each check raises ValueError, which says what is and what would do.
"""

import math

from posjax import adaptive
from posjax.activation import ACTIVATIONS, Gate
from posjax.attend import FORMS
from posjax.block import NORM_AT, REMAT, RESIDUALS
from posjax.latent import decoupled
from posjax.mlp import MLPS
from posjax.norm import NORMS

CHOICES = {
  'mlp': MLPS,
  'norm': NORMS,
  'dtype': ('auto', 'float32', 'bfloat16', 'float16'),
  'remat': REMAT,
  'attention': ('auto', *FORMS),
  'activation': (None, *ACTIVATIONS),
  'residual': RESIDUALS,
  'norm_at': NORM_AT,
  'qk_norm': ('none', 'head', 'whole'),
}
SIZES = ('length', 'vocabulary', 'width', 'layers', 'heads', 'kv_heads', 'head_width', 'mlp_width')
BIASES = ('qkv', 'output', 'mlp', 'router', 'experts', 'head')


def check(model) -> None:
  """model: a `posjax.decoder.Decoder`."""
  check_choices(model)
  check_mlps(model)
  check_sizes(model)
  check_norms(model)
  check_schemes(model)
  if model.latent is not None:
    check_latent(model)


def check_choices(model) -> None:
  """Of a few names, one that exists."""
  for field, allowed in CHOICES.items():
    value = getattr(model, field)
    if value not in allowed:
      allowed = ', '.join(map(str, allowed))
      raise ValueError(f"model.{field} = '{value}' is unknown. Use one of: {allowed}.")
  for layer in model.pattern:
    if (layer.mlp or model.mlp) not in MLPS:
      raise ValueError(f"A layer's mlp = '{layer.mlp}' is unknown. Use one of: {', '.join(MLPS)}.")
  for place in model.biases:
    if place not in BIASES:
      raise ValueError(f"model.biases names '{place}'. It may name: {', '.join(BIASES)}.")


def check_mlps(model) -> None:
  """Experts, their biases and gates where there are layers that have them."""
  kinds = {layer.mlp or model.mlp for layer in model.pattern}
  if 'experts' in kinds and 'mlp' in model.biases:
    raise ValueError(
      "The biases of experts are 'experts' and 'router': those of a shared one, and of dense "
      "layers among them, do not exist. Leave 'mlp' out of model.biases."
    )
  if 'experts' in kinds and model.experts is None:
    raise ValueError("mlp = 'experts' needs to know which. Give experts=Routing(...).")
  for place in ('router', 'experts'):
    if place in model.biases and 'experts' not in kinds:
      raise ValueError(f"No layer has experts. Leave '{place}' out of model.biases.")
  limits = Gate(activation='silu', limit=model.gate_limit, offset=model.gate_offset)
  if 'plain' in kinds and limits != Gate(activation='silu'):
    raise ValueError(
      "Plain MLPs have no gate. Leave out model.gate_limit and model.gate_offset, or use 'gated'."
    )


def check_sizes(model) -> None:
  """Whole numbers of one or more, heads in even groups, a vocabulary cut in order."""
  for field in SIZES:
    if getattr(model, field) is None or getattr(model, field) < 1:
      raise ValueError(f'model.{field} = {getattr(model, field)}. Use a whole number >= 1.')
  if model.heads % model.kv_heads:
    raise ValueError(
      f'{model.heads} query heads cannot share {model.kv_heads} key/value heads evenly. '
      'Make model.kv_heads a divisor of model.heads.'
    )
  if model.cutoffs is not None:
    adaptive.check(model.cutoffs, model.vocabulary, model.logit_cap)


def check_norms(model) -> None:
  """Norms where the residual stream has a place for them."""
  if model.norm_epsilon is not None and not 0 <= model.norm_epsilon < math.inf:
    raise ValueError(f'model.norm_epsilon = {model.norm_epsilon}. Use a number >= 0, or None.')
  if model.norm_at not in ('input', 'both') and model.residual != 'sequential':
    raise ValueError(
      f"model.residual = '{model.residual}' reads what norms made of the input, but "
      f"model.norm_at = '{model.norm_at}' has none there. Use norm_at = input or both."
    )


def check_schemes(model) -> None:
  """One input for all layers."""
  if len(model.schemes) > 1 and any(scheme.overrides('embed') for scheme in model.schemes):
    raise ValueError(
      'A scheme that acts on the input acts once, for all layers, but the layers differ in their '
      'schemes. Give every layer the same, or schemes that act within layers.'
    )


def check_latent(model) -> None:
  """Nothing beside latents that only heads with keys and values of their own have."""
  for layer in model.pattern:
    decoupled(layer, model.latent)
    if layer.qk_norm_after is not None:
      raise ValueError(
        'Latent attention has its norms on the latents. Set model.qk_norm_after = None.'
      )
  if model.kv_heads != model.heads:
    raise ValueError(
      f'All {model.heads} heads read one latent, so there are no {model.kv_heads} key/value heads '
      'to share. Set model.kv_heads = model.heads.'
    )
  if model.qk_norm != 'none' or 'qkv' in model.biases or 'output' in model.biases:
    raise ValueError(
      'Latent attention has its norms on the latents, and no biases. Set model.qk_norm = none '
      "and leave 'qkv' and 'output' out of model.biases."
    )
