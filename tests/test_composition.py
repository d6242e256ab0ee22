"""Several schemes as one: what is true of combining itself. The contract tests run on the
combinations of the configs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posjax import composition, positions
from posjax.attend import Rows, Tile
from posjax.extension import METHODS, applicable, extend
from posjax.positions import Dims

DIMS = Dims(width=16, heads=4, kv_heads=2, head_width=8, length=32)
L = 9


def together(*names):
  parts = tuple({'name': name} if isinstance(name, str) else name for name in names)
  return composition.make({'name': 'together', 'parts': parts})


def heads(*parts):
  return composition.make({'name': 'heads', 'parts': parts})


def rows(features=None):
  return Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L), features_L=features)


def bias(scheme, params, spectrum, x_LD, H=4):
  """What the scheme adds to logits of zero, with features of its own."""
  q_LHK, k_LGK = jnp.ones((L, H, 8)), jnp.ones((L, H // 2, 8))
  fq, fk = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows())
  return scheme.score(params, spectrum, jnp.zeros((H, L, L)), Tile(rows(fq), rows(fk)))


def drawn(scheme, dims=DIMS):
  params = scheme.parameters(jax.random.key(0), dims)
  return jax.tree.map(lambda x: x + 0.1, params), scheme.spectrum(dims)


def test_a_name_alone_is_the_scheme_itself():
  assert composition.make({'name': 'rope', 'theta': 500.0}) == positions.make('rope', theta=500.0)


def test_a_label_says_how_parts_stand_together():
  rope, fox = {'name': 'rope'}, {'name': 'fox'}
  assert composition.label(rope) == 'rope'
  assert composition.label({'name': 'together', 'parts': (rope, fox)}) == 'rope + fox'
  assert composition.label({'name': 'heads', 'parts': (rope, fox)}) == 'rope | fox'


def test_biases_add_up_and_content_is_turned(rng):
  x_LD = jnp.asarray(rng.normal(size=(L, 16)), jnp.float32)
  scheme = together('rope', 'alibi', 'fox')
  params, spectrum = drawn(scheme)
  alone = [positions.make(name) for name in ('alibi', 'fox')]
  expected = sum(
    bias(part, params.get(f'part_{n + 1}', {}), spectrum[n + 1], x_LD)
    for n, part in enumerate(alone)
  )
  np.testing.assert_allclose(bias(scheme, params, spectrum, x_LD), expected, atol=1e-5)
  q_LHK = jnp.asarray(rng.normal(size=(L, 4, 8)), jnp.float32)
  turned = positions.make('rope').query({}, spectrum[0], q_LHK, jnp.arange(L))
  np.testing.assert_array_equal(scheme.query(params, spectrum, q_LHK, jnp.arange(L)), turned)


@pytest.mark.slow
def test_logits_computed_anew_are_those_of_queries_as_other_parts_leave_them(rng):
  """The temperature of a query multiplies its logits once, wherever its part stands."""
  x_LD, q_LHK, k_LGK = (
    jnp.asarray(rng.normal(size=(L, *n)), jnp.float32) for n in ((16,), (4, 8), (2, 8))
  )
  path, tempered = {'name': 'path'}, {'name': 'tempered', 'period': 2}
  own, gates = (drawn(positions.make(name))[0] for name in ('path', 'fox'))

  def logits(scheme, params):
    spectrum = scheme.spectrum(DIMS)
    fq, fk = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows())
    state = scheme.start(params, spectrum, rows(fq))
    key = rows(scheme.prepare(params, spectrum, rows(fk), L))
    return scheme.walk(params, spectrum, jnp.zeros((4, L, L)), Tile(rows(fq), key), state)[0]

  factor_L = 1 + 0.1 * np.log1p((np.arange(L) + 1) // 2)
  expected_HIJ = factor_L[:, None] * logits(positions.make('path'), own)
  inner = {'name': 'together', 'parts': (path, tempered)}
  for scheme, params in (
    (together(path, tempered), {'part_0': own}),
    (together(tempered, path), {'part_1': own}),
    (together('fox', inner), {'part_0': gates, 'part_1': {'part_0': own}}),
  ):
    np.testing.assert_allclose(logits(scheme, params), expected_HIJ, atol=1e-5)


def test_a_part_with_heads_of_its_own_may_turn_them_beside_one_that_computes_logits_anew():
  halves = {'name': 'heads', 'parts': ({'name': 'path'}, {'name': 'rope'})}
  assert together(halves, 'alibi').replaces_logits


def test_heads_of_their_own_get_what_each_scheme_gives_that_many_heads(rng):
  """3 : 1 of 8 heads: ALiBi's slopes are those of 6 heads, and the other 2 are not touched."""
  dims = dataclasses.replace(DIMS, heads=8, kv_heads=4)
  scheme = heads({'name': 'alibi', 'share': 3}, {'name': 'rope', 'share': 1})
  params, spectrum = drawn(scheme, dims)
  six = dataclasses.replace(dims, heads=6, kv_heads=3)
  np.testing.assert_array_equal(spectrum[0].slope_H, positions.make('alibi').spectrum(six).slope_H)
  got_HIJ = bias(scheme, params, spectrum, jnp.ones((L, 16)), H=8)
  i, j = np.indices((L, L))
  np.testing.assert_allclose(got_HIJ[:6], -spectrum[0].slope_H[:, None, None] * (i - j), rtol=1e-6)
  np.testing.assert_array_equal(got_HIJ[6:], 0)
  q_LHK = jnp.asarray(rng.normal(size=(L, 8, 8)), jnp.float32)
  turned = scheme.query(params, spectrum, q_LHK, jnp.arange(L))
  np.testing.assert_array_equal(turned[:, :6], q_LHK[:, :6])
  assert np.abs(turned[:, 6:] - q_LHK[:, 6:]).max() > 0.1
  k_LGK = jnp.asarray(rng.normal(size=(L, 4, 8)), jnp.float32)
  turned = scheme.key(params, spectrum, k_LGK, jnp.arange(L))
  np.testing.assert_array_equal(turned[:, :3], k_LGK[:, :3])
  assert np.abs(turned[:, 3:] - k_LGK[:, 3:]).max() > 0.1


def test_narrower_heads_are_filled_with_zeros_that_leave_their_products_alone(rng):
  """PoPE doubles its heads; those without positions keep q . k."""
  scheme = heads({'name': 'pope'}, {'name': 'none'})
  params, spectrum = drawn(scheme)
  q_LHK = jnp.asarray(rng.normal(size=(L, 4, 8)), jnp.float32)
  k_LGK = jnp.asarray(rng.normal(size=(L, 2, 8)), jnp.float32)
  q, k = (
    hook(params, spectrum, x, jnp.arange(L))
    for hook, x in ((scheme.query, q_LHK), (scheme.key, k_LGK))
  )
  assert q.shape == (L, 4, 16) and k.shape == (L, 2, 16)
  np.testing.assert_allclose(
    jnp.einsum('ihk,jk->hij', q[:, 2:], k[:, 1]),
    jnp.einsum('ihk,jk->hij', q_LHK[:, 2:], k_LGK[:, 1]),
    rtol=1e-5,
  )


def test_an_extension_changes_the_parts_it_makes_sense_for():
  spectrum = together('rope', 'fox', 'tempered').spectrum(DIMS)
  assert applicable(spectrum) == list(METHODS)  # for its first part all make sense
  linear = extend(spectrum, name='linear', factor=4.0, trained_length=8)
  np.testing.assert_allclose(linear[0].frequency_F * 4, spectrum[0].frequency_F)
  assert linear[1] is spectrum[1]
  assert linear[2].rate == spectrum[2].rate / 4
  ntk = extend(spectrum, name='ntk', factor=4.0, trained_length=8)
  assert ntk[0].frequency_F[-1] == pytest.approx(spectrum[0].frequency_F[-1] / 4)
  assert ntk[2] is spectrum[2]
  with pytest.raises(ValueError, match='makes no sense here'):
    extend(together('fox', 'alibi').spectrum(DIMS), name='ntk', factor=4.0, trained_length=8)


def test_a_temperature_multiplies_the_logits_of_all_parts_or_of_its_own_heads():
  warm = lambda spectrum: (dataclasses.replace(spectrum[0], temperature=1.5), spectrum[1])
  both, halves = together('rope', 'alibi'), heads({'name': 'rope'}, {'name': 'alibi'})
  assert both.temperature(warm(both.spectrum(DIMS)), 4) == 1.5
  got_H = halves.temperature(warm(halves.spectrum(DIMS)), 4)
  np.testing.assert_array_equal(got_H, np.float32([1.5, 1.5, 1, 1]))


def test_the_fewest_positions_of_a_part_are_all_there_are():
  scheme = together({'name': 'learned', 'length': 12}, 'alibi')
  assert scheme.capacity(scheme.spectrum(DIMS), DIMS) == 12


def test_a_whole_is_relative_if_every_part_is():
  assert together('rope', 'alibi').relative and not together('learned', 'alibi').relative
  assert together('rope', 'fox').reads_positions


@pytest.mark.parametrize(
  ('names', 'text'),
  [
    (('learned', 'sinusoidal'), 'Learned and Sinusoidal make no sense together: two add a vector'),
    (('rope', 'xpos'), 'two turn the keys'),
    (('rope', 'none'), 'one does nothing'),
    (('alibi', 'alibi'), 'the same scheme twice'),
    (('path', 'rope'), 'one computes logits from keys as projected'),
    (
      ('rope', {'name': 'together', 'parts': ({'name': 'path'}, {'name': 'fox'})}),
      'one computes logits from keys as projected',
    ),
  ],
)
def test_combinations_that_make_no_sense_are_refused(names, text):
  with pytest.raises(ValueError, match=text):
    together(*names)


def test_a_scheme_at_the_input_cannot_have_heads_of_its_own():
  with pytest.raises(ValueError, match=r"acts on the input, which all heads share.*'together'"):
    heads({'name': 'learned'}, {'name': 'rope'})


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'name': 'together', 'parts': ({'name': 'rope'},)}, 'two or more, and no more: not 1 parts'),
    ({'name': 'heads'}, 'two or more, and no more: not 0 parts'),
    (
      {'name': 'together', 'parts': ({'name': 'rope'}, {'name': 'fox'}), 'theta': 1.0},
      "two or more, and no more: not 'theta'",
    ),
    ({'name': 'together', 'parts': ({'name': 'rope'}, {'name': 'foxx'})}, "Did you mean 'fox'"),
    (
      {'name': 'together', 'parts': ({'name': 'rope', 'share': 2}, {'name': 'fox'})},
      "Position scheme 'rope' has no 'share'",
    ),
    ({'name': 'heads', 'parts': ({'name': 'rope', 'share': 0}, {'name': 'fox'})}, 'shares of'),
  ],
)
def test_settings_that_are_not_understood_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    composition.make(settings)


def test_heads_that_cannot_be_shared_out_are_refused():
  scheme = heads({'name': 'rope', 'share': 2}, {'name': 'none', 'share': 1})
  with pytest.raises(ValueError, match='4 heads cannot be shared out 2 : 1'):
    scheme.spectrum(DIMS)
