"""Fused kernels of the platforms, for schemes that leave logits alone or offer columns.

Both kernels read causality and windows from numbers: a mask handed in as an array would hide
causality from them and cost L x L memory.
"""

import functools

import jax
import jax.numpy as jnp

from posjax.attend.rows import Logits, Rows


def cudnn(
  q_BLHK: jax.Array, k_BLGK: jax.Array, v_BLGV: jax.Array, query_B: Rows, logits: Logits
) -> jax.Array:
  """out_BLHV by cuDNN; bfloat16 or float16, one document per row.

  Padding may follow the document: being causal, no token before it sees it. Head widths are filled
  with zeros to a common multiple of 8, which is what the kernel takes.
  """
  K, V = q_BLHK.shape[-1], v_BLGV.shape[-1]
  width = -(-max(K, V) // 8) * 8
  widen = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])])
  window = logits.mask.window
  out_BLHV = jax.nn.dot_product_attention(
    widen(q_BLHK),
    widen(k_BLGK),
    widen(v_BLGV),
    scale=logits.scale,
    is_causal=logits.mask.causal,
    local_window_size=None if window is None else (window - 1, 0),  # theirs excludes the own key
    implementation='cudnn',
  )
  return out_BLHV[..., :V]


def splash(
  q_BLHK: jax.Array,
  k_BLGK: jax.Array,
  v_BLGV: jax.Array,
  query_B: Rows,
  logits: Logits,
  interpret: bool = False,
) -> jax.Array:
  """out_BLHV by the Splash kernel of JAX's Pallas for TPU; lengths in multiples of 128.

  interpret: runs the kernel's program on any platform, slowly, to check it.
  """
  from jax.experimental.pallas.ops.tpu import splash_attention as splash_lib  # 0.3 s, TPU only

  L, H = q_BLHK.shape[1:3]
  G, V = v_BLGV.shape[2:]
  K = -(-max(q_BLHK.shape[-1], V) // 128) * 128  # lanes of a TPU register
  widen = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, K - x.shape[-1])])
  heads_first = lambda x: jnp.swapaxes(x, 1, 2)
  if logits.mask.window is not None:
    mask = splash_lib.LocalMask((L, L), (logits.mask.window - 1, 0), 0)
  else:
    mask = splash_lib.CausalMask((L, L)) if logits.mask.causal else splash_lib.FullMask((L, L))
  block = next(size for size in (512, 256, 128) if L % size == 0)
  kernel = splash_lib.make_splash_mha(
    mask=splash_lib.MultiHeadMask([mask] * H),
    block_sizes=splash_lib.BlockSizes(
      block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
      block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    interpret=interpret,
  )
  segments = None
  if query_B.segment_L is not None:
    segments = splash_lib.SegmentIds(q=query_B.segment_L, kv=query_B.segment_L)
  scaled_BLHK = (q_BLHK.astype(jnp.float32) * logits.scale).astype(q_BLHK.dtype)
  q_BHLK = heads_first(widen(scaled_BLHK))
  k_BHLK, v_BHLK = (
    heads_first(widen(jnp.repeat(x, H // G, axis=2))) for x in (k_BLGK, v_BLGV)
  )
  out_BHLK = jax.vmap(functools.partial(kernel))(q_BHLK, k_BHLK, v_BHLK, segments)
  return heads_first(out_BHLK)[..., :V]
