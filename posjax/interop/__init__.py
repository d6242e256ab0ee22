"""Checkpoints of other libraries, in and out.

  model = posjax.interop.load('path/to/checkpoint')    # config.json and safetensors
  logits_BLV = model(tokens_BL)
  steps = model.decode(batch=2, size=96, prefill=12)    # with a cache for 96 tokens a row
  logits_BSV = steps(tokens_BL[:, :12])

A family of checkpoints is one file of families/: how its config.json reads, and a table of its
weights. What posjax cannot compute exactly is refused; the message names the key. Nothing pickled
is read, and no code of a checkpoint runs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from posjax.decoder import Decoder, check_length
from posjax.decoding import Decoding, check_tokens
from posjax.extension import extend, takes
from posjax.interop import checkpoint
from posjax.interop.checkpoint import build_on, is_foreign, open_named, read_params

__all__ = ['Model', 'build_on', 'is_foreign', 'load', 'open_named', 'read_params']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """An imported checkpoint: `config` as configs/base.py, the decoder, its parameters."""

  config: ConfigDict
  decoder: Decoder
  params: Any

  def spectrum(self, length: int, **settings) -> Any:
    """The spectra for texts of `length` tokens, as the checkpoint extends them.

    settings: of the extension, where they differ: mode='as_deployed', prefill=12 gives the numbers
    of cached decoding, in which every key stays as it was turned when it came.
    """
    extension = dict(self.config.extension) | settings
    return extend(self.decoder.spectrum(), length=length, **extension)

  def __call__(self, tokens_BL, spectrum: Any = None) -> jax.Array:
    """logits_BLV, float32. Compiles once for each shape.

    Raises ValueError where there are no positions for so many tokens, or no such token.
    """
    tokens_BL = np.asarray(tokens_BL)
    check_tokens(self.decoder, tokens_BL)
    length = tokens_BL.shape[1]
    spectrum = self.spectrum(length) if spectrum is None else spectrum
    check_length(self.decoder, spectrum, length)
    return self._logits(self.params, np.int32(tokens_BL), jax.tree.map(jnp.float32, spectrum))

  def decode(self, *, batch: int, size: int, prefill: int = 1) -> Decoding:
    """Decoding of `batch` rows of up to `size` tokens, of which `prefill` come at once.

    Keys stay as they were turned when they came, as in other libraries.
    """
    follows = 'mode' in takes(self.config.extension.name)
    deployed = {'mode': 'as_deployed', 'prefill': prefill} if follows else {}
    spectrum_at = lambda length: self.spectrum(length, **deployed)
    return Decoding(self.decoder, self.params, spectrum_at, batch=batch, size=size)

  @functools.cached_property
  def _logits(self):
    return jax.jit(lambda params, *inputs: self.decoder.apply({'params': params}, *inputs))


def load(path: str | Path, mesh: Mapping[str, int] | None = None) -> Model:
  """The model of a Hugging Face directory: config.json and model.safetensors, or its shards; or of
  a file *.gguf. Also by the names of programs, hf:DIR and gguf:FILE.

  mesh: devices along axes, {'fsdp': 8}, over which parameters are spread as they are read; None:
  a whole copy on each.

  Raises ValueError where that is not what is there, or not what posjax computes exactly.
  """
  kind = 'gguf' if Path(path).suffix == '.gguf' else 'hf'
  if is_foreign(str(path)):
    kind, _, path = str(path).partition(':')
  opened = checkpoint.OPENERS[kind](path)
  decoder, params, _ = build_on(opened, mesh)
  return Model(config=opened.config, decoder=decoder, params=params)
