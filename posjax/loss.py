"""Next-token loss from hidden states, in chunks of tokens: B x L x V logits never exist at once.

Letters: B batch, L tokens, N tokens of a chunk, D model width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from posjax.decoder import Decoder

CHUNK_BYTES = 64 * 2**20  # of float32 logits: small beside any model, large enough for a matmul


def token_losses(model: Decoder, params, spectrum: Any, batch: dict, **settings) -> tuple:
  """loss_BL, -log p(target) in nats, and log_z_BL, the logarithm of the softmax's denominator.

  Both are 0 where no target counts (`counted`). The arguments are those of `by_target`.
  """
  return token_losses_and_loads(model, params, spectrum, batch, **settings)[0]


def token_losses_and_loads(model: Decoder, params, spectrum: Any, batch: dict, **settings) -> tuple:
  """What `token_losses` returns, and how the layers' experts were loaded (posjax/moe.py)."""

  def nats(logits_BNV, targets_BN):
    log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    target_BN = jnp.take_along_axis(logits_BNV, targets_BN[..., None], axis=-1)[..., 0]
    return log_z_BN - target_BN, log_z_BN

  counted_BL = counted(batch)
  both, loads = by_target(nats, model, params, spectrum, batch, **settings)
  return tuple(x * counted_BL for x in both), loads


def token_hits(model: Decoder, params, spectrum: Any, batch: dict, **settings) -> jax.Array:
  """hit_BL, 1 where the target is the likeliest token, else 0; NaN where a logit is none.

  It is 1 where no target counts, so that a row is right where all of it is. Arguments: `by_target`.
  """

  def hits(logits_BNV, targets_BN):
    right_BN = jnp.argmax(logits_BNV, axis=-1) == targets_BN
    return jnp.where(jnp.isnan(logits_BNV).any(-1), jnp.nan, right_BN.astype(jnp.float32))

  hit_BL, _ = by_target(hits, model, params, spectrum, batch, **settings)
  return jnp.where(counted(batch), hit_BL, 1.0)


def counted(batch: dict) -> jax.Array:
  """Whether each target counts, [B, L]: not where the segment is 0, which is padding, nor where the
  target is negative, which is a token to read and not to predict."""
  real_BL = batch['targets'] >= 0
  return real_BL if batch['segments'] is None else real_BL & (batch['segments'] > 0)


def real(batch: dict) -> jax.Array:
  """Whether each token is one, [B, L]: segment 0 is padding."""
  if batch['segments'] is None:
    return jnp.ones(batch['tokens'].shape, bool)
  return batch['segments'] > 0


def by_target(
  measure: Callable,
  model: Decoder,
  params,
  spectrum: Any,
  batch: dict,
  *,
  chunk: int | None = None,
  contiguous: bool = True,
) -> tuple[Any, Any]:
  """What `measure`, (logits_BNV, targets_BN) -> arrays [B, N], says of each target, as [B, L]; and
  how the layers' experts were loaded.

  batch: int32 arrays [B, L] `tokens`, `targets`, `positions` and `segments` (rows of
    posjax.data.Stream). `segments` may be None: every row is one document.
  chunk: tokens whose logits exist at once; None takes what fits 64 MiB. The chunks' logits are
    computed again in the derivative.
  contiguous: positions rise by one within a segment, as those of a Stream do.
  """
  hidden_BLD, kept = model.apply(
    {'params': params},
    batch['tokens'],
    spectrum,
    batch['positions'],
    batch['segments'],
    contiguous=contiguous,
    method='hidden',
    mutable=['loads'],
  )
  loads = kept.get('loads', {})
  B, L, D = hidden_BLD.shape

  def measured(hidden_BND, targets_BN):
    logits_BNV = model.apply({'params': params}, hidden_BND, method='logits')
    return measure(logits_BNV, targets_BN)

  # Chunks are cut along L, so that each holds every row and stays sharded as the batch is.
  N = max(1, (chunk or CHUNK_BYTES // (4 * model.vocabulary)) // B)
  if N >= L:
    return measured(hidden_BLD, batch['targets']), loads
  count = math.ceil(L / N)
  N = math.ceil(L / count)
  pad = [(0, 0), (0, count * N - L)]
  hidden_CBND = jnp.pad(hidden_BLD, [*pad, (0, 0)]).reshape(B, count, N, D).swapaxes(0, 1)
  targets_CBN = jnp.pad(batch['targets'], pad).reshape(B, count, N).swapaxes(0, 1)
  parts = jax.lax.map(lambda part: jax.checkpoint(measured)(*part), (hidden_CBND, targets_CBN))
  whole = lambda x: x.swapaxes(0, 1).reshape(B, count * N)[:, :L]
  return jax.tree.map(whole, parts), loads
