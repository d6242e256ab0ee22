"""Where attention lies: mean distance, entropy and sink mass of every layer and head, streamed.

What the model attends with is what is measured: the logits of its own queries and keys under its
schemes, masks and extensions. No weights are stored: memory is linear in the length.

Letters: N layers, R repetitions of the pattern, B windows, L tokens, H heads.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from posjax import layers, recurrence
from posjax.attend import Logits, Rows, summarise
from posjax.attention import Layer, positioned, scored
from posjax.decoder import Decoder
from posjax.evaluation import Documents, all_refused, at_length, choose, lengths_of, recipes_of
from posjax.evaluation.windows import batches
from posjax.positions import merged

NUMBERS = ('distance', 'entropy', 'spread', 'sink')  # of posjax.attend.summary


def evaluate(
  numbers: Callable,
  spectrum_of: Callable[[dict, int], Any],
  documents: Documents,
  config: ConfigDict,
  *,
  trained_length: int,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Measures attention under every recipe of `config` (configs/eval/base.py) at every length.

  Every length reads the same text, the first tokens of the same documents, in whole windows side
  by side.

  Args:
    numbers: (spectrum, batch) -> {name: x_BNH}, means over the queries of a window: `look`.
    spectrum_of, trained_length, facts: as of posjax.evaluation.evaluate.

  Returns plain data, ready for JSON:
    rows: one per length and recipe: factor, windows, and for each of NUMBERS x_NH, means over them.
    refused: recipe, length, reason.
    and what was measured on: name, measure, recipes, trained_length, lengths, sinks, documents,
    short_documents, seconds, facts.

  Raises ValueError if no document is long enough, if every recipe is refused, if two recipes have
  one label, or if a length, span or sinks is below 1.
  """
  if config.span < 1:
    raise ValueError(
      f'A span of {config.span} longest lengths holds no window of that length. Use span >= 1.'
    )
  if config.sinks < 1:
    raise ValueError(f'{config.sinks} sinks weigh nothing. Use --eval.sinks >= 1.')
  began = time.monotonic()
  recipes, lengths = recipes_of(config), lengths_of(config, trained_length)
  token_DT, short = choose(
    documents, targets=round(config.span * lengths[-1]), tokens=config.tokens
  )
  rows, refused = [], []
  for length in lengths:
    for name, recipe in recipes.items():
      at = at_length(recipe, length, trained_length)
      where = {'length': length, 'recipe': name}
      try:
        x_WNH = measure(numbers, spectrum_of(at, length), token_DT, length, config.batch_tokens)
      except ValueError as error:
        refused.append({**where, 'reason': str(error)})
        continue
      means = {key: x.mean(0, dtype=np.float64).tolist() for key, x in x_WNH.items()}
      windows = len(x_WNH['distance'])
      rows.append({**where, 'factor': at.get('factor'), 'windows': windows, **means})
      logging.info('%s at %d tokens: attention measured', name, length)
  if not rows:
    raise all_refused(recipes, refused)
  return {
    'name': config.name,
    'measure': 'attention',
    'recipes': list(recipes),
    'trained_length': trained_length,
    'lengths': lengths,
    'sinks': config.sinks,
    'documents': len(token_DT),
    'short_documents': short,
    'rows': rows,
    'refused': refused,
    'seconds': time.monotonic() - began,
    'facts': dict(facts or {}),
  }


def measure(
  numbers: Callable, spectrum: Any, token_DT: np.ndarray, length: int, batch_tokens: int
) -> dict[str, np.ndarray]:
  """Returns {name: x_WNH} of each whole window. Raises ValueError where one is not finite."""
  D, T = token_DT.shape
  starts = list(range(0, T - length, length))
  count = D * len(starts)
  size = min(max(1, batch_tokens // length), count)
  parts = [
    jax.tree.map(np.asarray, numbers(spectrum, batch))
    for batch in batches(token_DT, starts, length, size)
  ]
  x_WNH = {name: np.concatenate([part[name] for part in parts])[:count] for name in NUMBERS}
  if not all(np.isfinite(x).all() for x in x_WNH.values()):
    raise ValueError(
      f'The model has no finite attention at {length} tokens. Use float32 activations, or a length '
      'and factor that the model can bear.'
    )
  return x_WNH


def look(
  model: Decoder,
  params: Any,
  spectrum: Any,
  batch: Mapping[str, jax.Array],
  *,
  sinks: int,
  contiguous: bool = False,
) -> dict[str, jax.Array]:
  """{name of NUMBERS: x_BNH}, means over the queries past the first quarter of each window.

  Those before see too little to differ: they would pull every mean towards that of the text's
  beginning. sinks: how many of the window's first tokens count as such.
  """
  pos_BL = batch['positions']
  rows_B = Rows(index_L=jnp.arange(pos_BL.shape[1]), pos_L=pos_BL, contiguous=contiguous)
  stacks = layers.projected(
    model, params, spectrum, batch['tokens'], pos_BL, contiguous=contiguous
  )
  found = []
  for stack in ('blocks', 'rest'):
    by_place = []
    for n, vectors_RBL in enumerate(stacks.get(stack, ())):
      shared = layers.shared(model, params, n)

      def one_layer(layer, n=n, shared=shared):
        own, null_H, vectors_BL = layer
        position = merged(shared, own), spectrum[n]
        return attention_of(model.pattern[n], position, *vectors_BL, rows_B, sinks, null_H)

      learned = layers.own(params, stack, n), layers.null_logits(params, stack, n)
      by_place.append(jax.lax.map(one_layer, (*learned, vectors_RBL)))
    if by_place:  # the pattern again and again
      found.append(jax.tree.map(lambda *x_RBH: jnp.stack(x_RBH, axis=1), *by_place))
  flat = lambda x_RnBH: x_RnBH.reshape(-1, *x_RnBH.shape[2:])
  return jax.tree.map(lambda *x: jnp.swapaxes(jnp.concatenate(list(map(flat, x))), 0, 1), *found)


def attention_of(
  layer: Layer, position, x_BLD, q_BLHK, k_BLGK, rows_B: Rows, sinks: int, null_H=None
) -> dict[str, jax.Array]:
  """{name of NUMBERS: x_BH} of one layer, as `look`; its vectors before the scheme acts on them."""
  (B, L, H, K), spectrum = q_BLHK.shape, position[1]
  layer = layer.under(spectrum, K**-0.5)
  vectors, past = (x_BLD, q_BLHK, k_BLGK), None
  sink_XW = jnp.broadcast_to(jnp.arange(L) < sinks, (B, L))
  if layer.segment is not None:
    past = vectors
    sink_XW, _ = layer.short_rows(sink_XW, sink_XW, rows_B)
  q_XLHK, k_XWGK, query_X, key_X = positioned(
    layer, position, *vectors, rows_B, past, columns=False
  )
  logits = scored(Logits(scale=K**-0.5, mask=layer.mask), layer.scheme, layer.cap)
  temperature = layer.scheme.temperature(spectrum, H)

  def one(q_LHK, k_LGK, query, key, sink_L):
    return summarise(
      q_LHK, k_LGK, query, key, sink_L, logits, temperature, position, null_H=null_H
    )

  x_XLH = jax.vmap(one, in_axes=(0, 0, query_X.axes, key_X.axes, 0))(
    q_XLHK, k_XWGK, query_X, key_X, sink_XW
  )
  if past is not None:
    x_XLH = jax.tree.map(lambda x: recurrence.whole(x, B, L), x_XLH)
  return jax.tree.map(lambda x_BLH: x_BLH[:, L // 4 :].mean(1), x_XLH)
