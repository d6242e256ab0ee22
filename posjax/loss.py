"""Next-token loss from hidden states, in chunks of tokens: B x L x V logits never exist at once.

Letters: B batch, L tokens, N tokens of a chunk, D model width, V vocabulary.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from posjax.decoder import Decoder

CHUNK_BYTES = 64 * 2**20  # of float32 logits: small beside any model, large enough for a matmul


def token_losses(
  model: Decoder,
  params,
  spectrum: Any,
  batch: dict,
  *,
  chunk: int | None = None,
  contiguous: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """loss_BL, -log p(target) in nats, and log_z_BL, the logarithm of the softmax's denominator.

  batch: int32 arrays [B, L] `tokens`, `targets`, `positions` and `segments` (rows of
    posjax.data.Stream). Loss is 0 where the segment is 0.
    `segments` may be None: every row is one document, every target counts.
  chunk: tokens whose logits exist at once; None takes what fits 64 MiB. The chunks' logits are
    computed again in the derivative.
  contiguous: positions rise by one within a segment, as those of a Stream do.
  """
  segments_BL = batch['segments']
  hidden_BLD = model.apply(
    {'params': params},
    batch['tokens'],
    spectrum,
    batch['positions'],
    segments_BL,
    contiguous=contiguous,
    method='hidden',
  )
  B, L, D = hidden_BLD.shape

  def nats(hidden_BND, targets_BN):
    logits_BNV = model.apply({'params': params}, hidden_BND, method='logits')
    log_z_BN = jax.nn.logsumexp(logits_BNV, axis=-1)
    target_BN = jnp.take_along_axis(logits_BNV, targets_BN[..., None], axis=-1)[..., 0]
    return log_z_BN - target_BN, log_z_BN

  # Chunks are cut along L, so that each holds every row and stays sharded as the batch is.
  N = max(1, (chunk or CHUNK_BYTES // (4 * model.vocabulary)) // B)
  if N >= L:
    loss_BL, log_z_BL = nats(hidden_BLD, batch['targets'])
  else:
    count = math.ceil(L / N)
    N = math.ceil(L / count)
    pad = [(0, 0), (0, count * N - L)]
    hidden_CBND = jnp.pad(hidden_BLD, [*pad, (0, 0)]).reshape(B, count, N, D).swapaxes(0, 1)
    targets_CBN = jnp.pad(batch['targets'], pad).reshape(B, count, N).swapaxes(0, 1)
    parts = jax.lax.map(lambda part: jax.checkpoint(nats)(*part), (hidden_CBND, targets_CBN))
    loss_BL, log_z_BL = (x.swapaxes(0, 1).reshape(B, count * N)[:, :L] for x in parts)
  if segments_BL is None:
    return loss_BL, log_z_BL
  return loss_BL * (segments_BL > 0), log_z_BL * (segments_BL > 0)
