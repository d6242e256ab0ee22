"""Heads turned into latents: exact where that can be; elsewhere held to loops and to the SVD."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e2e import train_here
from test_contract import make
from test_decoding import L, V, build, slow, whole

import eval as evaluation
from benchmarks import convert
from posjax import composition, layers, positions
from posjax.attention import Layer
from posjax.config import load
from posjax.conversion import METHODS, latent_config
from posjax.conversion.__main__ import main
from posjax.conversion.rotations import turning
from posjax.conversion.seen import measure
from posjax.conversion.weights import convert_params, factor, matches
from posjax.cost import cache_bytes_per_token
from posjax.decoding import Decoding
from posjax.generation import generate
from posjax.latent import Latent
from posjax.loading import load as load_run
from posjax.positions import Dims

D, H, K = 16, 4, 8
DIMS = Dims(width=D, heads=H, kv_heads=2, head_width=K, length=64)

# What each scheme does to queries and keys: frequencies that turn of the 4 of a head; None, more
# than latents can stand in for.
TURNED = {
  'none': 0, 'sinusoidal': 0, 'learned': 0, 'linear': 0, 'onehot': 0, 'abacus': 0, 'alibi': 0,
  'slopes': 0, 't5': 0, 'kerple': 0, 'sandwich': 0, 'fire': 0, 'fox': 0,
  'rope': 4, 'partial': 2, 'prope': 4, 'configs/rope_fox.py': 4,
  'xpos': None, 'pope': None, 'shaw': None, 'xl': None, 'cope': None, 'path': None, 'ssmax': None,
  'tempered': None,
}  # fmt: skip


def batch_of(rng, documents=True):
  segments_BL = np.ones((3, L), np.int32)
  if documents:
    segments_BL[0, 12:], segments_BL[1, 15:] = 2, 0  # two of them, and padding
  place_L = np.arange(L)
  starts_BL = np.where(segments_BL == 2, 12, 0)
  return {
    'tokens': rng.integers(0, V, (3, L)).astype(np.int32),
    'positions': (place_L - starts_BL).astype(np.int32),
    'segments': segments_BL,
  }


def errors(model, params, batch, *widths, method='attended'):
  """The largest error of logits after conversion, for each pair (rank, slice)."""
  spectrum = model.spectrum()
  turnings = [
    turning(layer.scheme, model.dims, one)
    for layer, one in zip(model.pattern, spectrum, strict=True)
  ]
  seen = measure(model, params, spectrum, turnings, [batch])
  expected_BLV = whole(model, params, spectrum, batch['tokens'])
  found = []
  for rank, slice in widths:
    new = model.clone(kv_heads=H, latent=Latent(width=rank, slice=slice, norm=None))
    converted = convert_params(model, params, turnings, seen, new, new.spectrum(), method)
    found_BLV = whole(new, converted, new.spectrum(), batch['tokens'])
    found.append(float(jnp.abs(found_BLV - expected_BLV).max()))
  return found


@pytest.mark.parametrize('name', slow(TURNED, 'rope', 'fox', 'cope'))
def test_what_a_scheme_does_to_queries_and_keys_is_found_out(name):
  scheme = make(name)
  if TURNED[name] is None:
    with pytest.raises(ValueError, match=r'latents cannot stand in for that. Convert a run whose'):
      turning(scheme, DIMS, scheme.spectrum(DIMS))
  else:
    assert len(turning(scheme, DIMS, scheme.spectrum(DIMS)).frequency_F) == TURNED[name]


def test_heads_that_turn_differently_are_refused():
  parts = {'name': 'rope', 'share': 1}, {'name': 'none', 'share': 1}
  scheme = composition.make({'name': 'heads', 'parts': parts})
  with pytest.raises(ValueError, match='Heads does more with queries and keys'):
    turning(scheme, DIMS, scheme.spectrum(DIMS))


@pytest.mark.parametrize('method', slow(METHODS, 'attended'))
@pytest.mark.parametrize('kv_heads', slow([1, 2, 4], 2))
@pytest.mark.parametrize('name', slow([n for n in TURNED if TURNED[n] == 0], 'fox'))
def test_what_does_not_turn_is_exact_at_full_rank(name, kv_heads, method, rng):
  layer = Layer(scheme=make(name), null_logit=kv_heads == 2)
  model, params = build(layer, kv_heads=kv_heads, layers=2)
  most = min(D, 2 * kv_heads * K)
  assert errors(model, params, batch_of(rng), (most, 1), method=method)[0] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name', ['rope', 'partial', 'prope'])
def test_one_key_head_that_turns_is_exact_in_a_slice_as_wide(name, rng):
  """The latent then needs room for the values alone, and for all of them."""
  model, params = build(Layer(scheme=make(name)), kv_heads=1)
  exact, low = errors(model, params, batch_of(rng), (K, K), (K - 1, K))
  assert exact < 1e-5 and low > 1e-3


def test_key_heads_that_are_complex_multiples_of_each_other_share_a_slice_exactly(rng):
  """TransMLA's real factors could not: each pair of the second head is turned against the first's
  by an angle of its own."""
  model, params = build(Layer(scheme=make('rope')), kv_heads=2)
  attention = params['blocks']['layer_0']['attention']
  key_DK = np.asarray(attention['key_DX'][0, :, :K])
  first_DF = key_DK[:, : K // 2] + 1j * key_DK[:, K // 2 :]
  second_DF = first_DF * np.exp(1j * rng.uniform(0, 6, K // 2)) * rng.uniform(0.5, 2, K // 2)
  key_DX = np.concatenate([key_DK, second_DF.real, second_DF.imag], axis=1)
  attention['key_DX'] = jnp.asarray(key_DX[None], jnp.float32)
  assert errors(model, params, batch_of(rng), (D, K))[0] < 1e-5


@pytest.mark.slow
def test_waves_are_averaged_over_what_heads_look_at(rng):
  """By loops: e^(i w (pos[j] - pos[i])) over the keys of the same document, by their weight."""
  model, params = build(Layer(scheme=make('rope')), kv_heads=2, layers=2)
  batch, spectrum = batch_of(rng), model.spectrum()
  turn = turning(model.pattern[0].scheme, model.dims, spectrum[0])
  seen = measure(model, params, spectrum, [turn], [batch, batch])
  float_spectrum = jax.tree.map(jnp.float32, spectrum)
  vectors = layers.projected(
    model, params, float_spectrum, batch['tokens'], batch['positions'], batch['segments']
  )['blocks'][0]
  w_F = spectrum[0].frequency_F
  pairs = lambda x_BLHK: np.complex128(x_BLHK[..., : K // 2] + 1j * x_BLHK[..., K // 2 :])
  for layer in range(2):
    x_BLD, q_BLHF, k_BLGF = (x[layer] for x in vectors)
    x_BLD, q_BLHF, k_BLGF = np.float64(x_BLD), pairs(q_BLHF), pairs(k_BLGF)
    total_HF, power_DD, count = 0, 0, 0
    for b, i in np.argwhere(batch['segments']):
      pos_L, same_L = batch['positions'][b], batch['segments'][b] == batch['segments'][b, i]
      keys = [j for j in range(i + 1) if same_L[j]]
      wave_JF = np.exp(1j * w_F * (pos_L[keys] - pos_L[i])[:, None])
      k_JHF = k_BLGF[b, keys][:, [0, 0, 1, 1]]
      s_JH = (q_BLHF[b, i].conj() * k_JHF * wave_JF[:, None]).sum(-1).real / K**0.5
      p_JH = np.exp(s_JH - s_JH.max(0))
      total_HF = total_HF + np.einsum('jh,jf->hf', p_JH / p_JH.sum(0), wave_JF)
      power_DD = power_DD + np.outer(x_BLD[b, i], x_BLD[b, i])
      count += 1
    np.testing.assert_allclose(seen[layer].turn_HF, total_HF / count, atol=1e-5)
    np.testing.assert_allclose(seen[layer].power_DD, power_DD / count, atol=1e-4)


@pytest.mark.parametrize('kind', [float, complex])
def test_a_factorisation_leaves_what_the_svd_leaves(kind, rng):
  """Of Y M itself, the product on the text: the sum of its other squared singular values."""
  y_ND = rng.normal(size=(50, 6)) @ rng.normal(size=(6, 6))
  m_DX = rng.normal(size=(6, 9)).astype(kind)
  if kind is complex:
    m_DX += 1j * rng.normal(size=m_DX.shape)
  down_DC, up_CX = factor(m_DX, y_ND.T @ y_ND / 50, 4)
  left = np.linalg.norm(y_ND @ (m_DX - down_DC @ up_CX)) ** 2
  singular_X = np.linalg.svd(y_ND @ m_DX, compute_uv=False)
  np.testing.assert_allclose(left, (singular_X[4:] ** 2).sum(), rtol=1e-8)
  for part in ((y_ND @ down_DC).T / 50**0.5, up_CX):
    np.testing.assert_allclose(
      part @ part.conj().T, np.diag(singular_X[:4] / 50**0.5), atol=1e-10
    )


@pytest.mark.parametrize('slice, stride', [(4, 1), (4, 2), (2, 3), (8, 1)])
def test_a_slice_turns_as_pairs_of_a_head_do(slice, stride):
  config = load('configs/rope.py:smoke', [])
  config.position = {'name': 'together', 'parts': ({'name': 'rope'}, {'name': 'alibi'})}
  config.layers = {'position': {'name': 'rope', 'theta': 100.0}}, {'window': 8}
  new = latent_config(config, rank=4, slice=slice, stride=stride)
  assert new.layers[1] == {'window': 8} and new.model.latent.norm is None
  assert (new.model.kv_heads, new.model.latent.width, new.model.latent.slice) == (4, 4, slice)
  rope = lambda settings: positions.make(**{k: v for k, v in settings.items() if k != 'window'})
  of = lambda settings, width: rope(settings).spectrum(
    dataclasses.replace(DIMS, head_width=width)
  ).frequency_F
  for old, now in (
    ({'name': 'rope', 'theta': 1e4}, new.position.parts[0]),
    (config.layers[0]['position'], new.layers[0]['position']),
  ):
    expected_F = of(old, K)[::stride][: slice // 2]
    np.testing.assert_allclose(of(now, slice), expected_F, rtol=1e-12)


def test_waves_that_no_pair_of_a_head_has_are_refused():
  with pytest.raises(ValueError, match=r'by 0\.5 radians per token, as no pair of a head does'):
    matches(np.asarray([1.0, 0.1]), np.asarray([1.0, 0.5]))


REFUSED = {
  'rank': ({}, {'rank': 33}, r'A rank of 33 .* 8 key and value heads of 8 .* between 1 and 32'),
  'few heads': (
    {'model.kv_heads': 1}, {'rank': 17}, r'2 key and value heads of 8 .* --rank between 1 and 16'
  ),
  'slice': ({}, {'slice': 6, 'stride': 2}, r'A slice of 6 .* --stride whose product is at most 8'),
  'latents': ({'model.latent.width': 4}, {}, r'latents of width 4 already. Convert a run whose'),
  'norms': ({'model.qk_norm': True}, {}, r'no norms of heads.*Convert a run without them'),
  'norms after': ({'model.qk_norm_after': 1e-5}, {}, r'no norms of heads.*Convert a run without'),
  'biases': ({'model.biases': ('qkv',)}, {}, r"biases = \('qkv',\): .* Convert a run without"),
  'segments': ({'model.segment': 8}, {}, r'model\.segment = 8.*Convert a run without'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_converted_is_refused_with_the_way_out(case):
  changes, sizes, text = REFUSED[case]
  config = load('configs/rope.py:smoke', [f'--config.{k}={v}' for k, v in changes.items()])
  with pytest.raises(ValueError, match=text):
    latent_config(config, **{'rank': 4, 'slice': 4} | sizes)


@pytest.fixture(scope='module')
def run_with_latents(six_steps, tmp_path_factory):
  out = tmp_path_factory.mktemp('converted') / 'run'
  main([f'--workdir={six_steps}', f'--out={out}', '--rank=12', '--batches=2'])
  return out


def test_a_converted_run_is_read_trained_on_and_evaluated_as_any_other(
  run_with_latents, tmp_path, capsys
):
  loaded = load_run(run_with_latents)
  assert cache_bytes_per_token(loaded.model) == 2 * 4 * (12 + 8)
  settings = load('configs/eval/lengths.py:smoke', [], flag='eval', base='configs/eval/base.py')
  results = evaluation.evaluate_run(run_with_latents, settings)
  assert all(np.isfinite(row['loss']) for row in results['rows'])
  same = 'model.kv_heads=4', 'model.latent.width=12', 'model.latent.slice=8'
  train_here(tmp_path / 'on', f'init_from={run_with_latents}', *same, 'model.latent.norm=None')
  assert 'Started from the parameters' in capsys.readouterr().out


@pytest.mark.slow
def test_a_converted_run_writes_what_a_pass_over_the_row_finds_likeliest(run_with_latents):
  loaded = load_run(run_with_latents)
  spectrum, prompt = loaded.model.spectrum(), [0, *b'Fellow citizens']
  decoding = Decoding(loaded.model, loaded.params, lambda length: spectrum, batch=1, size=32)
  row = [*prompt, *(int(token_B[0]) for token_B in generate(decoding, [prompt], new=12))]
  logits_1LV = loaded.model.apply(
    {'params': loaded.params}, jnp.asarray([row]), jax.tree.map(jnp.float32, spectrum)
  )
  likeliest = np.argmax(logits_1LV[0, len(prompt) - 1 : -1], axis=-1)
  np.testing.assert_array_equal(row[len(prompt) :], likeliest)


def test_a_run_is_never_written_over(six_steps, run_with_latents):
  with pytest.raises(ValueError, match=r"There is a run in '.*' already. Use another --out"):
    main([f'--workdir={six_steps}', f'--out={run_with_latents}', '--rank=12'])


@pytest.mark.slow
def test_the_curve_is_drawn_and_goes_on_where_it_stopped(six_steps, tmp_path, capsys):
  words = [
    f'--run={six_steps}', f'--workdir={tmp_path}', '--ranks=8,32', '--steps=2', '--tokens=1024',
  ]  # fmt: skip
  convert.main(words)
  table = (tmp_path / 'table.md').read_text()
  assert '| rank | cache | plain | balanced | attended | after 2 steps |' in table
  assert '| heads | 512 (100%) |' in table and '| 8 | 128 (25%) |' in table
  assert (tmp_path / 'convert.png').exists() and table in capsys.readouterr().out
  convert.main(words)
  assert 'Converted' not in capsys.readouterr().out
  again = (tmp_path / 'table.md').read_text()
  assert again.splitlines()[:5] == table.splitlines()[:5]
