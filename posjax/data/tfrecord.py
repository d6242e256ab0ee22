"""TFRECORD files without TensorFlow: the framing, not the contents.

A record is: length (uint64, little-endian), masked crc32c of the length (uint32), data, masked
crc32c of the data (uint32). masked = rotate_right(crc, 15) + 0xa282ead8 (mod 2^32), as in
TensorFlow's lib/hash/crc32c.h. The length's sum is verified: a file that is cut, damaged in its
framing or no TFRECORD at all is noticed at that record. The data's sum is not: in Python it
would take minutes a gigabyte.
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

POLYNOMIAL = 0x82f63b78  # Castagnoli's, bits reversed (RFC 3720, appendix B.4)


def read_records(path: str | os.PathLike) -> Iterator[bytes]:
  """Yields the data of each record. Raises ValueError where the framing is damaged."""
  with open(path, 'rb') as file:
    while header := file.read(12):
      start = file.tell() - len(header)
      data = read_framed(file, header)
      if data is None:
        raise ValueError(f'{path} is cut or damaged: no whole record at byte {start}. '
                         'Prepare the data set again, or copy the file again.')
      yield data


def read_framed(file: BinaryIO, header: bytes) -> bytes | None:
  """Returns the data behind a header of 12 bytes, or None where that is no whole record."""
  if len(header) < 12 or struct.unpack_from('<I', header, 8)[0] != mask(crc32c(header[:8])):
    return None
  length, = struct.unpack_from('<Q', header)
  body = file.read(length + 4)
  return body[:-4] if len(body) == length + 4 else None


def crc32c(data: bytes) -> int:
  crc = 0xffffffff
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (POLYNOMIAL if crc & 1 else 0)
  return crc ^ 0xffffffff


def mask(crc: int) -> int:
  return ((crc >> 15 | crc << 17) + 0xa282ead8) & 0xffffffff
