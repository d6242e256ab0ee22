import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.loss import counted, token_hits, token_losses

B, L, V, D = 2, 11, 13, 8


@functools.cache
def small():
  model = Decoder(
    pattern=(Layer(scheme=positions.Scheme()),), length=L, vocabulary=V, width=D, layers=1, heads=2,
    kv_heads=1, head_width=4, mlp_width=8, attention='dense', dtype='float32',
  )
  rng = np.random.default_rng(1)
  batch = {
    'tokens': jnp.asarray(rng.integers(V, size=(B, L))),
    'targets': jnp.asarray(rng.integers(V, size=(B, L))),
    'positions': jnp.asarray([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5], [*range(8), 0, 1, 2]]),
    'segments': jnp.asarray([[1] * 5 + [2] * 6, [1] * 8 + [0] * 3]),
  }
  params = jax.jit(model.init)(jax.random.key(0), batch['tokens'], model.spectrum())['params']
  return types.SimpleNamespace(model=model, params=params, spectrum=model.spectrum(), batch=batch)


def test_the_loss_is_the_negative_log_likelihood_and_padding_has_none(tolerance):
  s = small()
  logits_BLV = np.float64(
    jax.jit(s.model.apply)(
      {'params': s.params}, s.batch['tokens'], s.spectrum, s.batch['positions'], s.batch['segments']
    )
  )
  run = jax.jit(lambda params, batch: token_losses(s.model, params, s.spectrum, batch))
  loss_BL, log_z_BL = run(s.params, s.batch)
  for b in range(B):
    for l in range(L):
      log_z = np.log(sum(np.exp(logits_BLV[b, l, v]) for v in range(V)))
      loss = log_z - logits_BLV[b, l, s.batch['targets'][b, l]]
      counts = s.batch['segments'][b, l] > 0
      assert abs(loss_BL[b, l] - (loss if counts else 0)) < tolerance(V)
      assert abs(log_z_BL[b, l] - (log_z if counts else 0)) < tolerance(V)
  assert (np.asarray(loss_BL)[1, 8:] == 0).all()
  assert (np.asarray(loss_BL)[1, :8] > 0).all()


@functools.cache
def values_and_gradients(chunk):
  s = small()
  weight_BL = jnp.asarray(np.random.default_rng(2).normal(size=(B, L)))

  def total(params):
    loss_BL, log_z_BL = token_losses(s.model, params, s.spectrum, s.batch, chunk=chunk)
    return jnp.sum(weight_BL * (loss_BL + 0.1 * log_z_BL**2)), (loss_BL, log_z_BL)

  return jax.tree.leaves(jax.jit(jax.value_and_grad(total, has_aux=True))(s.params))


@pytest.mark.parametrize('chunk', [1, 2 * 4, 2 * 6, 1000])
def test_chunks_change_neither_values_nor_gradients(chunk, tolerance):
  whole = values_and_gradients(B * L)
  for ours, theirs in zip(values_and_gradients(chunk), whole, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=tolerance(B * L))


def test_the_logits_of_a_whole_batch_never_exist_at_once():
  s = small()
  def largest(chunk):
    return max(
      np.prod(shape) for shape in shapes(
        jax.make_jaxpr(
          jax.grad(lambda p: token_losses(s.model, p, s.spectrum, s.batch, chunk=chunk)[0].sum())
        )(s.params).jaxpr
      ) if shape[-1:] == (V,) and len(shape) > 2
    )
  assert largest(2 * 4) == B * 4 * V
  assert largest(1000) == B * L * V


def shapes(jaxpr):
  """Shapes of all arrays of a program, those of its inner programs included."""
  for equation in jaxpr.eqns:
    yield from (v.aval.shape for v in equation.outvars if hasattr(v.aval, 'shape'))
    for inner in jax.tree.leaves(
      list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
    ):
      inner = getattr(inner, 'jaxpr', inner)
      if hasattr(inner, 'eqns'):
        yield from shapes(inner)


def test_without_segments_every_target_counts():
  s = small()
  run = jax.jit(lambda params, batch: token_losses(s.model, params, s.spectrum, batch))
  loss_BL, _ = run(s.params, {**s.batch, 'segments': None})
  assert (np.asarray(loss_BL) > 0).all()


def hidden_targets():
  """Targets, some of which are only to be read; one of them is padding, too."""
  targets_BL = np.array(small().batch['targets'])
  targets_BL[0, [0, 4, 9]] = targets_BL[1, [2, 8]] = -1
  return {**small().batch, 'targets': jnp.asarray(targets_BL)}


@pytest.mark.parametrize('chunk', [None, 2 * 4])
def test_targets_that_are_only_read_have_no_loss_and_leave_the_others_theirs(chunk, tolerance):
  s, batch = small(), hidden_targets()
  run = jax.jit(lambda batch: token_losses(s.model, s.params, s.spectrum, batch, chunk=chunk))
  skipped_BL = np.asarray(batch['targets']) < 0
  for ours_BL, all_BL in zip(run(batch), run(s.batch), strict=True):
    np.testing.assert_allclose(ours_BL, np.where(skipped_BL, 0, all_BL), atol=tolerance(V))
  counted_BL = np.asarray(counted(batch))
  assert counted_BL.sum() == 11 + 8 - 4  # the fifth is padding
  np.testing.assert_array_equal(counted_BL, np.asarray(run(batch)[0]) > 0)


@pytest.mark.parametrize('chunk', [None, 2 * 4])
def test_hits_are_where_the_likeliest_token_is_the_target(chunk):
  s, batch = small(), hidden_targets()
  logits_BLV = np.asarray(
    jax.jit(s.model.apply)(
      {'params': s.params}, batch['tokens'], s.spectrum, batch['positions'], batch['segments']
    )
  )
  # Every second target is the likeliest token: random ones hardly ever are.
  targets_BL = np.asarray(batch['targets'])
  told_BL = np.where(np.arange(L) % 2 == 0, logits_BLV.argmax(-1), targets_BL)
  told_BL = np.where(targets_BL < 0, -1, told_BL)
  run = jax.jit(lambda batch: token_hits(s.model, s.params, s.spectrum, batch, chunk=chunk))
  hit_BL = np.asarray(run({**batch, 'targets': jnp.asarray(told_BL)}))
  counted_BL = (told_BL >= 0) & (np.asarray(batch['segments']) > 0)
  np.testing.assert_array_equal(hit_BL, ~counted_BL | (told_BL == logits_BLV.argmax(-1)))
  assert 0.4 < hit_BL[counted_BL].mean() < 0.9


def test_what_has_no_logits_is_neither_right_nor_wrong():
  s = small()
  broken = jax.tree.map(lambda x: x * jnp.nan, s.params)
  hit_BL = jax.jit(lambda p: token_hits(s.model, p, s.spectrum, hidden_targets()))(broken)
  np.testing.assert_array_equal(np.isnan(hit_BL), counted(hidden_targets()))
