"""xPos against torchscale, of its authors, and x-transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions

EPS = np.finfo(np.float32).eps
NAMES = ['xpos-torchscale', 'xpos-x-transformers']


def half_split(x_LK):
  """Pairs (2k, 2k + 1) as pairs (k, k + K/2)."""
  return np.concatenate([x_LK[:, 0::2], x_LK[:, 1::2]], axis=1)


def theta_of(case):
  return getattr(case, 'theta', 10_000)  # torchscale has no other


def ours(case, dims):
  scheme = positions.make('xpos', theta=theta_of(case), scale_base=case.scale_base)
  spectrum, pos_L = scheme.spectrum(dims(head_width=8)), jnp.asarray(case.pos_L)
  one_head = lambda x_LK: jnp.asarray(half_split(x_LK), jnp.float32)[:, None]
  q_LK = jax.jit(scheme.query)({}, spectrum, one_head(case.q_LK), pos_L)[:, 0]
  k_LK = jax.jit(scheme.key)({}, spectrum, one_head(case.k_LK), pos_L)[:, 0]
  return np.float64(q_LK) @ np.float64(k_LK).T


def formula(case, *, gamma=0.4, sign=1, exponents=8, scale_base=None, paired=half_split):
  """Scores from distances alone, in float64; and their size without rotation."""
  F = np.arange(4)
  zeta_F = (F / 4 + gamma) / (1 + gamma)
  r_IJ1 = (case.pos_L[:, None] - case.pos_L)[..., None]
  fade_IJF = zeta_F ** (sign * r_IJ1 / (scale_base or case.scale_base))
  complex_of = lambda x_LK: paired(x_LK) @ np.kron([[1], [1j]], np.eye(4))
  q_LF, k_LF = complex_of(case.q_LK), complex_of(case.k_LK)
  product_IJF = q_LF[:, None] * k_LF.conj()[None]
  turn_IJF = np.exp(1j * r_IJ1 * float(theta_of(case)) ** (-2 * F / exponents))
  return (product_IJF * fade_IJF * turn_IJF).real.sum(-1), (abs(product_IJF) * fade_IJF).sum(-1)


def same(s_IJ, case):
  """Where the key is not ahead. Angles and exponents of up to pos, rounded, on both sides."""
  size_IJ = formula(case)[1]
  bound_IJ = 8 * EPS * (20 + case.pos_L)[:, None] * size_IJ
  return (np.tril(np.abs(s_IJ - case.s_IJ)) <= bound_IJ).all()


@pytest.mark.parametrize('name', NAMES)
def test_scores_are_those_of_the_reference(published, dims, name):
  for case in published(name).cases:
    assert same(ours(case, dims), case)
    assert same(formula(case)[0], case)


@pytest.mark.parametrize(
  'wrong',
  [
    {'sign': -1}, {'sign': 0}, {'gamma': 0.2}, {'exponents': 16}, {'scale_base': 256},
    {'paired': lambda x_LK: x_LK},
  ],
  ids=lambda wrong: next(iter(wrong)),
)  # fmt: skip
@pytest.mark.parametrize('name', NAMES)
def test_known_mistakes_do_not_give_these_scores(published, name, wrong):
  """Queries that grow, no fading, another gamma, RoPE's exponents, another unit, pairs mixed up."""
  for case in published(name).cases:
    assert not same(formula(case, **wrong)[0], case)
