"""The attention operator. It knows no scheme.

  logit[h,i,j] = temperature[h] score(scale * q[h,i] . k[g(h),j]),   g(h) = h // (H / G)
  out[h,i]     = sum over the keys j that the mask lets i see of softmax_j(logit[h,i,j]) v[g(h),j]

Where it is given, null[h] is one logit more of each softmax, which has no value: it takes weight
from the keys (gpt-oss, whose code calls it a sink).

`dense` is the definition; every other form is tested against it, values and gradients:

  dense    all logits at once; memory B x H x L x L
  tiled    a running softmax over tiles; memory B x H x L; any score, any platform
  cudnn    NVIDIA's fused kernel; no score, no packed documents
  splash   TPU's fused kernel; no score

and `step`, for a few queries and the keys of a cache.

`choose` picks a form and says why; `attend` runs it. `summarise` says where the weights lie.
"""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.attend.dense import dense
from posjax.attend.fused import cudnn, splash
from posjax.attend.rows import Logits, Mask, Rows, Tile
from posjax.attend.step import step
from posjax.attend.summary import summarise
from posjax.attend.tiled import tiled

FORMS = ('dense', 'tiled', 'cudnn', 'splash')

__all__ = [
  'FORMS', 'Choice', 'Logits', 'Mask', 'Rows', 'Tile', 'attend', 'choose', 'step', 'summarise',
  *FORMS,
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Choice:
  """A form of attention, and the reason, for people."""

  form: str
  why: str

  @property
  def fused(self) -> bool:
    return self.form in ('cudnn', 'splash')


def choose(
  form: str,
  *,
  columns: int | None,
  packed: bool,
  length: int,
  width: int,
  dtype,
  unknown: str | None = None,
  platform: str | None = None,
) -> Choice:
  """Picks a form for `form='auto'`, or checks the one that was asked for.

  Args:
    form: one of FORMS, or 'auto'.
    columns: by which heads grow where a scheme changes logits; None: no column can carry that.
    packed: rows hold several documents, told apart by segments.
    length: tokens of a row; width: of a head, as the scheme leaves it, without columns.
    dtype: of queries, keys and values.
    unknown: what no fused kernel knows of, for people: 'sinks', 'chunks', 'null logit'.
    platform: 'cpu', 'gpu' or 'tpu'; the one JAX runs on by default.

  Raises ValueError where a fused form was asked for and cannot run.
  """
  platform = platform or jax.default_backend()
  obstacle = {
    'cudnn': _cudnn_obstacle(platform, packed, width + (columns or 0), dtype),
    'splash': _splash_obstacle(platform, length, width + (columns or 0)),
  }
  if columns is None or unknown:
    why = f'it knows no {unknown}' if unknown else (
      'the scheme changes logits in a way no column can carry'
    )
    obstacle = {name: here or why for name, here in obstacle.items()}
  if form in ('dense', 'tiled'):
    return Choice(form, 'asked for')
  if form != 'auto':
    if form not in FORMS:
      raise ValueError(f"No attention form '{form}'. There are: auto, {', '.join(FORMS)}.")
    if obstacle[form]:
      raise ValueError(f"Attention form '{form}' cannot run here: {obstacle[form]}. Use 'auto'.")
    return Choice(form, 'asked for')
  fused = {'gpu': 'cudnn', 'cuda': 'cudnn', 'tpu': 'splash'}.get(platform)
  if fused is None:
    return Choice('tiled', f'no fused kernel on {platform}')
  if obstacle[fused]:
    return Choice('tiled', f'not {fused}: {obstacle[fused]}')
  how = f', bias as {columns} columns' if columns else ''
  return Choice(fused, f'fused kernel of {platform}{how}')


def _cudnn_obstacle(platform, packed, width, dtype) -> str | None:
  if platform not in ('gpu', 'cuda'):
    return f'it needs an NVIDIA GPU, and this is {platform}'
  if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16):
    return f'it takes bfloat16 or float16, not {jnp.dtype(dtype)}'
  if width > 128:  # before Hopper; from there on 256, which nobody has tried here
    return f'it takes heads of up to 128, not {width} (with its columns)'
  if packed:
    return 'it takes packed documents only as an L x L mask'
  return None


def _splash_obstacle(platform, length, width) -> str | None:
  if platform != 'tpu':
    return f'it needs a TPU, and this is {platform}'
  if length % 128:
    return f'it takes lengths in multiples of 128, not {length}'
  # Reckoned, not measured. A logit costs the kernel 4 FLOPs per dimension, as values are filled to
  # the same width; in tiles it costs some 16 bytes to and from memory, at 230 to 300 FLOPs a byte
  # (TPU v4, v5e) the time of 4,000 FLOPs, which is a head of 1,000. Half of that, as no kernel
  # reaches the peak.
  if width > 512:
    return f'heads of up to 512 pay, not of {width} (with its columns)'
  return None


def attend(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGV: jax.Array,
  query_B: Rows,
  key_B: Rows,
  logits: Logits,
  temperature=1.0,
  operands=(),
  form: str = 'tiled',
  null_H: jax.Array | None = None,
) -> jax.Array:
  """out_BLHV in the type of v, by the form that `choose` returned.

  query_B, key_B: rows of the batch; each array has a leading B, but for index_L, which is the same
    for all.
  temperature, operands: of `Logits`, shared by the batch.

  null_H: shared by the batch; neither score nor temperature acts on it.

  Raises ValueError if a fused form is given a score, sinks, chunks or a null logit.
  """
  if form != 'dense' and logits.plain:
    # Once per query instead of once per logit, and no derivative of it to sum over every tile. In
    # float32: a temperature rounded to bfloat16 would be off by up to 0.2 % on every logit.
    temperature_1 = jnp.asarray(temperature)[..., None]  # a number, or one per head
    q_BLHK = (q_BLHK.astype(jnp.float32) * temperature_1).astype(q_BLHK.dtype)
    temperature = None
  if form in ('cudnn', 'splash'):
    if not logits.plain:
      raise ValueError(f"'{form}' cannot run a score. Use 'tiled', or the scheme's columns.")
    if logits.mask.counts_from_begin:
      raise ValueError(f"'{form}' knows neither sinks nor chunks. Use 'tiled'.")
    if null_H is not None:
      raise ValueError(f"'{form}' knows no null logit. Use 'tiled'.")
    fused = cudnn if form == 'cudnn' else splash
    return fused(q_BLHK, k_BLGK, v_BLGV, query_B, logits)
  operator = {'dense': dense, 'tiled': tiled}[form]

  def one_sequence(q_LHK, k_LGK, v_LGV, query, key):
    return operator(
      q_LHK, k_LGK, v_LGV, query, key, logits, temperature, operands, null_H=null_H
    )

  return jax.vmap(one_sequence, in_axes=(0, 0, 0, query_B.axes, key_B.axes))(
    q_BLHK, k_BLGK, v_BLGV, query_B, key_B
  )
