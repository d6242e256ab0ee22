import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attend import Mask, Rows
from posjax.attention import Layer, position_and_attend

EPS = np.finfo(np.float32).eps


@pytest.fixture
def dims():
  """Sizes of a small model, but for what is given."""
  small = positions.Dims(width=16, heads=2, kv_heads=2, head_width=8, length=64)
  return lambda **sizes: dataclasses.replace(small, **sizes)


@pytest.fixture
def attention():
  """out_LHV of our attention: every hook of the scheme, the operator, the mask."""

  def run(
    scheme, params, spectrum, q_LHK, k_LGK, v_LGV,
    x_LD=None, pos_L=None, segment_L=None, form='dense', mask=Mask(),  # noqa: B008
  ):  # fmt: skip
    L = len(q_LHK)
    one = lambda x: jnp.asarray(x, jnp.float32)[None]
    x_LD = np.zeros((L, 1)) if x_LD is None else x_LD
    pos_L = np.arange(L) if pos_L is None else pos_L
    segment_BL = None if segment_L is None else jnp.asarray(segment_L)[None]
    rows_B = Rows(index_L=jnp.arange(L), pos_L=jnp.asarray(pos_L)[None], segment_L=segment_BL)
    layer = Layer(scheme=scheme, mask=mask)
    program = jax.jit(lambda *arrays: position_and_attend(layer, *arrays, form))
    position = jax.tree.map(jnp.asarray, params), spectrum
    return program(position, one(x_LD), one(q_LHK), one(k_LGK), one(v_LGV), rows_B)[0]

  return run


@pytest.fixture
def weights(attention):
  """p_HIJ of our attention: what it makes of values that are rows of the identity."""

  def run(scheme, params, spectrum, q_LHK, k_LGK, **more):
    L, G = k_LGK.shape[:2]
    v_LGV = np.repeat(np.eye(L)[:, None], G, axis=1)
    out_LHV = attention(scheme, params, spectrum, q_LHK, k_LGK, v_LGV, **more)
    return np.float64(out_LHV).swapaxes(0, 1)

  return run


@pytest.fixture
def softmax():
  """p_HIJ of logits_HIJ, causal, in float64."""

  def run(logits_HIJ):
    I, J = logits_HIJ.shape[1:]
    logits_HIJ = np.where(np.tri(I, J, J - I, dtype=bool), np.float64(logits_HIJ), -np.inf)
    p_HIJ = np.exp(logits_HIJ - logits_HIJ.max(-1, keepdims=True))
    return p_HIJ / p_HIJ.sum(-1, keepdims=True)

  return run
