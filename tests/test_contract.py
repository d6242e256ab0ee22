"""What every scheme promises. None is named: whatever stands in posjax/positions/ is held to it,
and so are schemes made of several, as the configs combine them.

A hyperparameter that cannot be doubled, halved or flipped says what else to try in its field's
metadata: {'other': value}; one that matters from so many tokens on, {'from': tokens}.
"""

import dataclasses
import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import first_of_each_kind

from posjax import composition, positions
from posjax.attend import Logits, Mask, Rows, Tile, dense, tiled
from posjax.attention import Layer, scored
from posjax.config import load
from posjax.decoder import Decoder, init_params
from posjax.evaluation.attention import look
from posjax.extension import METHODS, applicable, each, extend, takes
from posjax.positions import Dims, Scheme


def combined():
  """The combinations of all configs, by the config's path."""
  found = {}
  for file in sorted(Path(__file__).parents[1].glob('configs/*.py')):
    if file.stem != '__init__' and 'parts' in (position := load(f'configs/{file.name}').position):
      found[f'configs/{file.name}'] = position
  return found


ALONE = positions.names()
COMBINED = combined()
NAMES = [*ALONE, *COMBINED]
ALWAYS = (*ALONE, 'configs/rope_fox.py')  # the first of the combinations
EACH = [pytest.param(n, marks=[pytest.mark.slow] * (n not in ALWAYS)) for n in NAMES]
EPS = float(jnp.finfo(jnp.float32).eps)
HOOKS = ('embed', 'query', 'key', 'score', 'walk', 'read')
B, L, V, FIRST = 3, 20, 64, 40  # tokens from FIRST on: digits are among them
LENGTH = 64  # positions a scheme must offer; rows are shorter
DIMS = Dims(width=16, heads=4, kv_heads=2, head_width=8, length=LENGTH)


@functools.cache
def make(name):
  return composition.make(COMBINED.get(name, {'name': name}))


def needs(method):
  """Settings without a default."""
  return {key for key, p in takes(method).items() if p.default is p.empty}


# Every scheme with the classics; other ways of stretching the same waves with one scheme.
CLASSIC = ('none', 'linear', 'ntk', 'yarn')
PAIRS = [
  pytest.param(
    name,
    method,
    marks=[pytest.mark.slow] * (name not in ALWAYS or (method not in CLASSIC and name != 'rope')),
  )
  for name in NAMES
  for method in applicable(make(name).spectrum(DIMS))
  if method == 'none' or needs(method) == {'factor', 'trained_length'}
]


def decoder(scheme, **changes):
  settings = {
    'length': LENGTH, 'vocabulary': V, 'width': 16, 'layers': 2, 'heads': 4, 'kv_heads': 2,
    'head_width': 8, 'mlp_width': 16, 'attention': 'tiled', 'dtype': 'float32', **changes,
  }  # fmt: skip
  return Decoder(pattern=(Layer(scheme=scheme),), **settings)


def shapes_of(model):
  return jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))


def as_arrays(spectrum):
  return jax.tree.map(np.float32, spectrum)


def excited(tree):
  """Adds noise, so that parameters which start at zero, or small, take part."""
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: x + jnp.float32(0.3 * rng.normal(size=x.shape)), tree)


def learned(scheme, dims):
  return excited(scheme.parameters(jax.random.key(0), dims))


def settings_of(method, factor=4.0):
  return {} if method == 'none' else {'factor': factor, 'trained_length': 16}


@functools.cache
def small(name):
  """A decoder, random parameters and one compiled function, `run`."""
  model = decoder(make(name))
  spectrum = model.spectrum()
  tokens_BL = np.stack([np.random.default_rng(b).permutation(np.r_[FIRST:V])[:L] for b in range(B)])
  params = excited(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(model)))

  @jax.jit
  def logits(params, spectrum, tokens_BL, positions_BL, segments_BL):
    return model.apply({'params': params}, tokens_BL, spectrum, positions_BL, segments_BL)

  count_BL, one_BL = np.tile(np.arange(L), (B, 1)), np.ones((B, L), int)

  def run(spectrum=spectrum, tokens=tokens_BL, pos=count_BL, seg=one_BL):
    return np.asarray(logits(params, spectrum, tokens, pos, seg))

  return types.SimpleNamespace(
    model=model, scheme=make(name), spectrum=spectrum, tokens=tokens_BL, count=count_BL, run=run,
    programs=logits._cache_size,
  )  # fmt: skip


def rounding(pos, logits_BLV):
  """Largest error of logits: their size times the rounding of sums, and of angles up to pos."""
  return np.abs(logits_BLV).max() * EPS * 64 * (8 + np.max(pos))


@pytest.mark.parametrize('name', EACH)
def test_no_token_depends_on_a_later_one_and_each_depends_on_every_earlier_one(name):
  """By gradient, exactly: of the output at each token to the vector of each token."""
  scheme, rng = make(name), np.random.default_rng(4)
  params = learned(scheme, DIMS)
  run = layer(scheme, dense, Mask(), False, None, DIMS)
  x_LD = jnp.asarray(rng.normal(size=(L, 16)), jnp.float32)
  w_HK = rng.normal(size=(4, 8))

  @jax.jit
  @jax.jacrev
  def slope(x_LD):
    out_LHK = run(params, scheme.spectrum(DIMS), x_LD, jnp.arange(L))
    return jnp.einsum('lhk,hk->l', out_LHK, w_HK)

  reach_LL = np.abs(np.asarray(slope(x_LD))).max(-1)
  assert (np.triu(reach_LL, 1) == 0).all()
  assert (reach_LL[np.tril_indices(L)] > 0).all()


@pytest.mark.parametrize('name', EACH)
def test_a_shift_of_all_positions_changes_what_is_not_relative_and_only_that(name):
  s = small(name)
  here, there = s.run(), s.run(pos=s.count + 40)
  change = np.abs(here - there).max()
  if s.scheme.relative:
    assert change <= rounding(60, here)
  else:
    assert change > 1e-3


@pytest.mark.parametrize('name', EACH)
def test_positions_are_read_per_row(name):
  s = small(name)
  mixed = s.run(pos=np.stack([s.count[0], s.count[1] * 3, s.count[2] + 40]))
  apart = [s.run(), s.run(pos=s.count * 3), s.run(pos=s.count + 40)]
  for b in range(B):
    np.testing.assert_allclose(mixed[b], apart[b][b], atol=rounding(0, mixed))
  if acts(s.scheme) and s.scheme.reads_positions:
    assert np.abs(apart[1] - apart[0])[1].max() > 1e-3
  else:
    np.testing.assert_array_equal(apart[1], apart[0])


@pytest.mark.parametrize('name', EACH)
def test_a_packed_document_has_the_logits_it_has_alone(name):
  s = small(name)
  a, b = s.tokens[0, :9], s.tokens[1, :8]  # two documents; what fills a row is padding
  rows_BN = [a, b], [a], [b]

  def fill(row, padding):
    return np.r_[(*row, padding[: L - sum(map(len, row))])]

  tokens_BL = np.stack([fill(row, s.tokens[2]) for row in rows_BN])
  pos_BL = np.stack([fill([np.arange(len(x)) for x in row], np.arange(L)) for row in rows_BN])
  segments_BL = np.stack([
    fill([np.full(len(x), n + 1) for n, x in enumerate(row)], np.zeros(L, int)) for row in rows_BN
  ])
  logits_BLV = s.run(tokens=tokens_BL, pos=pos_BL, seg=segments_BL)
  atol = rounding(0, logits_BLV)
  np.testing.assert_allclose(logits_BLV[0, :9], logits_BLV[1, :9], atol=atol)
  np.testing.assert_allclose(logits_BLV[0, 9:17], logits_BLV[2, :8], atol=atol)
  leaky_BLV = s.run(tokens=tokens_BL, pos=pos_BL, seg=np.ones_like(segments_BL))
  assert np.abs(leaky_BLV[0, 9:17] - logits_BLV[2, :8]).max() > 1e-2


def acts(scheme):
  return any(scheme.overrides(hook) for hook in HOOKS)


def layer(scheme, form, mask, contiguous, segment_L, dims, watch=None):
  """One attention layer on one sequence by hand: run(params, spectrum, x_LD, pos_L) -> out_LHK."""
  H, G, K, D = dims.heads, dims.kv_heads, dims.head_width, dims.width
  rng = np.random.default_rng(3)
  project = [jnp.asarray(rng.normal(size=(D, n, K)) / D**0.5, jnp.float32) for n in (H, G, G)]
  logits = scored(Logits(scale=K**-0.5, mask=mask), scheme)
  if watch is not None:

    def score(params, spectrum, s_HIJ, tile):
      out_HIJ = scheme.score(params, spectrum, s_HIJ, tile)
      watch.extend([s_HIJ.dtype, out_HIJ.dtype])
      return out_HIJ

    def walk(params, spectrum, s_HIJ, tile, state):
      out_HIJ, state = scheme.walk(params, spectrum, s_HIJ, tile, state)
      watch.extend([out_HIJ.dtype, *(x.dtype for x in jax.tree.leaves(state))])
      return out_HIJ, state

    logits = dataclasses.replace(logits, score=score, walk=walk, start=scheme.start)

  def run(params, spectrum, x_LD, pos_L):
    tokens_L = FIRST + jnp.arange(len(x_LD)) % (V - FIRST)
    x_LD = scheme.embed(params, spectrum, x_LD, tokens_L, pos_L)
    q_LHK, k_LGK, v_LGK = (jnp.einsum('ld,dhk->lhk', x_LD, w.astype(x_LD.dtype)) for w in project)
    rows = Rows(
      index_L=jnp.arange(len(x_LD)), pos_L=pos_L, segment_L=segment_L, contiguous=contiguous
    )
    fq, fk = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows)
    return form(
      scheme.query(params, spectrum, q_LHK, pos_L),
      scheme.key(params, spectrum, k_LGK, pos_L),
      v_LGK,
      dataclasses.replace(rows, features_L=fq),
      dataclasses.replace(rows, features_L=fk),
      logits,
      scheme.temperature(spectrum, H),
      () if logits.plain else (params, spectrum),
    )

  return run


LAYERS = {  # key/value heads, window, promise of contiguous positions, tile, documents
  'heads of their own': (4, None, True, (7, 5), True),
  'groups, windowed': (2, 6, False, (5, 8), True),
  'one key head, windowed': (1, 7, True, (4, 6), False),
}


FAST, *REST = LAYERS


@pytest.mark.parametrize('case', [FAST, *(pytest.param(c, marks=pytest.mark.slow) for c in REST)])
@pytest.mark.parametrize('name', EACH)
def test_tiles_give_the_values_and_gradients_of_the_definition(name, case):
  """To inputs, learned parameters and every number of the spectrum. The definition is never told
  that positions are contiguous: the promise must not matter where it is kept."""
  if isinstance(make(name), composition.Heads) and LAYERS[case][0] == 1:
    with pytest.raises(ValueError, match='1 heads cannot be shared out 1 : 1'):
      tiles_and_definition(name, case)
    return  # two schemes of one key head: there is no such layer
  ours, theirs = tiles_and_definition(name, case)
  for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    size = max(1, float(jnp.abs(expected).max()))
    np.testing.assert_allclose(got, expected, atol=size * 64 * 23**0.5 * EPS)


@functools.cache
def tiles_and_definition(name, case):
  kv_heads, window, contiguous, sizes, packed = LAYERS[case]
  dims = dataclasses.replace(DIMS, kv_heads=kv_heads)
  scheme, rng = make(name), np.random.default_rng(4)
  params = learned(scheme, dims)
  warm = lambda one: dataclasses.replace(one, temperature=jnp.float32(1.2))
  spectrum = each(warm, as_arrays(scheme.spectrum(dims)))
  x_LD, w_LHK = rng.normal(size=(23, 16)), rng.normal(size=(23, 4, 8))
  segment_L = jnp.asarray(np.repeat([1, 2, 0], [12, 8, 3])) if packed else None
  pos_L = jnp.asarray(np.r_[:12, :8, :3] if packed else np.r_[5:28])
  arguments = params, spectrum, jnp.float32(x_LD)

  def result(form, contiguous):
    run = layer(scheme, form, Mask(window=window), contiguous, segment_L, dims)
    out_LHK, pull = jax.vjp(lambda *arguments: run(*arguments, pos_L), *arguments)
    return out_LHK, pull(jnp.float32(w_LHK))

  tiles = functools.partial(tiled, sizes=sizes)
  return jax.jit(lambda: (result(tiles, contiguous), result(dense, False)))()


@pytest.mark.parametrize('name', EACH)
def test_every_learned_parameter_gets_a_gradient(name):
  (_, (params, spectrum, x_LD)), _ = tiles_and_definition(name, 'heads of their own')
  for path, grad in jax.tree_util.tree_leaves_with_path((params, spectrum, x_LD)):
    assert np.isfinite(grad).all(), path
  for path, grad in jax.tree_util.tree_leaves_with_path(params):
    assert np.abs(grad).max() > 0, path


def other_values(field, value):
  if 'other' in field.metadata:
    return [field.metadata['other']]
  if isinstance(value, bool):
    return [not value]
  if isinstance(value, int):
    return [2 * value]
  if isinstance(value, float):
    return [value * 0.5]
  if value is None and str(field.type) == 'int | None':  # absent: taken from the model's sizes
    return [2 * LENGTH]
  raise TypeError(f"{field.name} = {value!r}: give the field metadata={{'other': value to try}}.")


@functools.cache
def output(scheme):
  """Of tokens far apart, as rare distances count too."""
  x_LD = np.float32(np.random.default_rng(4).normal(size=(L, 16)))
  pos_L = np.r_[0 : LENGTH : LENGTH // L][:L]
  run = jax.jit(layer(scheme, dense, Mask(), False, None, DIMS))
  spectrum = scheme.sample(scheme.spectrum(DIMS), jax.random.key(1))  # as a training step does
  return np.asarray(run(learned(scheme, DIMS), spectrum, x_LD, pos_L))


@pytest.mark.parametrize(
  ('name', 'field'),
  [(name, field.name) for name in ALONE for field in dataclasses.fields(positions.find(name))],
)
def test_every_hyperparameter_changes_the_output_or_how_far_the_scheme_reaches(name, field):
  scheme = make(name)

  def reach(scheme):
    table = jax.tree.map(jnp.shape, learned(scheme, DIMS))
    return scheme.capacity(scheme.spectrum(DIMS), DIMS), table

  by_name = {f.name: f for f in dataclasses.fields(scheme)}
  if 'from' in by_name[field].metadata:  # of longer texts than these: held in the scheme's own
    own = Path(__file__).parent / 'positions' / f'test_{name}.py'
    assert f'{field}=' in own.read_text()
    return
  for value in other_values(by_name[field], getattr(scheme, field)):
    other = dataclasses.replace(scheme, **{field: value})
    changed = output(other)
    assert np.isfinite(changed).all()
    assert np.abs(changed - output(scheme)).max() > 1e-4 or reach(other) != reach(scheme)


@pytest.mark.parametrize('name', EACH)
def test_order_is_known_to_a_scheme_that_acts_and_to_no_other(name):
  """Without a causal mask, and with positions that stay where they are, tokens change places."""
  scheme = make(name)
  rng = np.random.default_rng(4)
  x_LD, order = jnp.asarray(rng.normal(size=(L, 16)), jnp.float32), rng.permutation(L)
  params = learned(scheme, DIMS)
  run = jax.jit(layer(scheme, dense, Mask(causal=False), False, None, DIMS))
  spectrum, pos_L = scheme.spectrum(DIMS), jnp.arange(L)
  straight, moved = run(params, spectrum, x_LD, pos_L), run(params, spectrum, x_LD[order], pos_L)
  change = float(jnp.abs(straight[order] - moved).max())
  if acts(scheme):
    assert change > 1e-3
  else:
    assert change < 64 * EPS


@pytest.mark.parametrize('name', EACH)
def test_bfloat16_activations_meet_float32_scores(name):
  scheme, watch = make(name), []
  x_LD = jnp.asarray(np.random.default_rng(4).normal(size=(L, 16)), jnp.bfloat16)
  params = scheme.parameters(jax.random.key(0), DIMS)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  run = jax.jit(layer(scheme, dense, Mask(), False, None, DIMS, watch))
  out_LHK = run(params, scheme.spectrum(DIMS), x_LD, jnp.arange(L))
  assert out_LHK.dtype == jnp.bfloat16
  assert np.isfinite(np.float32(out_LHK)).all()
  assert set(watch) == {jnp.dtype('float32')}
  for hook, heads in ((scheme.query, DIMS.heads), (scheme.key, DIMS.kv_heads)):
    q_LHK = jnp.ones((L, heads, 8), jnp.bfloat16)
    assert hook(params, scheme.spectrum(DIMS), q_LHK, jnp.arange(L)).dtype == jnp.bfloat16


@pytest.mark.parametrize('name', EACH)
def test_the_spectrum_is_float64_on_the_host(name):
  for x in jax.tree.leaves(make(name).spectrum(DIMS)):
    assert isinstance(x, float) or (isinstance(x, np.ndarray) and x.dtype == np.float64)


@pytest.mark.parametrize(('name', 'method'), PAIRS)
def test_an_extension_changes_numbers_only(name, method):
  """The same parameters fit, and so does the program that was compiled before."""
  s = small(name)
  spectrum = extend(s.spectrum, name=method, **settings_of(method))
  before = s.run()
  programs = s.programs()
  after = s.run(spectrum)
  assert s.programs() == programs, 'the extended spectrum made a second program'
  if method != 'none':
    assert np.abs(after - before).max() > 1e-4


@pytest.mark.parametrize(('name', 'method'), PAIRS)
def test_an_extension_by_a_factor_of_one_is_none(name, method):
  s = small(name)
  spectrum = extend(s.spectrum, name=method, **settings_of(method, 1.0))
  for ours, theirs in zip(jax.tree.leaves(spectrum), jax.tree.leaves(s.spectrum), strict=True):
    np.testing.assert_array_equal(ours, theirs)
  np.testing.assert_array_equal(s.run(spectrum), s.run())


@pytest.mark.parametrize('name', EACH)
def test_an_extension_that_makes_no_sense_is_refused_and_those_that_do_are_named(name):
  spectrum = make(name).spectrum(DIMS)
  able = applicable(spectrum)
  assert 'none' in able
  for method in METHODS.keys() - set(able):
    with pytest.raises(ValueError, match='makes no sense here') as error:
      extend(spectrum, name=method, factor=2.0, trained_length=16)
    assert f'Use: {", ".join(able)}.' in str(error.value)


FACTORISING = [name for name in NAMES if make(name).factorises]


@pytest.mark.parametrize('name', FACTORISING)
def test_columns_are_the_score_up_to_what_depends_on_the_query_alone(name):
  """In float32 to its precision; in bfloat16 rows of weights differ by at most 2e-4 in total
  variation, half the sum of absolute differences, at 8192 tokens."""
  length, chosen = 8192, np.array([0, 1, 255, 256, 257, 4095, 8191])
  scheme, rng = make(name), np.random.default_rng(5)
  dims = dataclasses.replace(DIMS, length=length)
  params, spectrum = learned(scheme, dims), scheme.spectrum(dims)
  scale, pos_L = 8**-0.5, jnp.arange(length)
  x_LD = jnp.asarray(rng.normal(size=(length, 16)), jnp.float32)
  q_LHK, k_LGK = jnp.ones((length, 4, 8)), jnp.ones((length, 2, 8))
  rows = Rows(index_L=pos_L, pos_L=pos_L)
  zeros_HIJ, dtypes = jnp.zeros((4, len(chosen), length)), (jnp.float32, jnp.bfloat16)

  @jax.jit
  def run(params, x_LD):
    fq, fk = scheme.features(params, spectrum, x_LD, q_LHK, k_LGK, rows)
    query = dataclasses.replace(rows, features_L=fq)
    key = dataclasses.replace(rows, features_L=fk)
    few = jax.tree.map(lambda x: x[chosen], query)
    settings = {'heads': 4, 'kv_heads': 2, 'scale': scale}
    columns = [
      scheme.columns(params, spectrum, query, key, dtype=dtype, **settings) for dtype in dtypes
    ]
    return scheme.score(params, as_arrays(spectrum), zeros_HIJ, Tile(few, key)), columns

  bias_HIJ, columns = run(params, x_LD)
  bias_HIJ = np.float64(bias_HIJ)
  seen_IJ = np.arange(length) <= chosen[:, None]
  content_HIJ = rng.normal(size=zeros_HIJ.shape) * 2

  for dtype, (q_LHC, k_LGC) in zip(dtypes, columns, strict=True):
    q_IHC, k_LGC = np.asarray(q_LHC)[chosen].astype(dtype), np.asarray(k_LGC).astype(dtype)
    k_LHC = np.repeat(np.broadcast_to(k_LGC, (length, 2, k_LGC.shape[-1])), 2, axis=1)
    got_HIJ = scale * np.einsum('ihc,jhc->hij', np.float64(q_IHC), np.float64(k_LHC))
    row_HI1 = np.take_along_axis(got_HIJ - bias_HIJ, chosen[None, :, None], axis=2)
    error_HIJ = np.where(seen_IJ, got_HIJ - row_HI1 - bias_HIJ, 0)
    assert np.abs(error_HIJ).max() <= 4 * EPS * np.abs(bias_HIJ).max()
    # As a kernel sums them: products exact, sums in float32.
    sums_HIJ = scale * np.einsum('ihc,jhc->hij', np.float32(q_IHC), np.float32(k_LHC))
    moved_HIJ = weights(content_HIJ + sums_HIJ, seen_IJ) - weights(content_HIJ + bias_HIJ, seen_IJ)
    assert np.abs(moved_HIJ).sum(-1).max() / 2 <= 2e-4


def weights(s_HIJ, seen_IJ):
  s_HIJ = np.where(seen_IJ, s_HIJ, -np.inf)
  p_HIJ = np.exp(s_HIJ - s_HIJ.max(-1, keepdims=True))
  return p_HIJ / p_HIJ.sum(-1, keepdims=True)


def arrays(jaxpr):
  """Shapes of all arrays of a program, those of its inner programs included."""
  for equation in jaxpr.eqns:
    for value in (*equation.invars, *equation.outvars):
      yield tuple(getattr(value.aval, 'shape', ()))
    yield from (shape for inner in programs(equation.params.values()) for shape in arrays(inner))


def programs(values):
  for value in values:
    if hasattr(value, 'eqns'):
      yield value
    elif hasattr(value, 'jaxpr'):
      yield value.jaxpr
    elif isinstance(value, dict):
      yield from programs(value.values())
    elif isinstance(value, (list, tuple)):
      yield from programs(value)


LONG = 2048


def largest(scheme, form):
  """Elements of the largest array of a forward and a backward pass over LONG tokens."""
  model = decoder(scheme, attention=form, length=LONG, layers=1)
  tokens_BL = jnp.zeros((1, LONG), jnp.int32)
  total = lambda params, spectrum: model.apply({'params': params}, tokens_BL, spectrum).sum()
  program = jax.make_jaxpr(jax.value_and_grad(total))(shapes_of(model), as_arrays(model.spectrum()))
  return max(np.prod(shape, dtype=int) for shape in arrays(program.jaxpr))


@pytest.mark.parametrize('name', EACH)
def test_no_array_grows_with_the_square_of_the_length_in_tiles(name):
  assert largest(make(name), 'tiled') < LONG**2


@pytest.mark.parametrize('name', [*first_of_each_kind(), *EACH[len(ALONE) :]])
def test_attention_is_seen_without_an_array_that_grows_with_the_square(name):
  model = decoder(make(name), attention='tiled', length=LONG, layers=1)
  count_BL = jnp.arange(LONG)[None]
  batch = {'tokens': jnp.zeros((1, LONG), jnp.int32), 'positions': count_BL}
  numbers = lambda params, spectrum: look(model, params, spectrum, batch, sinks=4, contiguous=True)
  program = jax.make_jaxpr(numbers)(shapes_of(model), as_arrays(model.spectrum()))
  assert max(np.prod(shape, dtype=int) for shape in arrays(program.jaxpr)) < LONG**2


def test_in_the_definition_an_array_grows_with_the_square_of_the_length():
  assert largest(Scheme(), 'dense') >= 4 * LONG**2
