"""Text to ids and back: bytes, a SentencePiece .model, a Hugging Face tokenizer.json.

A tokenizer is the content of one file. A run directory keeps a copy of that file, and its sha256
is the tokenizer's fingerprint.
"""

import hashlib
import importlib
import pathlib
from collections.abc import Sequence

import numpy as np


class Tokenizer:
  """What every tokenizer has.

  vocabulary: number of ids; all lie in [0, vocabulary).
  bos: the id that opens each document. `encode` never adds it and `decode` drops it.
  """

  FILE: str  # its name in a run directory
  vocabulary: int
  bos: int

  def __init__(self, content: bytes):
    self.content = content

  @property
  def fingerprint(self) -> str:
    """The sha256 of all that defines the ids."""
    return hashlib.sha256(self.FILE.encode() + b'\0' + self.content).hexdigest()

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 ids [L]."""
    raise NotImplementedError

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    raise NotImplementedError

  def save(self, directory: str | pathlib.Path) -> None:
    """Copies the tokenizer into a run directory, from where `load` reads it."""
    (pathlib.Path(directory) / self.FILE).write_bytes(self.content)


class Bytes(Tokenizer):
  """UTF-8 bytes, 256 ids. Id 0, the NUL byte, opens documents, so texts must not contain it."""

  FILE = 'tokenizer.bytes'
  vocabulary = 256
  bos = 0

  def __init__(self, content: bytes = b'Ids are UTF-8 bytes; 0 opens a document.\n'):
    super().__init__(content)

  def encode(self, text: str) -> np.ndarray:
    data = text.encode()
    if 0 in data:
      raise ValueError(
          f'The text has a NUL byte at offset {data.index(0)}, which opens documents in the byte '
          f'vocabulary. Remove it (it is rarely text), or use another --config.data.tokenizer.')
    return np.frombuffer(data, np.uint8).astype(np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Bytes that are not UTF-8, as a model may write them, become U+FFFD."""
    return bytes(int(id) for id in ids if id != self.bos).decode(errors='replace')


class SentencePiece(Tokenizer):
  """A SentencePiece .model. Documents open with its bos, or with its eos where it has no bos."""

  FILE = 'tokenizer.model'

  def __init__(self, content: bytes):
    super().__init__(content)
    sentencepiece = require('sentencepiece')
    self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    self.vocabulary = self._processor.get_piece_size()
    ids = [id for id in (self._processor.bos_id(), self._processor.eos_id()) if id >= 0]
    if not ids:
      raise ValueError('The SentencePiece model has neither bos nor eos, so nothing can open a '
                       'document. Train it without --bos_id=-1 or without --eos_id=-1.')
    self.bos = ids[0]

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._processor.encode(text), np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._processor.decode([int(id) for id in ids])


class HuggingFace(Tokenizer):
  """A Hugging Face tokenizer.json, without its template, truncation and padding.

  The file does not say which token opens a text. It is the first of `OPENERS` that the file
  marks as special. Special tokens spelled out in a text are encoded as ordinary text.
  """

  FILE = 'tokenizer.json'
  OPENERS = ('<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>', '[CLS]', '<BOS_TOKEN>',
             '<｜begin▁of▁sentence｜>',  # opens a text, or else
             '<|endoftext|>', '<|end_of_text|>', '</s>', '<eos>', '[SEP]')  # closes the one before

  def __init__(self, content: bytes):
    super().__init__(content)
    self._tokenizer = require('tokenizers').Tokenizer.from_str(content.decode())
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self._tokenizer.encode_special_tokens = True
    self.vocabulary = 1 + max(self._tokenizer.get_vocab().values())
    special = {token.content: id for id, token in
               self._tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [special[token] for token in self.OPENERS if token in special]
    if not ids:
      raise ValueError(
          f'The tokenizer.json marks {sorted(special)} as special, none of which can open a '
          f'document. Add one of {", ".join(self.OPENERS)} to its special tokens.')
    self.bos = ids[0]

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return self._tokenizer.decode([int(id) for id in ids], skip_special_tokens=True)


def make(name_or_path: str) -> Tokenizer:
  """Returns the tokenizer of `data.tokenizer`: 'bytes', a path *.model or a path *.json."""
  if name_or_path == 'bytes':
    return Bytes()
  path = pathlib.Path(name_or_path).expanduser()
  kind = {'.model': SentencePiece, '.json': HuggingFace}.get(path.suffix)
  if kind is None or not path.is_file():
    raise ValueError(f"There is no tokenizer '{name_or_path}'. Set --config.data.tokenizer to "
                     "'bytes', or to the path of a SentencePiece .model or a Hugging Face "
                     "tokenizer.json.")
  try:
    return kind(path.read_bytes())
  except (ValueError, ImportError):
    raise
  except Exception as error:  # the packages have no narrower class for a file of another kind
    raise ValueError(f'{path} cannot be read as {kind.FILE}: {error}. Set --config.data.tokenizer '
                     'to a SentencePiece .model or a Hugging Face tokenizer.json.') from error


KINDS = {kind.FILE: kind for kind in (Bytes, HuggingFace, SentencePiece)}


def of_file(name: str, content: bytes) -> Tokenizer:
  """Returns the tokenizer whose file in a run directory has this name and content."""
  return KINDS[name](content)


def load(directory: str | pathlib.Path) -> Tokenizer:
  """Returns the tokenizer that `save` left in a run directory."""
  for name in KINDS:
    path = pathlib.Path(directory) / name
    if path.is_file():
      return of_file(name, path.read_bytes())
  raise ValueError(f'{directory} holds no tokenizer. Name a run directory of train.py.')


def require(package: str):
  """Imports an optional package. Raises ImportError with the command that installs it."""
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise ImportError(f"This tokenizer needs the package '{package}', which is not installed. "
                      "Install it: pip install 'posjax[tokenizers]'.") from error
