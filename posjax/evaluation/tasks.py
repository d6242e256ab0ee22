"""Exact match on tasks, by size and by recipe of extension: what is still found, and where.

An answer is right if each of its tokens is the likeliest one, given the true tokens before it. This
is exact match of greedy decoding, at the cost of one forward pass: as long as every token is right
the two see the same text, and the first wrong one ends both.

With `written_hits` the model writes its answers instead, from a cache; its exact match is the same.

One promise: what is compared is compared on the same examples. Every recipe answers the same ones.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from posjax.data.tasks import Example, Task, rows
from posjax.evaluation import all_refused, at_length, recipes_of

Z = 1.96  # normal deviations of a 95 % interval


def evaluate(
  hits: Callable,
  spectrum_of: Callable[[dict, int], Any],
  task: Task,
  config: ConfigDict,
  *,
  trained_length: int,
  trained_size: int,
  facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Asks every recipe of `config` (configs/eval/base.py) at every size and depth.

  Args:
    hits: (spectrum, batch) -> hit_BL, 1 for right and 0 for wrong, 1 where nothing is asked. One
      batch shape per size: jitted, it compiles once per size, however many recipes there are.
    spectrum_of: (recipe, length) -> spectrum. Raises ValueError where an extension makes no sense
      for the scheme; so may `hits`, where a length does not, and the task, where a size does not.
      All are reported, not fatal.
    trained_length: tokens, the length that factors refer to.
    trained_size: the largest trained on, which multiples refer to.

  Returns plain data, ready for JSON:
    rows: one per size and recipe: size, length (tokens read), recipe, factor, and `rate`.
    grid: the same by depth; empty where the task has no needle, or no depth is asked for.
    refused: recipe, length, reason.
    and what was asked: name, task, recipes, trained_size, sizes, lengths, depths, examples (of each
    size and depth), seconds, facts.

  Raises ValueError if every recipe is refused, if two have one label, or if there are no examples.
  """
  if config.examples < 1:
    raise ValueError(f'{config.examples} examples measure nothing. Use --eval.examples >= 1.')
  began = time.monotonic()
  recipes = recipes_of(config)
  sizes = {trained_size, *(round(multiple * trained_size) for multiple in config.multiples)}
  sizes = sorted(size for size in sizes if size >= task.smallest)
  lengths = {size: task.length(size) - 1 for size in sizes}
  depths = tuple(config.depths) if hasattr(task, 'depth') else ()
  tasks = [dataclasses.replace(task, depth=float(depth)) for depth in depths] or [task]

  summaries, grid, refused = [], [], []
  for size, length in lengths.items():
    try:
      task.check(size)
    except ValueError as error:  # more than there are symbols for
      refused += [{'length': length, 'recipe': n, 'reason': str(error)} for n in recipes]
      continue
    asked = [[one.example(config.seed, i, size) for i in range(config.examples)] for one in tasks]
    for name, recipe in recipes.items():
      at = at_length(recipe, length, trained_length)
      try:
        spectrum = spectrum_of(at, length)
        right = [answer(hits, spectrum, some, length, config.batch_tokens) for some in asked]
      except ValueError as error:
        refused.append({'length': length, 'recipe': name, 'reason': str(error)})
        continue
      where = {'size': size, 'length': length, 'recipe': name, 'factor': at.get('factor')}
      summaries.append({**where, **rate(np.concatenate(right))})
      grid += [{**where, 'depth': d, **rate(r)} for d, r in zip(depths, right, strict=False)]
      logging.info('%s at size %d: %.3f right', name, size, summaries[-1]['exact'])
  if not summaries:
    raise all_refused(recipes, refused)
  return {
    'name': config.name,
    'task': str(task),
    'recipes': list(recipes),
    'trained_size': trained_size,
    'sizes': sizes,
    'lengths': list(lengths.values()),
    'depths': list(depths),
    'examples': config.examples,
    'rows': summaries,
    'grid': grid,
    'refused': refused,
    'seconds': time.monotonic() - began,
    'facts': dict(facts or {}),
  }


def answer(
  hits: Callable, spectrum: Any, examples: list[Example], length: int, batch_tokens: int
) -> np.ndarray:
  """Returns, of each example, whether all of its answer is right and which share, [examples, 2].

  All batches have one shape: the last one repeats its first example. Raises ValueError where the
  model's output is not a number.
  """
  size = min(max(1, batch_tokens // length), len(examples))
  right = []
  for start in range(0, len(examples), size):
    some = examples[start : start + size]
    batch = rows(some + [some[0]] * (size - len(some)), length)
    hit_BL = np.asarray(hits(spectrum, batch))[: len(some)]
    if np.isnan(hit_BL).any():
      raise ValueError(
        f'The model has no finite logits for examples of {length} tokens. Use float32 activations, '
        'or a size and factor that the model can bear.'
      )
    asked_BL = batch['targets'][: len(some)] >= 0
    share_B = (hit_BL * asked_BL).sum(1) / asked_BL.sum(1)
    right.append(np.stack([share_B == 1, share_B], axis=1))
  return np.concatenate(right)


def rate(right_N2: np.ndarray) -> dict[str, float | int]:
  """Returns exact, the share of right answers, its 95 % interval (low, high) and the number of
  examples; and tokens, the mean share of an answer's tokens that are right.

  The interval is Wilson's (1927), which stays within 0 .. 1 and has a width where all are right:
  (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
  """
  n, (p, share) = len(right_N2), right_N2.mean(0)
  middle, around = p + Z**2 / (2 * n), Z * np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
  low, high = (middle - around) / (1 + Z**2 / n), (middle + around) / (1 + Z**2 / n)
  return {
    'exact': float(p),
    'low': max(0.0, float(low)),
    'high': min(1.0, float(high)),
    'tokens': float(share),
    'examples': n,
  }
