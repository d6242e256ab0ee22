"""A SentencePiece .model from the lists of pieces that GGUF keeps of one.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece): each field is a
key, 8 x its number + its wire type, and a value. Only the fields that decide ids are written.
"""

import struct
from collections.abc import Mapping
from typing import Any

VARINT, BYTES, FLOAT = 0, 2, 5  # wire types
BYTE_PAIRS = 2  # of trainer_spec.model_type
BYTE = 6  # of piece.type; GGUF numbers the types alike


def model(found: Mapping[str, Any]) -> bytes:
  """From GGUF's metadata `tokenizer.ggml.*`: tokens, scores, token_type and the special ids.

  Raises ValueError where the lists differ in length.
  """
  get = lambda key, default=None: found.get(f'tokenizer.ggml.{key}', default)
  tokens, scores, kinds = get('tokens'), get('scores') or (), get('token_type') or ()
  if not len(tokens) == len(scores) == len(kinds):
    raise ValueError(
      f'The GGUF file has {len(tokens)} tokens, {len(scores)} scores and {len(kinds)} types of '
      'tokens, of which each should have all three. Copy it again.'
    )
  pieces = [
    _field(1, _field(1, token.encode()) + _field(2, float(score)) + _field(3, int(kind)))
    for token, score, kind in zip(tokens, scores, kinds, strict=True)
  ]
  trainer = _field(3, BYTE_PAIRS) + _field(35, int(BYTE in kinds))
  for n, name in enumerate(('unknown', 'bos', 'eos', 'padding')):
    id = get(f'{name}_token_id', n if n < 3 else -1)
    there = 0 <= id < len(tokens)
    trainer += _field(40 + n, id if there else 2**64 - 1)  # -1: there is none
    trainer += _field(45 + n, tokens[id].encode()) if there else b''
  normaliser = (
    _field(1, b'identity')
    + _field(3, int(get('add_space_prefix', True)))
    + _field(4, int(get('remove_extra_whitespaces', False)))
    + _field(5, 1)  # a space is the piece U+2581
  )
  return b''.join(pieces) + _field(2, trainer) + _field(3, normaliser)


def _field(number: int, value: int | float | bytes) -> bytes:
  if isinstance(value, bytes):
    return _varint(8 * number + BYTES) + _varint(len(value)) + value
  if isinstance(value, float):
    return _varint(8 * number + FLOAT) + struct.pack('<f', value)
  return _varint(8 * number + VARINT) + _varint(value)


def _varint(n: int) -> bytes:
  """Seven bits a byte, the lowest first; the eighth says that more follow."""
  low = bytearray()
  while n > 127:
    low.append(n & 127 | 128)
    n >>= 7
  return bytes([*low, n])
