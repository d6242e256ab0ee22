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
"""

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from posjax import cli, composition, cost, data, layers, run, sharding
from posjax.attend import Rows
from posjax.attention import Layer, position_and_attend
from posjax.checkpoint import Checkpoints
from posjax.decoder import Decoder, as_trained, build
from posjax.extension import spectra
from posjax.loading import Loaded, load
from posjax.positions import Dims, Scheme, merged
from posjax.rotary import rotate
from posjax.training import init_state, make_optimizer

# What the decompositions know: the weights alone (MHA2MLA); the second moments of what they are
# applied to, with keys and values of equal power (TransMLA); and what heads look at besides.
METHODS = ('plain', 'balanced', 'attended')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turning:
  """How a layer turns queries and keys: pair (f, f + F) by pos * frequency[f], both times the
  amplitude. Dimensions past 2 F are left alone."""

  frequency_F: np.ndarray
  amplitude: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
  """What a layer's attention met on text.

  power_DD: mean of y^T y over tokens, y being what keys and values are projected from.
  turn_HF: mean of e^(i w[f] (pos[j] - pos[i])) over what queries i look at, by their attention.
  """

  power_DD: np.ndarray
  turn_HF: np.ndarray


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


def measure(
  model: Decoder,
  params: Any,
  spectrum: Any,
  turnings: Sequence[Turning],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> list[Seen]:
  """What each layer met on `batches`, as posjax.data.Stream has them. Memory: D x D per layer."""
  spectrum = jax.tree.map(jnp.float32, spectrum)

  @jax.jit
  def sums(batch):
    real_BL = (batch['segments'] > 0).astype(jnp.float32)
    stacks = layers.projected(
      model, params, spectrum, batch['tokens'], batch['positions'], segments_BL=batch['segments']
    )
    rows_B = Rows(
      index_L=jnp.arange(real_BL.shape[1]), pos_L=batch['positions'], segment_L=batch['segments']
    ).with_begin()
    found = {}
    for stack, places in stacks.items():
      for n, vectors_RBL in enumerate(places):
        shared = layers.shared(model, params, n)

        def one(layer, n=n, shared=shared):
          own, vectors_BL = layer
          position = merged(shared, own), spectrum[n]
          x_BLD, *_ = vectors_BL = [x.astype(jnp.float32) for x in vectors_BL]
          turn_HF = looked_at(model.pattern[n], position, *vectors_BL, rows_B, real_BL, turnings[n])
          return jnp.einsum('bl,bld,ble->de', real_BL, x_BLD, x_BLD), turn_HF

        found[stack, n] = jax.lax.map(one, (layers.own(params, stack, n), vectors_RBL))
    return found, real_BL.sum()

  total = None
  for batch in batches:
    found = jax.tree.map(np.asarray, sums(batch))
    total = found if total is None else jax.tree.map(np.add, total, found)
  sums_of, tokens = total
  seen = []
  for layer in range(model.layers):
    stack, repetition, n = layers.place(model, layer)
    power_DD, turn_HF = (x[repetition] / tokens for x in sums_of[stack, n])
    seen.append(Seen(power_DD=power_DD, turn_HF=turn_HF))
  return seen


def looked_at(
  layer: Layer, position, x_BLD, q_BLHK, k_BLGK, rows_B: Rows, real_BL, turning: Turning
):
  """Sum of e^(i w[f] (pos[j] - pos[i])) over queries i and keys j, by their attention: [H, F].

  Attention itself adds them up: its values are the waves of the keys' positions, whose sum is
  turned back by the query's. Memory is linear in L.
  """
  (B, L), G, F = x_BLD.shape[:2], k_BLGK.shape[2], len(turning.frequency_F)
  if not F:
    return jnp.zeros((q_BLHK.shape[2], 0), jnp.complex64)
  frequency_F = jnp.asarray(turning.frequency_F)
  turned = lambda x_BLGX, sign: jax.vmap(
    lambda x_LGX, pos_L: rotate(x_LGX, sign * frequency_F, pos_L)
  )(x_BLGX, rows_B.pos_L)
  one_X = jnp.repeat(jnp.asarray([1.0, 0.0]), F)
  wave_BLGX = turned(jnp.broadcast_to(one_X, (B, L, G, 2 * F)), 1)
  out_BLHX = position_and_attend(
    layer, position, x_BLD, q_BLHK, k_BLGK, wave_BLGX, rows_B, 'tiled'
  )
  sum_HX = jnp.einsum('bl,blhx->hx', real_BL, turned(out_BLHX, -1))
  return sum_HX[:, :F] + 1j * sum_HX[:, F:]


def factor(m_DX: np.ndarray, power_DD: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
  """(down_DC, up_CX), of whose products of rank C `down up` is nearest to m on what it meets.

  Least mean of |y m - y down up|^2 over y of second moments `power`. The singular values are shared
  out evenly: y down has them as second moments. All on one side, training from there breaks.
  """
  value_D, vector_DD = np.linalg.eigh(power_DD)
  # Directions that the text hardly had are not taken for ones that it cannot have.
  value_D = np.maximum(value_D, 1e-6 * value_D.mean())
  root_DD, inverse_DD = ((vector_DD * value_D**p) @ vector_DD.T for p in (0.5, -0.5))
  left_DC, singular_C, right_CX = np.linalg.svd(root_DD @ m_DX, full_matrices=False)
  root_C = singular_C[:rank] ** 0.5
  return inverse_DD @ left_DC[:, :rank] * root_C, root_C[:, None] * right_CX[:rank]


def convert_weights(
  weights: Mapping[str, Any],
  seen: Seen,
  turning: Turning,
  slice_frequency_S: np.ndarray,
  *,
  heads: int,
  kv_heads: int,
  rank: int,
  slice: int,
  method: str,
) -> dict[str, np.ndarray]:
  """A layer's weights of `LatentAttention` (no norm, queries from x) for those of `Attention`.

  Float64 within. Raises ValueError where the slice has a frequency that no pair of a head has.
  """
  query_DHK, key_DGK, value_DGK = (
    np.float64(weights[name]).reshape(len(weights[name]), count, -1)
    for name, count in (('query_DX', heads), ('key_DX', kv_heads), ('value_DX', kv_heads))
  )
  D, H, K = query_DHK.shape
  G, F, S = kv_heads, len(turning.frequency_F), len(slice_frequency_S)
  group_H = np.arange(H) // (H // G)
  power_DD = np.eye(D) if method == 'plain' else np.float64(seen.power_DD)
  turn_HF = seen.turn_HF if method == 'attended' else np.ones((H, F))

  # Pairs as complex numbers, and what never turns.
  query_DHF, key_DGF = (_pairs(x, F).copy() for x in (query_DHK, key_DGK))
  query_DHY, key_DGY = query_DHK[..., 2 * F :], key_DGK[..., 2 * F :].copy()
  slice_DS, slice_query_DHS = np.zeros((D, S), complex), np.zeros((D, H, S), complex)
  for s, f in enumerate(matches(turning.frequency_F, slice_frequency_S)):
    down_D1, up_1G = factor(key_DGF[:, :, f], power_DD, 1)
    slice_DS[:, s] = down_D1[:, 0]
    slice_query_DHS[:, :, s] = query_DHF[:, :, f] * up_1G[0, group_H].conj()
    key_DGF[:, :, f] -= down_D1 @ up_1G
  # The rest of the slice never turns either: it keeps what all heads have most of there.
  still = slice - 2 * S
  slice_DZ, slice_query_DHZ = np.zeros((D, still)), np.zeros((D, H, still))
  if still and key_DGY.size:
    down_DZ, up_ZX = factor(key_DGY.reshape(D, -1), power_DD, still)
    up_ZHY = up_ZX.reshape(len(up_ZX), G, -1)[:, group_H]
    slice_DZ[:, : len(up_ZX)] = down_DZ
    slice_query_DHZ[..., : len(up_ZX)] = np.einsum('dhy,zhy->dhz', query_DHY, up_ZHY)
    key_DGY -= (down_DZ @ up_ZX).reshape(key_DGY.shape)

  # The rest of the keys loses its rotation to the queries: Re(conj(q) t k) = Re(conj(q t*) k).
  query_DHF = query_DHF * turn_HF.conj() * turning.amplitude**2
  content_DHK = np.concatenate([query_DHF.real, query_DHF.imag, query_DHY], axis=-1)
  key_DGK = np.concatenate([key_DGF.real, key_DGF.imag, key_DGY], axis=-1)
  balance = 1.0 if method == 'plain' else _balance(key_DGK, value_DGK, power_DD)
  both_DX = np.concatenate([balance * key_DGK, value_DGK], axis=1).reshape(D, -1)
  latent_DC, up_CX = factor(both_DX, power_DD, rank)
  up_CGK = up_CX.reshape(rank, 2 * G, K)
  query_DHX = np.concatenate([
    content_DHK, slice_query_DHS.real, slice_query_DHS.imag, slice_query_DHZ
  ], axis=-1)  # fmt: skip
  return {
    # Logits are divided by sqrt(K + R) there, by sqrt(K) here.
    'query_DX': ((K + slice) / K) ** 0.5 * query_DHX.reshape(D, -1),
    'latent_DC': latent_DC,
    'slice_DR': np.concatenate([slice_DS.real, slice_DS.imag, slice_DZ], axis=-1),
    'key_up_CX': up_CGK[:, :G][:, group_H].reshape(rank, -1) / balance,
    'value_up_CX': up_CGK[:, G:][:, group_H].reshape(rank, -1),
    'output_XD': np.float64(weights['output_XD']),
  }


def matches(frequency_F: np.ndarray, slice_frequency_S: np.ndarray) -> list[int]:
  """The pair of a head for each pair of the slice, which turns as it does."""
  free, found = list(range(len(frequency_F))), []
  for frequency in slice_frequency_S:
    f = next((f for f in free if np.isclose(frequency_F[f], frequency, rtol=1e-5, atol=0)), None)
    if f is None:
      raise ValueError(
        f'The slice would turn a pair by {frequency:.4g} radians per token, as no pair of a head '
        'does. Use a slice and a stride whose product divides the head width, or, of a run that '
        'was extended, convert the run it started from.'
      )
    free.remove(f)
    found.append(f)
  return found


def _pairs(x_DHK: np.ndarray, F: int) -> np.ndarray:
  return x_DHK[..., :F] + 1j * x_DHK[..., F : 2 * F]


def _balance(key_DGK, value_DGK, power_DD) -> float:
  """What makes keys as large as values on average; 1 where nothing is left of the keys."""
  power = lambda x_DGK: np.einsum('dgk,de,egk->', x_DGK, power_DD, x_DGK)
  keys, values = power(key_DGK), power(value_DGK)
  return (values / keys) ** 0.5 if keys > 1e-12 * values else 1.0


def convert_params(
  model: Decoder,
  params: Any,
  turnings: Sequence[Turning],
  seen: Sequence[Seen],
  latent_model: Decoder,
  latent_spectrum: Any,
  method: str,
) -> Any:
  """Parameters of `latent_model`, whose slices turn by `latent_spectrum`. On the host."""
  latent = latent_model.latent
  targets = []
  for layer, one in zip(latent_model.pattern, latent_spectrum, strict=True):
    targets.append(turning(layer.scheme, latent_model.dims, one).frequency_F)
  params = jax.tree.map(np.asarray, params)
  new: dict[tuple[str, int], list] = {}
  for layer in range(model.layers):
    stack, _, n = layers.place(model, layer)
    converted = convert_weights(
      layers.weights(model, params, layer)['attention'], seen[layer], turnings[n], targets[n],
      heads=model.heads, kv_heads=model.kv_heads, rank=latent.width, slice=latent.slice,
      method=method,
    )  # fmt: skip
    new.setdefault((stack, n), []).append(jax.tree.map(np.float32, converted))
  params = {**params, **{stack: dict(params[stack]) for stack, _ in new}}
  for (stack, n), repetitions in new.items():
    attention = jax.tree.map(lambda *x: np.stack(x), *repetitions)
    params[stack][f'layer_{n}'] = {**params[stack][f'layer_{n}'], 'attention': attention}
  return params


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
  if model.qk_norm != 'none' or set(model.biases) & {'qkv', 'output'}:
    raise ValueError(
      f'The run was trained with model.qk_norm = {model.qk_norm} and model.biases = '
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


def write(loaded: Loaded, config: ConfigDict, model: Decoder, params: Any, stream, out: Path):
  """A run directory as if it had been trained to where the run was: with an optimizer that has
  seen nothing, at the beginning of its text."""
  with run.Run(out, config) as opened, Checkpoints(opened.workdir / 'checkpoints') as checkpoints:
    loaded.tokenizer.save(opened.workdir)
    (opened.workdir / 'metrics.jsonl').touch()
    state = jax.eval_shape(
      lambda key: init_state(model, make_optimizer(config.train), key), jax.random.key(0)
    )
    places = sharding.place(state, loaded.mesh)
    params = jax.device_put(params, places.params)
    optimizer = make_optimizer(config.train).init(params)
    checkpoints.save(
      config.train.steps,
      params=params,
      state={'optimizer': optimizer, 'step': jnp.int32(config.train.steps)},
      data=stream.state(),
    )


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m posjax.conversion', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--workdir', required=True, help='a run that train.py made, or hf:DIR')
  parser.add_argument('--out', required=True, help='where the converted run goes')
  parser.add_argument('--rank', type=int, required=True, help='C, width of the latent')
  parser.add_argument('--slice', type=int, help='R, width of the slice; the head width unless told')
  parser.add_argument('--stride', type=int, default=1, help="of the slice's pairs in a head; 1")
  parser.add_argument('--method', default='attended', help=f'{", ".join(METHODS)}; the last')
  parser.add_argument('--batches', type=int, default=8, help='of training text to look at; 8')
  flags = parser.parse_args(words)
  cli.cache_compilations()
  out = Path(flags.out).expanduser()
  if (out / 'config.json').exists():
    raise ValueError(f"There is a run in '{out}' already. Use another --out.")
  if flags.batches < 1:
    raise ValueError(f'--batches={flags.batches} leaves nothing to look at. Use 1 or more.')
  convert_run(
    flags.workdir, out, rank=flags.rank, slice=flags.slice, stride=flags.stride,
    method=flags.method, batches=flags.batches,
  )  # fmt: skip


def convert_run(
  workdir: str | Path,
  out: Path,
  *,
  rank: int,
  slice: int | None = None,
  stride: int = 1,
  method: str = 'attended',
  batches: int = 8,
) -> None:
  """Reads a run, writes its conversion, and says what a token costs before and after."""
  loaded = load(workdir)
  source = loaded.config
  slice = source.model.head_width if slice is None else slice
  config = latent_config(source, rank=rank, slice=slice, stride=stride)
  documents = data.load(source.data, source.data.split, loaded.tokenizer)
  stream = lambda: data.Stream(
    documents, length=source.train.length, batch=source.train.batch, seed=source.seed,
    positions=source.data.positions, threads=source.data.threads,
  )  # fmt: skip
  text = stream()
  model, params = convert(loaded, config, (next(text) for _ in range(batches)), method=method)
  write(loaded, config, model, params, stream(), out)
  before, after = (cost.cache_bytes_per_token(m) for m in (loaded.model, model))
  print(f'Cache: {before:,.0f} -> {after:,.0f} bytes per token ({after / before:.0%}).')
  print(f'Converted: {out}')


if __name__ == '__main__':
  cli.run(main)
