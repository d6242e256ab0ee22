"""The atlas shows what schemes do: its numbers are those of the formulas, and of attention."""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from e2e import train_here
from kinds import first_of_each_kind
from matplotlib.colors import to_rgb

from posjax import positions
from posjax.atlas import __main__ as atlas
from posjax.atlas import drawing, measure, trained
from posjax.atlas.portrait import PLAIN, portray, recipes_of
from posjax.attend import Mask, Rows, Tile
from posjax.attention import Layer, encoded, position_and_attend
from posjax.config import load
from posjax.experiment import build
from posjax.positions import Dims

EPS = float(np.finfo(np.float32).eps)
DIMS = Dims(width=32, heads=4, kv_heads=4, head_width=8, length=16)


def kernel_of(scheme, dims=DIMS, length=64):
  params = scheme.parameters(jax.random.key(0), dims)
  return measure.kernel(measure.probe_map(scheme, params, scheme.spectrum(dims), dims, length)[1])


# --- numbers --------------------------------------------------------------------------------------


def test_a_kernel_is_the_mean_along_diagonals_above_the_own_key():
  s_HIJ = np.array([[[5, -1e30, -1e30], [2, 3, -1e30], [7, 4, 1]]], np.float32)
  np.testing.assert_array_equal(measure.kernel(s_HIJ), [[0, (-1 + 3) / 2, 6]])


def test_the_mean_along_diagonals_is_over_the_queries_that_have_the_key():
  p_HIJ = np.array([[[1, 0, 0], [0.25, 0.75, 0], [0.5, 0.5, 0]]], np.float32)
  np.testing.assert_array_equal(measure.along_diagonals(p_HIJ), [[1.75 / 3, 0.75 / 2, 0.5]])


def test_the_share_beyond_a_length_is_of_the_queries_that_reach_so_far():
  """Of the queries 2 and 3, the keys 2 and more back: 0.5 of the one, 0.25 + 0.5 of the other."""
  p_HIJ = np.array([
    [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0.5, 0.25, 0.25, 0], [0.25, 0.5, 0.125, 0.125]]
  ])
  weight_HR = measure.along_diagonals(p_HIJ)
  np.testing.assert_allclose(measure.share_beyond(weight_HR, 2), [(0.5 + 0.75) / 2])
  np.testing.assert_array_equal(measure.share_beyond(weight_HR, 4), [0])


def test_the_kernel_of_alibi_is_a_line_per_head():
  r_R = np.arange(64)
  expected_HR = -np.array([[1 / 4], [1 / 16], [1 / 64], [1 / 256]]) * r_R
  np.testing.assert_allclose(kernel_of(positions.make('alibi')), expected_HR, atol=64 * EPS)


@pytest.mark.parametrize('theta', [100.0, 10_000.0])
def test_the_kernel_of_rope_is_a_sum_of_cosines(theta):
  """Of ones, each pair gives 2 cos(r w) to q . k; float64, against angles in float32."""
  r_R1, w_F = np.arange(64)[:, None], theta ** (-2 * np.arange(4) / 8)
  expected_R = (2 * np.cos(r_R1 * w_F) - 2).sum(-1) / np.sqrt(8)
  kernel_HR = kernel_of(positions.make('rope', theta=theta))
  np.testing.assert_allclose(kernel_HR, np.tile(expected_R, (4, 1)), atol=64 * 8 * EPS)


def test_the_kernel_of_sinusoids_is_that_of_each_heads_own_waves():
  """Head h reads dimensions 8h to 8h + 7: four waves, whose products are sums of cosines."""
  r_R1, w_F = np.arange(64)[:, None], 10_000.0 ** (-2 * np.arange(16) / 32)
  cos_RF = np.cos(r_R1 * w_F) - 1
  expected_HR = cos_RF.reshape(64, 4, 4).sum(-1).T / np.sqrt(8)
  kernel_HR = kernel_of(positions.make('sinusoidal'))
  np.testing.assert_allclose(kernel_HR, expected_HR, atol=64 * 8 * EPS)


def test_the_input_picture_of_sinusoids_has_sines_at_even_and_cosines_at_odd_dimensions():
  scheme = positions.make('sinusoidal')
  wave_LD = measure.added_to_input(scheme, {}, scheme.spectrum(DIMS), 64, 32)
  angle_LF = np.arange(64)[:, None] * 10_000.0 ** (-2 * np.arange(16) / 32)
  np.testing.assert_allclose(wave_LD[:, 0::2], np.sin(angle_LF), atol=64 * EPS)
  np.testing.assert_allclose(wave_LD[:, 1::2], np.cos(angle_LF), atol=64 * EPS)


def test_without_positions_all_earlier_keys_weigh_the_same():
  scheme = positions.make('none')
  p_HIJ = measure.weights(measure.probe_map(scheme, {}, scheme.spectrum(DIMS), DIMS, 8)[0])
  expected_IJ = np.tril(np.ones((8, 8))) / np.arange(1, 9)[:, None]
  np.testing.assert_allclose(p_HIJ, np.tile(expected_IJ, (4, 1, 1)), rtol=4 * EPS)


def test_what_acts_on_queries_alone_is_shown_keys_that_differ():
  """Logits of noise, the same for each query but for the factor of its position."""
  scheme = positions.make('tempered', strength=0.5, period=4)
  s_HIJ, position_HIJ = measure.probe_map(scheme, {}, scheme.spectrum(DIMS), DIMS, 16)
  factor_I = 1 + 0.5 * np.log1p(np.floor(np.arange(1, 17) / 4))
  content_HJ = s_HIJ[:, 15] / factor_I[15]
  assert 0.5 < content_HJ.std() < 1.5
  for i, factor in enumerate(factor_I):
    seen = np.s_[:, i, : i + 1]
    expected_HJ = content_HJ[:, : i + 1]
    np.testing.assert_allclose(s_HIJ[seen], factor * expected_HJ, atol=64 * EPS)
    np.testing.assert_allclose(position_HIJ[seen], (factor - 1) * expected_HJ, atol=64 * EPS)


def test_wavelengths_are_tokens_per_turn_or_tokens_per_nat():
  of = lambda name: measure.wavelengths(positions.make(name).spectrum(DIMS))
  for name, unit, expected in (
    ('rope', 'wavelength (tokens)', 2 * np.pi * np.array([1, 10, 100, 1000])),
    ('alibi', 'tokens in which a head loses one nat', [4, 16, 64, 256]),
  ):
    assert of(name)[0] == unit
    np.testing.assert_allclose(of(name)[1], expected, rtol=1e-12)
  assert of('t5') is None and of('none') is None


def test_an_extension_by_four_makes_the_slowest_wave_four_times_as_long():
  spectrum = positions.make('rope').spectrum(DIMS)
  wave = {name: measure.wavelengths(s)[1] for name, s in recipes_of(spectrum, 16).items()}
  names = [f'{name} ×4' for name in ('linear', 'ntk', 'by_parts', 'ntk_by_parts', 'yarn', 'llama3')]
  assert list(wave) == [PLAIN, *names]
  for name in names:
    np.testing.assert_allclose(wave[name][-1], 4 * wave[PLAIN][-1], rtol=1e-12)
  np.testing.assert_allclose(wave['linear ×4'], 4 * wave[PLAIN], rtol=1e-12)
  assert wave['ntk ×4'][0] == wave[PLAIN][0] != wave['linear ×4'][0]


def test_a_lone_extension_is_shown_at_three_factors_and_none_where_none_applies():
  of = lambda name: list(recipes_of(positions.make(name).spectrum(DIMS), 16))
  assert of('alibi') == [PLAIN, 'linear ×2', 'linear ×4', 'linear ×8']
  assert of('none') == [PLAIN]


def test_a_scheme_is_drawn_as_far_as_it_has_positions():
  table, line = positions.make('learned'), positions.make('alibi')
  far = {
    recipe: measure.reach(16, table.capacity(spectrum, DIMS))
    for recipe, spectrum in recipes_of(table.spectrum(DIMS), 16).items()
  }
  assert far == {PLAIN: 16, 'linear ×2': 32, 'linear ×4': 64, 'linear ×8': 64}
  assert measure.reach(16, line.capacity(line.spectrum(DIMS), DIMS)) == 64


LAYERS = {
  'window': {'mask': Mask(window=7)},
  'sinks': {'mask': Mask(window=3, sinks=2)},
  'chunk': {'mask': Mask(chunk=5)},
  'memory': {'segment': 4, 'memory': 3},
  'cap': {'cap': 0.5},
}


def attention_of(layer, rng, tolerance, pos_L=None):
  """Holds the weights against the output of the model's attention, keys shared by heads."""
  L, dims = 12, Dims(width=32, heads=4, kv_heads=2, head_width=8, length=16)
  params = layer.scheme.parameters(jax.random.key(1), dims)
  spectrum = measure.on_device(layer.scheme.spectrum(dims))
  x_LD, q_LHK, k_LGK, v_LGV = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((L, 32), (L, 4, 8), (L, 2, 8), (L, 2, 8))
  )
  place_L = jnp.arange(L)
  rows = Rows(index_L=place_L, pos_L=place_L if pos_L is None else pos_L)
  if layer.mask.counts_from_begin:
    rows = rows.with_begin()
  rows_B = jax.tree.map(lambda x: x[None], rows)
  batch = [x[None] for x in (x_LD, q_LHK, k_LGK, v_LGV)]
  past = None if layer.segment is None else tuple(batch)

  @jax.jit
  def model(params, rows_B, *batch):
    return position_and_attend(layer, (params, spectrum), *batch, rows_B, 'dense', past)

  out_BLHV = model(params, dataclasses.replace(rows_B, index_L=place_L), *batch)
  p_HIJ = trained.weights_of(layer, params, spectrum, x_LD, q_LHK, k_LGK, pos_L)
  expected_LHV = np.einsum('hij,jhv->ihv', p_HIJ, np.repeat(v_LGV, 2, axis=1))
  if layer.scheme.reads:

    @jax.jit
    def read(params, p_HIJ):
      args = layer.scheme, (params, spectrum), x_LD, q_LHK, k_LGK, rows, 8**-0.5
      _, _, query, key = encoded(*args, columns=False)
      return layer.scheme.read(params, spectrum, p_HIJ, Tile(query, key, layer.mask))

    expected_LHV += np.swapaxes(read(params, p_HIJ), 0, 1)
  np.testing.assert_allclose(out_BLHV[0], expected_LHV, atol=tolerance(L * 8))


@pytest.mark.parametrize('name', first_of_each_kind())
def test_the_weights_are_those_of_the_models_attention(name, rng, tolerance):
  attention_of(Layer(scheme=positions.make(name)), rng, tolerance)


@pytest.mark.parametrize('name', LAYERS)
def test_the_weights_are_those_of_the_models_attention_where_it_sees_less(name, rng, tolerance):
  scheme = positions.make('alibi')
  attention_of(Layer(scheme=scheme, **LAYERS[name]), rng, tolerance)


def test_the_weights_are_those_of_the_models_attention_at_sampled_positions(rng, tolerance):
  pos_L = jnp.asarray(np.sort(rng.permutation(60)[:12]))
  attention_of(Layer(scheme=positions.make('rope')), rng, tolerance, pos_L)


@pytest.mark.parametrize('name', first_of_each_kind())
def test_every_scheme_has_a_portrait_of_finite_numbers(name):
  scheme = positions.make(name)
  params, spectrum = scheme.parameters(jax.random.key(0), DIMS), scheme.spectrum(DIMS)
  further = measure.extended(spectrum, 16, 4, 8)
  p = portray(name, scheme, params, recipes_of(spectrum, 16), further, DIMS, 16, '')
  for numbers in (p.maps, p.kernels, p.waves, p.inputs):
    assert all(np.isfinite(x).all() for x in numbers.values())
  assert list(p.maps) == list(p.kernels) and next(iter(p.maps)) == PLAIN
  np.testing.assert_allclose(p.maps[PLAIN].sum(-1), 1, rtol=1e-5)
  assert bool(p.waves) == bool(measure.wavelengths(spectrum))
  assert ('input' in p.acts) == bool(p.inputs)
  assert p.about.endswith('.')


# --- pictures -------------------------------------------------------------------------------------


def test_the_256_colours_of_a_picture_are_within_three_percent_of_those_drawn():
  colour_NC = np.reshape(drawing.palette(), (256, 3))
  assert colour_NC.min() >= 0 and colour_NC.max() <= 255
  drawn = [drawing.MAP(x)[:3] for x in np.linspace(0, 1, 256)]
  drawn += [drawing.SIGNED(x)[:3] for x in np.linspace(0, 1, 256)]
  drawn += [drawing.head_colour(h, H)[:3] for H in (1, 4, 6, 8) for h in range(H)]
  drawn += [to_rgb(colour) for colour in (*drawing.COLOURS, drawing.INK, drawing.GREY)]
  for colour in drawn:
    assert np.abs(colour_NC - 255 * np.array(colour)).max(-1).min() <= 0.03 * 255


def test_few_of_many_are_spread_from_first_to_last():
  assert drawing.some(4, 8) == [0, 1, 2, 3]
  assert drawing.some(12, 4) == [0, 4, 7, 11]
  assert drawing.some(1, 8) == [0]


# --- the command ----------------------------------------------------------------------------------


def is_small_png(path):
  content = path.read_bytes()
  return content.startswith(b'\x89PNG') and 5_000 < len(content) < 150_000


@pytest.mark.slow
def test_the_command_writes_a_page_per_scheme_an_overview_and_an_index(tmp_path, capsys):
  before = dict(matplotlib.rcParams)
  atlas.main(['--schemes=rope,learned', '--length=32', f'--out={tmp_path}/atlas'])
  assert dict(matplotlib.rcParams) == before
  out = tmp_path / 'atlas'
  assert {path.name for path in out.iterdir()} == {
    'learned.png', 'rope.png', 'overview.png', 'README.md',
  }  # fmt: skip
  assert all(is_small_png(path) for path in out.glob('*.png'))
  text = (out / 'README.md').read_text()
  assert f'python -m posjax.atlas --schemes=rope,learned --length=32 --out={out}\n' in text
  sentence = 'Rotary position embedding: queries and keys turn with their position.'
  methods = 'linear, ntk, by_parts, ntk_by_parts, yarn and llama3'
  facts = f'Acts on queries and keys; nothing learned; stretched by {methods}.'
  assert f'## rope\n\n{sentence} {facts}\n' in text
  assert 'Acts on input; 8,192 learned numbers; stretched by linear.' in text
  assert text.index('## learned') < text.index('## rope')  # the input comes before queries
  assert capsys.readouterr().out.endswith(f'Atlas: {out}/README.md\n')


@pytest.mark.parametrize(
  'words, message',
  [
    (['--schemes=rope,rop'], "No position scheme 'rop'. Did you mean 'rope'"),
    (['--schemes=rope', '--workdir=runs/x'], 'A run has one scheme and one length'),
    (['--length=1'], 'no distance to draw. Use at least 2'),
    (['--workdir=runs/nothing'], "No run at 'runs/nothing'"),
  ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(words, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    atlas.main([*words, f'--out={tmp_path}/atlas'])
  assert not (tmp_path / 'atlas').exists()


# --- a run ----------------------------------------------------------------------------------------


def fresh_run(file, *settings):
  """A run with parameters as initialised, and ten documents of random tokens."""
  config = load(file, [f'--config.{word}' for word in ('model.vocabulary=9', *settings)])
  model, rng = build(config), np.random.default_rng(0)
  token_BL = np.zeros((1, 8), np.int32)
  spectrum = measure.on_device(model.spectrum())
  params = jax.jit(model.init)(jax.random.key(0), token_BL, spectrum)['params']
  documents = [rng.integers(0, 9, size=140).astype(np.int32) for _ in range(10)]
  return trained.Trained(
    name='fresh', config=config, model=model, params=params, documents=documents
  )


def test_the_attention_of_a_run_is_softmax_of_its_own_queries_and_keys():
  """By hand in NumPy, for the first layer of a model without positions."""
  run = fresh_run('configs/none.py:smoke')
  drawn = trained.attention(run)
  assert drawn.length == 32 and drawn.p_NHIJ.shape == (2, 4, 32, 32)
  assert {recipe: x.shape for recipe, x in drawn.over_distance.items()} == {PLAIN: (2, 4, 128)}

  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run.params)
  block = jax.tree.map(lambda leaf: leaf[0], params['blocks']['layer_0'])
  x_LD = params['embedding_VD'][run.documents[0][:128]] * 32**0.5
  x_LD *= block['attention_norm']['scale_D'] / np.sqrt((x_LD**2).mean(-1, keepdims=True) + 1e-6)
  q_LHK, k_LHK = (
    (x_LD @ block['attention'][name]).reshape(128, 4, 8) for name in ('query_DX', 'key_DX')
  )
  s_HIJ = np.einsum('ihk,jhk->hij', q_LHK, k_LHK) / np.sqrt(8)
  e_HIJ = np.tril(np.exp(s_HIJ - s_HIJ.max(-1, keepdims=True)))
  p_HIJ = (e_HIJ / e_HIJ.sum(-1, keepdims=True))[:, :32, :32]
  np.testing.assert_allclose(drawn.p_NHIJ[0], p_HIJ, atol=32 * EPS)


@pytest.mark.slow
def test_a_run_trained_with_an_extension_is_drawn_with_that_one_alone():
  """Its table of 32 rows serves 64 tokens: the page ends there, not at four times that."""
  run = fresh_run(
    'configs/learned.py:smoke', 'extension.name=linear', 'extension.factor=2.0',
    'extension.trained_length=32', 'train.length=64',
  )  # fmt: skip
  (portrait,) = trained.portraits(run)
  assert {recipe: x.shape for recipe, x in portrait.maps.items()} == {PLAIN: (4, 64, 64)}
  assert np.isfinite(portrait.inputs[PLAIN]).all() and portrait.length == 64
  drawn = trained.attention(run)
  assert {recipe: x.shape for recipe, x in drawn.over_distance.items()} == {PLAIN: (2, 4, 64)}


def test_every_layer_is_drawn_with_what_it_has_learned():
  run = fresh_run('configs/fire.py:smoke')
  first, second = trained.portraits(run)
  assert np.abs(first.kernels[PLAIN] - second.kernels[PLAIN]).max() > 0.01
  assert (first.setting, second.setting) == ('fresh, layer 1 of 2', 'fresh, layer 2 of 2')


@pytest.mark.slow
def test_layers_of_a_pattern_are_drawn_each_with_its_own_scheme_and_alike_ones_once():
  """Three of rope, one of none, over five layers: one pattern, and one layer left over."""
  run = fresh_run(
    'configs/rnope.py', 'model.layers=5', 'model.width=32', 'model.heads=4', 'model.kv_heads=4',
    'model.head_width=8', 'model.mlp_width=64', 'train.length=32',
  )  # fmt: skip
  pages = trained.portraits(run)
  assert [(page.name, page.setting) for page in pages] == [
    ('rope', 'fresh, layer 1 of 5'), ('none', 'fresh, layer 4 of 5'),
  ]  # fmt: skip
  drawn = trained.attention(run)
  assert drawn.p_NHIJ.shape == (5, 4, 32, 32)
  assert drawn.setting == 'rope / none, the first 128 tokens of 8 validation documents'
  assert {x.shape for x in drawn.over_distance.values()} == {(5, 4, 128)}
  np.testing.assert_allclose(drawn.p_NHIJ.sum(-1), 1, rtol=1e-5)


def test_schemes_on_heads_of_their_own_are_one_page_with_the_kernel_of_each():
  run = fresh_run('configs/rope_alibi_heads.py:smoke')
  (page,) = trained.portraits(run)
  assert page.acts == ('queries', 'keys', 'logits')
  np.testing.assert_allclose(page.waves[PLAIN], 2 * np.pi * 10.0 ** np.arange(4), rtol=1e-12)
  r_R = np.arange(128)
  turning_R = (2 * np.cos(r_R[:, None] * 10.0 ** -np.arange(4)) - 2).sum(-1) / np.sqrt(8)
  expected_HR = np.stack([turning_R, turning_R, -r_R / 16, -r_R / 256])
  np.testing.assert_allclose(page.kernels[PLAIN], expected_HR, atol=128 * 8 * EPS)


@pytest.mark.slow
def test_the_command_draws_a_run_that_was_trained(tmp_path, capsys):
  train_here(tmp_path / 'run', config='configs/fire.py:smoke')
  atlas.main([f'--workdir={tmp_path}/run'])
  out = tmp_path / 'run' / 'atlas'
  assert {path.name for path in out.iterdir()} == {
    'attention.png', 'position-1.png', 'position-2.png', 'README.md',
  }  # fmt: skip
  assert all(is_small_png(path) for path in out.glob('*.png'))
  text = (out / 'README.md').read_text()
  assert f'# Atlas of run\n\n```\npython -m posjax.atlas --workdir={tmp_path}/run\n```' in text
  assert text.count('](position-') == 2
  lines = [line for line in text.splitlines() if '%, ' in line]
  assert [line.split(':')[0] for line in lines] == [
    '- as trained', '- linear ×2', '- linear ×4', '- linear ×8',
  ]  # fmt: skip
