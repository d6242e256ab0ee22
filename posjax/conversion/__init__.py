"""Turns a trained run into one with latent attention, by singular value decompositions.

  python -m posjax.conversion --workdir=runs/quickstart --out=runs/latent --rank=64 --slice=32

Heads with keys and values of their own become heads that read one latent and one slice
(posjax/latent.py):

  k[h,l] ~ [c[l] key_up[h] | r[l]],   v[h,l] ~ c[l] value_up[h]

1. The slice. A rotation multiplies pair f of a head, as a complex number, by e^(i w[f] pos). So
   does any other complex number, and products commute: of all key heads' pairs at a frequency the
   slice keeps the principal component, one complex number for all heads, which each query head
   meets with a factor of its own. TransMLA's RoRoPE (Meng et al. 2025, arXiv:2502.07864) has real
   factors. Which pairs: the slice's own waves, every `stride`-th of a head's.
2. What that leaves of the keys is not turned any more. TransMLA and MHA2MLA (Ji et al. 2025,
   arXiv:2502.14837) put 1 in the place of e^(i w[f] (j - i)). 'attended' puts its mean over what
   each head looks at, the number nearest to it: a pair that turns often within that reach fades.
3. What is left of the keys, and the values, side by side are one matrix [D, 2 G K]; the latent
   keeps its `rank` largest directions (joint SVD).

Exact: where the scheme leaves queries and keys alone, at a rank that loses nothing, min(D, 2 G K);
where it turns them, if there is one key head besides, and a slice as wide as it. Of more key heads
what the slice has no room for stays an approximation at any rank.

Letters: B rows, L tokens, D model width, H query heads, G key/value heads, K head width, F pairs of
a head that turn, S of the slice, C latent width (the rank), R width of the slice, X columns.

  rotations.py  what a scheme does to queries and keys
  seen.py       what a model's attention meets on text
  weights.py    the decompositions
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from posjax import composition, layers
from posjax.conversion.rotations import turning
from posjax.conversion.seen import Seen, measure
from posjax.conversion.weights import convert_params
from posjax.decoder import Decoder
from posjax.experiment import as_trained, build
from posjax.loading import Loaded
from posjax.positions import Dims

# What the decompositions know: the weights alone (MHA2MLA); the second moments of what they are
# applied to, with keys and values of equal power (TransMLA); and what heads look at besides.
METHODS = ('plain', 'balanced', 'attended')


def latent_config(config: ConfigDict, *, rank: int, slice: int, stride: int = 1) -> ConfigDict:
  """The config of a run's conversion: pair s of the slice turns as pair `stride` s of a head does.

  That takes another theta: theta'^(-2 s / R) = theta^(-2 s stride / K). Raises ValueError where
  heads cannot become latents, or not these.
  """
  model = config.model
  D, K = model.width, model.head_width
  most = min(D, 2 * model.kv_heads * K)
  if model.latent.width is not None:
    raise ValueError(
      f'The run has latents of width {model.latent.width} already. Convert a run whose heads have '
      'keys and values of their own, or train this one on: --config.init_from.'
    )
  norms = model.qk_norm != 'none' or model.qk_norm_after is not None
  if norms or set(model.biases) & {'qkv', 'output'}:
    raise ValueError(
      f'The run was trained with model.qk_norm = {model.qk_norm}, model.qk_norm_after = '
      f'{model.qk_norm_after} and model.biases = '
      f'{tuple(model.biases)}: latents have no norms of heads, and neither biases of queries, keys '
      'and values nor of what attention gives back. Convert a run without them.'
    )
  if model.segment is not None:
    raise ValueError(
      f'The run reads segments with a memory (model.segment = {model.segment}), which latents do '
      'not have. Convert a run without.'
    )
  if not 1 <= rank <= most:
    raise ValueError(
      f'A rank of {rank} is larger than what there is to keep, or below 1: {2 * model.kv_heads} '
      f'key and value heads of {K} are read from {D} numbers, so that {most} keep everything. Use '
      f'--rank between 1 and {most}.'
    )
  if slice < 1 or stride < 1 or slice * stride > K:
    raise ValueError(
      f'A slice of {slice} dimensions, every {stride} of a head, does not fit into heads of {K}. '
      f'Use --slice and --stride whose product is at most {K}.'
    )
  new = config.copy_and_resolve_references()
  dims = Dims(width=D, heads=model.heads, kv_heads=model.kv_heads, head_width=K, length=1)
  share = stride * slice / K
  with new.ignore_type():
    new.model.kv_heads = model.heads
    new.model.latent.update(width=rank, query=None, slice=slice, value=None, norm=None)
    new.position = ConfigDict(_rebased(config.position, share, dims))
    if config.layers is not None:
      new.layers = tuple(
        {k: _rebased(v, share, dims) if k == 'position' else v for k, v in layer.items()}
        for layer in config.layers
      )
    new.init_from, new.phases = None, None
  return new


def _rebased(settings: Mapping[str, Any], share: float, dims: Dims) -> dict[str, Any]:
  """A config's `position`; the base of whatever turns queries and keys to the power of share."""
  settings = dict(settings)
  if settings['name'] == 'heads':  # turned not all alike, or not at all: see `turning`
    return settings
  if 'parts' in settings:
    return settings | {'parts': tuple(_rebased(one, share, dims) for one in settings['parts'])}
  scheme = composition.make(settings)
  if share != 1 and hasattr(scheme, 'theta') and scheme.spectrum(dims).amplitude is not None:
    settings['theta'] = float(scheme.theta**share)
  return settings


def convert(
  loaded: Loaded,
  config: ConfigDict,
  batches: Iterable[Mapping[str, np.ndarray]],
  *,
  method: str = 'attended',
) -> tuple[Decoder, Any]:
  """The model of `config`, which is `latent_config`'s, and its parameters.

  batches: text to look at, of the run's training; 'plain' does not. Raises ValueError for an
  unknown method, or a scheme that cannot be converted.
  """
  if method not in METHODS:
    raise ValueError(f"No method '{method}' of conversion. Use one of: {', '.join(METHODS)}.")
  model, params = loaded.model, loaded.params
  spectrum = as_trained(model, loaded.config)
  turnings = [
    turning(layer.scheme, model.dims, one)
    for layer, one in zip(model.pattern, spectrum, strict=True)
  ]
  new = build(config, loaded.mesh)
  D, H = model.width, model.heads
  if method == 'plain':
    seen = [
      Seen(power_DD=np.eye(D), turn_HF=np.ones((H, len(turnings[n].frequency_F))))
      for n in (layers.place(model, layer)[2] for layer in range(model.layers))
    ]
  else:
    seen = measure(model, params, spectrum, turnings, batches)
  return new, convert_params(model, params, turnings, seen, new, as_trained(new, config), method)
