"""One-hot positions through a fixed random matrix, added to the embedded tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from posjax.positions.base import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class OneHot(Scheme):
  """x[l] += amplitude * W e[pos[l]], where e[n] is the one-hot vector of n and W[d,n] = 1 or -1.

  Were W learned, this would be `learned`: a product with a one-hot vector reads a row of a table.
  So W is random and stays as drawn, and what is learned is how to read it. Random signs keep
  one-hot vectors about orthogonal (Achlioptas 2003, "Database-friendly random projections"): codes
  have length sqrt(D), and angles of cosine 0 give or take 1 / sqrt(D). No two positions are closer
  than any other two; it is the control for schemes that know neighbours.

  Column n is drawn from (seed, n) when it is asked for and stored nowhere, so W has one for each
  integer and no length is refused. But a code that training never met means nothing to the model,
  and between two columns there is nothing: no extension applies.

  amplitude: of each sign, in units of the embedded tokens, which have variance 1 here.
  seed: of W; the same in training and evaluation.
  """

  amplitude: float = 1.0
  seed: int = dataclasses.field(default=0, metadata={'other': 1})

  relative = False

  def embed(self, params, spectrum, x_LD, tokens_L, pos_L):
    seed_key, D = jax.random.key(self.seed), x_LD.shape[-1]
    column = lambda pos: jax.random.rademacher(jax.random.fold_in(seed_key, pos), (D,), jnp.float32)
    return x_LD + (self.amplitude * jax.vmap(column)(pos_L)).astype(x_LD.dtype)
