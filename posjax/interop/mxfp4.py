"""Weights of four bits: a checkpoint's NAME_blocks and NAME_scales as the tensor NAME.

MXFP4 (Open Compute Project 2023, Microscaling Formats, version 1.0): blocks of 32 numbers, each of
which is a sign, two bits of exponent and one of mantissa, share a power of two. Here blocks lie
along the input axis, [stack, out, blocks, 16 bytes], the lower four bits first; scales are
[stack, out, blocks], of base 2 and bias 127. What comes out is [stack, in, out], exact in float32.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from posjax.interop.files import Tensor

VALUES = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6])
VALUES = np.concatenate([VALUES, -VALUES])
BLOCKS, SCALES = '_blocks', '_scales'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
  """As `files.Tensor`; nothing is unpacked before it is used."""

  blocks: Tensor
  scales: Tensor
  dtype: str = 'F32'

  @property
  def shape(self) -> tuple[int, ...]:
    stack, out, blocks, half = self.blocks.shape
    return stack, blocks * 2 * half, out

  def array(self) -> np.ndarray:
    return np.stack([self.part(e) for e in range(self.shape[0])])

  def part(self, e: int) -> np.ndarray:
    """One of the stack, [in, out]."""
    blocks, scales = self.blocks.array()[e], self.scales.array()[e]
    pairs = np.stack([blocks & 15, blocks >> 4], axis=-1)  # [out, blocks, 16, 2]
    numbers = VALUES[pairs.reshape(*scales.shape, -1)]
    numbers = np.ldexp(numbers, scales[..., None].astype(np.int32) - 127)
    return numbers.reshape(len(numbers), -1).T


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
  """With a tensor in the place of each pair. Raises ValueError where a pair does not fit."""
  found: dict[str, Any] = dict(tensors)
  for name, blocks in tensors.items():
    whole = name.removesuffix(BLOCKS)
    if whole == name or whole + SCALES not in tensors:
      continue
    scales = tensors[whole + SCALES]
    fits = len(blocks.shape) == 4 and blocks.shape[3] == 16 and scales.shape == blocks.shape[:3]
    if not fits or (blocks.dtype, scales.dtype) != ('U8', 'U8'):
      raise ValueError(
        f"The checkpoint has '{name}' of shape {list(blocks.shape)} and '{whole + SCALES}' of "
        f'shape {list(scales.shape)}, as {blocks.dtype} and {scales.dtype}: no MXFP4, which is '
        'bytes, [stack, out, blocks, 16] and [stack, out, blocks]. Convert it to bfloat16.'
      )
    del found[name], found[whole + SCALES]
    found[whole] = Packed(blocks=blocks, scales=scales)
  return found
