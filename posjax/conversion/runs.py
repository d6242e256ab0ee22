"""From one run directory to another: reads, converts, writes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from posjax import cost, data, run, sharding
from posjax.checkpoint import Checkpoints
from posjax.conversion import convert, latent_config
from posjax.decoder import Decoder
from posjax.loading import Loaded, load
from posjax.training import init_state, make_optimizer


def convert_run(
  workdir: str | Path,
  out: Path,
  *,
  rank: int,
  slice: int | None = None,
  stride: int = 1,
  method: str = 'attended',
  batches: int = 8,
) -> None:
  """Reads a run, writes its conversion, and says what a token costs before and after."""
  loaded = load(workdir)
  source = loaded.config
  slice = source.model.head_width if slice is None else slice
  config = latent_config(source, rank=rank, slice=slice, stride=stride)
  documents = data.load(source.data, source.data.split, loaded.tokenizer)
  stream = lambda: data.Stream(
    documents, length=source.train.length, batch=source.train.batch, seed=source.seed,
    positions=source.data.positions, threads=source.data.threads,
  )  # fmt: skip
  text = stream()
  model, params = convert(loaded, config, (next(text) for _ in range(batches)), method=method)
  write(loaded, config, model, params, stream(), out)
  before, after = (cost.cache_bytes_per_token(m) for m in (loaded.model, model))
  print(f'Cache: {before:,.0f} -> {after:,.0f} bytes per token ({after / before:.0%}).')
  print(f'Converted: {out}')


def write(loaded: Loaded, config: ConfigDict, model: Decoder, params: Any, stream, out: Path):
  """A run directory as if it had been trained to where the run was: with an optimizer that has
  seen nothing, at the beginning of its text."""
  with run.Run(out, config) as opened, Checkpoints(opened.workdir / 'checkpoints') as checkpoints:
    loaded.tokenizer.save(opened.workdir)
    (opened.workdir / 'metrics.jsonl').touch()
    state = jax.eval_shape(
      lambda key: init_state(model, make_optimizer(config.train), key), jax.random.key(0)
    )
    places = sharding.place(state, loaded.mesh)
    params = jax.device_put(params, places.params)
    optimizer = make_optimizer(config.train).init(params)
    checkpoints.save(
      config.train.steps,
      params=params,
      state={'optimizer': optimizer, 'step': jnp.int32(config.train.steps)},
      data=stream.state(),
    )
