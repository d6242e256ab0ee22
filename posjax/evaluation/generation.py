"""What a model writes: continuations of prompts by recipe of extension, and answers to tasks."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from posjax.decoding import Decoding
from posjax.evaluation import at_length, label
from posjax.extension import takes
from posjax.generation import NONE, Sampler, Stream, generate


def evaluate(
  model,
  params,
  spectrum_of: Callable[[dict, int], Any],
  tokenizer,
  config: ConfigDict,
  *,
  trained_length: int,
  facts: Mapping[str, Any] | None = None,
  show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
  """Continues every prompt of `config` (configs/eval/base.py) by every recipe.

  Prompts are read side by side, from bos on, and end at the next one. `show` is given the text of
  the first as it comes.

  Returns plain data, ready for JSON: texts, one per recipe and prompt (recipe, factor, prompt,
  text, tokens); speeds, one per recipe (recipe, tokens per second of reading and of writing, all
  rows together, each program's first run left out; cache, its bytes); refused; and what was asked:
  measure, name, recipes, trained_length, size, new, sampler, seconds, facts.

  Raises ValueError if there is no prompt, for a sampler that cannot be, or if every recipe is
  refused.
  """
  if not config.prompts or config.new < 1:
    raise ValueError(
      f'{len(config.prompts)} prompts and {config.new} new tokens leave nothing to write. Use '
      "--eval.prompts='(\'Fellow citizens\',)' and --eval.new >= 1."
    )
  began, sampler = time.monotonic(), Sampler(**config.sampler)
  prompts = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in config.prompts]
  size = max(map(len, prompts)) + config.new - 1
  texts, speeds, refused = [], [], []
  for recipe in map(dict, config.recipes):
    at, name = at_length(recipe, size, trained_length), label(recipe)
    show(f'\n[{name}] {config.prompts[0]}')
    try:
      decoding = begin(model, params, spectrum_of, at, prompts, size, config.chunk)
      found = write(decoding, prompts, tokenizer, sampler, config, show)
    except ValueError as error:
      refused.append({'length': size, 'recipe': name, 'reason': str(error)})
      continue
    show('\n')
    where = {'recipe': name, 'factor': at.get('factor')}
    texts += [{**where, **one} for one in found]
    speeds.append({**where, **speed(decoding, prompts)})
  if not texts:
    reasons = ' '.join(dict.fromkeys(r['reason'] for r in refused))
    raise ValueError(f'The model refuses all recipes: {reasons} Use fewer tokens: --eval.new.')
  return {
    'measure': 'generation',
    'name': config.name,
    'recipes': [label(dict(r)) for r in config.recipes],
    'trained_length': trained_length,
    'size': size,
    'new': config.new,
    'sampler': dict(config.sampler),
    'texts': texts,
    'speeds': speeds,
    'refused': refused,
    'seconds': time.monotonic() - began,
    'facts': dict(facts or {}),
  }


def follows(recipe: Mapping[str, Any]) -> bool:
  """Whether a recipe turns all keys anew as the text grows."""
  return 'mode' in takes(recipe['name']) and recipe.get('mode', 'exact') == 'exact'


def begin(model, params, spectrum_of, recipe: dict, prompts, size: int, chunk: int) -> Decoding:
  """Decoding under a recipe. Raises ValueError where keys are turned for the length at which they
  come, and prompts of different lengths come at once."""
  lengths = {len(prompt) for prompt in prompts}
  if recipe.get('mode') == 'as_deployed':
    if len(lengths) > 1:
      raise ValueError(
        f"Mode 'as_deployed' turns the keys of a prompt for its length, but there are prompts of "
        f'{sorted(lengths)} tokens. Give one at a time.'
      )
    recipe = {'prefill': lengths.pop()} | recipe
  return Decoding(
    model, params, lambda length: spectrum_of(recipe, length), batch=len(prompts), size=size,
    chunk=chunk, turned=not follows(recipe),
  )  # fmt: skip


def write(
  decoding: Decoding, prompts: Sequence, tokenizer, sampler: Sampler, config, show
) -> list[dict[str, Any]]:
  """The text that follows each prompt, without bos."""
  first, written = Stream(tokenizer.decode, prompts[0]), [[] for _ in prompts]
  tokens = generate(
    decoding, prompts, new=config.new, sampler=sampler, stop={tokenizer.bos}, seed=config.seed
  )
  for token_B in tokens:
    for row, token in zip(written, token_B, strict=True):
      if token != NONE:
        row.append(int(token))
    if token_B[0] != NONE:
      show(first.add(token_B[0]))
  show(first.end())
  pairs = zip(config.prompts, written, strict=True)
  return [
    {'prompt': prompt, 'text': tokenizer.decode(row), 'tokens': len(row)} for prompt, row in pairs
  ]


def speed(decoding: Decoding, prompts) -> dict[str, float]:
  """Tokens per second of reading the prompts and of 16 steps, compiled before; bytes kept."""
  decoding.restart()
  began = time.perf_counter()
  logits_BV = decoding.read(prompts).block_until_ready()
  read = time.perf_counter() - began
  steps = int(min(16, decoding.size - decoding.lengths.max()))
  token_B = np.asarray(logits_BV.argmax(-1))
  began = time.perf_counter()
  for _ in range(steps):
    logits_BV = decoding.step(token_B)
  logits_BV.block_until_ready()
  wrote = time.perf_counter() - began
  return {
    'read': sum(map(len, prompts)) / read,
    'write': steps * len(prompts) / wrote if steps else None,
    'cache': decoding.cache.bytes,
  }


def written_hits(model, params, chunk: int) -> Callable:
  """hits(spectrum, batch) -> hit_BL, as posjax.evaluation.tasks.evaluate asks for it, of answers
  that the model writes by itself: what it reads after a token of an answer is its own token."""
  decodings: dict[tuple[int, int], Decoding] = {}

  def hits(spectrum, batch):
    tokens_BL, targets_BL = batch['tokens'], batch['targets']
    B, L = tokens_BL.shape
    if (B, L) not in decodings:
      decodings[B, L] = Decoding(
        model, params, lambda length: spectrum, batch=B, size=L, chunk=chunk
      )
    decoding = decodings[B, L]
    decoding.restart(lambda length: spectrum)  # the program stays
    first_B = (targets_BL >= 0).argmax(axis=1)
    logits_BV = decoding.read([row[: f + 1] for row, f in zip(tokens_BL, first_B, strict=True)])
    rows_B, at_B = np.arange(B), first_B
    last_B = L - 1 - (targets_BL[:, ::-1] >= 0).argmax(axis=1)
    hit_BL, reads_B = np.ones((B, L), np.float32), np.ones(B, bool)
    while reads_B.any():
      token_B = np.asarray(logits_BV.argmax(-1))
      finite_B = np.isfinite(np.asarray(logits_BV)).all(-1)
      target_B = targets_BL[rows_B, at_B]
      asked_B = reads_B & (target_B >= 0)
      right_B = np.where(finite_B, token_B == target_B, np.nan)
      hit_BL[rows_B[asked_B], at_B[asked_B]] = right_B[asked_B]
      reads_B = at_B < last_B
      at_B = at_B + reads_B
      token_B = np.where(asked_B, token_B, tokens_BL[rows_B, at_B])
      logits_BV = decoding.step(token_B, reads_B) if reads_B.any() else logits_BV
    return hit_BL

  return hits
