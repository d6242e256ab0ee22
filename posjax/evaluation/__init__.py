"""Evaluation by length and by recipe of extension: which context helps, and from where on it hurts.

One promise: what is compared is compared on the same target tokens. Every length and every recipe
scores the first N targets of the same documents; documents too short for that are left out for all
of them, and counted.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from posjax.evaluation.bootstrap import resample
from posjax.evaluation.distance import distances
from posjax.evaluation.gain import gains
from posjax.evaluation.perplexity import score, tabulate
from posjax.evaluation.position import curves
from posjax.evaluation.windows import contexts, sliding
from posjax.extension import takes


class Documents(Protocol):
  """What is evaluated on: int32 tokens of each document, the first of which is bos."""

  bytes_per_token: float

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> np.ndarray: ...


def evaluate(
  losses: Callable,
  spectrum_of: Callable[[dict, int], Any],
  documents: Documents,
  config: ConfigDict,
  *,
  trained_length: int,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Measures every recipe of `config` (configs/eval/base.py) at every length.

  Args:
    losses: (spectrum, batch) -> loss_BL, nats per target. One batch shape per length: jitted, it
      compiles once per length, however many recipes there are.
    spectrum_of: (recipe, length) -> spectrum. Raises ValueError where an extension makes no sense
      for the scheme; so may `losses`, where a length does not. Both are reported, not fatal.
    trained_length: tokens; the short context of the gain, and the length that factors refer to.
    facts: what the report should say about the run: scheme, revision, command, device, date.

  Returns plain data, ready for JSON (losses in nats per token, intervals 95 % over documents):
    rows: one per length, recipe and estimator: perplexity.tabulate.
    positions: per recipe, loss by tokens of context, at the longest length it accepts.
    distances: the same by tokens back to where the text last said so: distance.distances.
    gains: per recipe and length, the nats that it saves against the trained length.
    refused: recipe, length, reason.
    and what was measured on: name, recipes, trained_length, lengths, overlap, repeat, documents,
    short_documents, targets (of each document), tokens (of all), bytes_per_token, seconds, facts.

  Raises ValueError if no document is long enough, if every recipe is refused, if two recipes have
  one label, or if a length, span or repeat is below 1.
  """
  if config.repeat < 1:
    raise ValueError(f'A repeat of {config.repeat} tokens is none. Use --eval.repeat >= 1.')
  if config.span < 1:
    raise ValueError(
      f'A span of {config.span} longest lengths leaves no target with full context. Use span >= 1.'
    )
  began = time.monotonic()
  recipes, lengths = recipes_of(config), lengths_of(config, trained_length)
  stride = {length: max(1, length // config.overlap) for length in lengths}
  token_DT, short = choose(
    documents, targets=round(config.span * lengths[-1]), tokens=config.tokens
  )
  D, N = token_DT.shape[0], token_DT.shape[1] - 1

  scored, factor, refused = {}, {}, []
  for length in lengths:
    for name, recipe in recipes.items():
      at = at_length(recipe, length, trained_length)
      try:
        loss_DN = score(
          losses,
          spectrum_of(at, length),
          token_DT,
          length=length,
          stride=stride[length],
          batch_tokens=config.batch_tokens,
        )
      except ValueError as error:
        refused.append({'length': length, 'recipe': name, 'reason': str(error)})
        continue
      scored[length, name], factor[length, name] = loss_DN, at.get('factor')
      logging.info('%s at %d tokens: %.4f nats', name, length, loss_DN['sliding'].mean())
  if not scored:
    raise all_refused(recipes, refused)

  # Gains are measured on the targets that even the longest windows show with full context.
  longest, step = lengths[-1], stride[lengths[-1]]
  full_N = contexts(sliding(N, longest, step)) > longest - step
  weight_SD = resample(D, config.samples, config.seed)
  return {
    'name': config.name,
    'recipes': list(recipes),
    'trained_length': trained_length,
    'lengths': lengths,
    'overlap': config.overlap,
    'documents': D,
    'short_documents': short,
    'targets': N,
    'tokens': D * N,
    'bytes_per_token': float(documents.bytes_per_token),
    'rows': tabulate(scored, factor, weight_SD, documents.bytes_per_token),
    'positions': curves(scored, weight_SD, trained_length),
    'distances': distances(scored, token_DT, weight_SD, config.repeat),
    'repeat': config.repeat,
    'gains': gains(scored, full_N, weight_SD, trained_length),
    'refused': refused,
    'seconds': time.monotonic() - began,
    'facts': dict(facts or {}),
  }


def choose(documents: Documents, *, targets: int, tokens: int) -> tuple[np.ndarray, int]:
  """Returns token_DT, the first targets + 1 tokens of the documents, and how many are too short.

  As many documents as `tokens` targets pay for, at least two (for an interval), evenly spaced among
  those long enough, since neighbours in a data set tend to be alike.

  Raises ValueError if no document has `targets` targets.
  """
  sizes = [len(documents[i]) for i in range(len(documents))]
  enough = [i for i, size in enumerate(sizes) if size > targets]
  if not enough:
    raise ValueError(
      f'Of {len(sizes)} documents none has the {targets + 1} tokens that the longest length asks '
      f'for; the longest has {max(sizes, default=0)}. Evaluate on longer documents, or lower '
      '`multiples` or `span` in the evaluation config.'
    )
  count = min(len(enough), max(2, tokens // targets))
  chosen = [enough[i * len(enough) // count] for i in range(count)]
  return np.stack([documents[i][: targets + 1] for i in chosen]), len(sizes) - len(enough)


def lengths_of(config: ConfigDict, trained_length: int) -> list[int]:
  """Tokens, in order, each length once. Raises ValueError where there is none, or one below 1."""
  always = {trained_length} if config.trained else set()
  lengths = sorted(always | {round(m * trained_length) for m in config.multiples})
  if not lengths or lengths[0] < 1:
    raise ValueError(
      f'Multiples {tuple(config.multiples)} of {trained_length} tokens make lengths of {lengths}. '
      "Name multiples that make 1 token or more: --eval.multiples='(1, 4)'."
    )
  return lengths


def recipes_of(config: ConfigDict) -> dict[str, dict]:
  """Recipes by label. Raises ValueError where two have one: one would be taken for the other."""
  recipes = [dict(recipe) for recipe in config.recipes]
  labels = [label(recipe) for recipe in recipes]
  for name in labels:
    if labels.count(name) > 1:
      raise ValueError(f"Two recipes are called '{name}'. Give one of them another 'label'.")
  return dict(zip(labels, recipes, strict=True))


def all_refused(recipes: Iterable[str], refused: list[dict]) -> ValueError:
  """The error to raise where nothing was measured, with every reason once."""
  reasons = ' '.join(dict.fromkeys(one['reason'] for one in refused))
  return ValueError(
    f'The model refuses all of {list(recipes)}: {reasons} '
    'Evaluate with smaller --eval.multiples, or with --eval=configs/eval/lengths.py, whose only '
    "recipe is 'none'."
  )


def at_length(recipe: dict, length: int, trained_length: int) -> dict:
  """Where a recipe lacks the factor it needs: the one that fits, max(1, length / trained)."""
  if 'factor' in recipe or 'factor' not in takes(recipe['name']):
    return recipe
  return {**recipe, 'factor': max(1.0, length / trained_length)}


def label(recipe: dict) -> str:
  """What a reader calls a recipe: its `label`, or 'yarn', or 'yarn factor=8' with keywords."""
  if 'label' in recipe:
    return recipe['label']
  return ' '.join([recipe['name'], *(f'{k}={v}' for k, v in recipe.items() if k != 'name')])
