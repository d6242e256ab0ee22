"""Text that a model writes: which token comes next, when to stop, and how it is shown.

Letters: B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Collection, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from posjax.decoding import Decoding

NONE = -1  # in the place of a token, where a row has ended


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
  """How the next token is drawn from its logits.

  temperature: they are divided by it; 0 takes the likeliest token.
  top_k: only so many likeliest tokens are left; None: all.
  top_p: only the likeliest tokens whose probabilities come to `top_p` together, the one that passes
    it included (Holtzman et al. 2019, arXiv:1904.09751, sec. 3.1); after temperature and top_k.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(f'A temperature of {self.temperature} cannot be. Use 0 (greedy) or more.')
    if self.top_k is not None and self.top_k < 1:
      raise ValueError(f'top_k = {self.top_k} leaves no token. Use top_k >= 1, or None for all.')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p = {self.top_p} is no probability. Use 0 < top_p <= 1.')

  def left(self, logits_BV: jax.Array) -> jax.Array:
    """Logits of what may be drawn, the largest 0, divided by the temperature; -inf for the rest."""
    V = logits_BV.shape[-1]
    logits_BV = logits_BV.astype(jnp.float32)
    # The largest stays finite at any temperature, of which none rounds to 0.
    logits_BV -= logits_BV.max(axis=-1, keepdims=True)
    logits_BV /= max(self.temperature, float(jnp.finfo(jnp.float32).tiny))
    if self.top_k is None and self.top_p == 1:
      return logits_BV
    order_BV = jnp.argsort(-logits_BV, axis=-1)  # equal ones in the order of their ids
    sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
    if self.top_k is not None:
      sorted_BV = jnp.where(jnp.arange(V) < self.top_k, sorted_BV, -jnp.inf)
    if self.top_p < 1:  # sums of many tokens pass 1 before the last one
      p_BV = jax.nn.softmax(sorted_BV, axis=-1)
      before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
      sorted_BV = jnp.where(before_BV < self.top_p, sorted_BV, -jnp.inf)
    return jnp.take_along_axis(sorted_BV, jnp.argsort(order_BV, axis=-1), axis=-1)

  def draw(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """token_B, int32."""
    if self.temperature == 0:
      return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, self.left(logits_BV)).astype(jnp.int32)


def generate(
  decoding: Decoding,
  prompts: Sequence[Sequence[int]],
  *,
  new: int,
  sampler: Sampler = Sampler(temperature=0.0),
  stop: Collection[int] = (),
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yields token_B, up to `new` times, as each is drawn; NONE for rows that have ended.

  Args:
    decoding: of as many rows as there are prompts, and with room for them and `new` tokens.
    stop: tokens that end a row; they are yielded, too.
    seed: of the draws; row and step decide the rest.

  Raises ValueError if the cache is too short, or what `Decoding.read` raises, before anything is
  read; and if new < 1.
  """
  if new < 1:
    raise ValueError(f'{new} new tokens leave nothing to write. Use new >= 1.')
  decoding.check(prompts)
  longest = int(max(decoding.lengths + [len(prompt) for prompt in prompts]))
  if longest + new - 1 > decoding.size:
    raise ValueError(
      f'A prompt of {longest} tokens and {new} new ones need {longest + new - 1} places, the cache '
      f'has {decoding.size}. Use size >= {longest + new - 1}, or fewer tokens.'
    )
  draw, key = jax.jit(sampler.draw), jax.random.key(seed)
  ended_B = np.zeros(len(prompts), bool)
  logits_BV = decoding.read(prompts)
  for n in range(new):
    token_B = np.asarray(draw(logits_BV, jax.random.fold_in(key, n)))
    yield np.where(ended_B, NONE, token_B)
    ended_B |= np.isin(token_B, list(stop))
    if ended_B.all() or n == new - 1:
      return
    logits_BV = decoding.step(token_B, ~ended_B)


class Stream:
  """Text as it grows, by one token at a time: only what later tokens cannot change."""

  def __init__(self, decode, prompt: Sequence[int] = ()):
    """decode: ids to text (`Tokenizer.decode`). prompt: read before, and not shown, but for a
    character that it begins and what follows ends."""
    self._decode, self._ids = decode, [int(id) for id in prompt]
    self._shown = len(decode(self._ids).rstrip('\ufffd'))

  def add(self, token: int) -> str:
    """What the token adds to the text; a character whose bytes are not all there yet waits."""
    self._ids.append(int(token))
    text = self._decode(self._ids)
    if text.endswith('\ufffd'):
      return ''
    new, self._shown = text[self._shown :], max(self._shown, len(text))
    return new

  def end(self) -> str:
    """What was waiting."""
    text = self._decode(self._ids)
    return text[self._shown :]
