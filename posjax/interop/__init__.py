"""Checkpoints of other libraries, in and out.

  model = posjax.interop.load('path/to/checkpoint')    # config.json and safetensors
  logits_BLV = model(tokens_BL)

A family of checkpoints is one file of families/: how its config.json reads, and a table of its
weights. What posjax cannot compute exactly is refused; the message names the key. Nothing pickled
is read, and no code of a checkpoint runs.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from posjax.decoder import Decoder, check_length
from posjax.extension import extend
from posjax.interop import checkpoint

__all__ = ['Model', 'load']


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

    Raises ValueError where there are no positions for so many tokens.
    """
    tokens_BL = jnp.asarray(tokens_BL, jnp.int32)
    length = tokens_BL.shape[1]
    spectrum = self.spectrum(length) if spectrum is None else spectrum
    check_length(self.decoder, spectrum, length)
    return self._logits(self.params, tokens_BL, jax.tree.map(jnp.float32, spectrum))

  @functools.cached_property
  def _logits(self):
    return jax.jit(lambda params, *inputs: self.decoder.apply({'params': params}, *inputs))


def load(path: str | Path) -> Model:
  """The model of a Hugging Face directory: config.json and model.safetensors, or its shards.

  Raises ValueError where that is not what is there, or not what posjax computes exactly.
  """
  config, decoder, params, _ = checkpoint.load(path)
  return Model(config=config, decoder=decoder, params=params)
