"""Latent attention is held to DeepSeek's equations in NumPy; its two forms, to each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from e2e import assert_close, train_here, train_there, words
from test_contract import make
from test_decoding import PIECES, L, V, build, decoded, slow, whole

from posjax import metrics
from posjax.attend import Mask, Rows
from posjax.attention import Layer
from posjax.cost import cache_bytes_per_token, flops_per_token
from posjax.decoder import Decoder, init_params
from posjax.extension import extend
from posjax.latent import Decoupled, Latent, LatentAttention, absorbs

LATENT = Latent(width=12, query=10, slice=4, value=6)
SCHEMES = ('rope', 'none', 'alibi', 'fox', 't5', 'partial', 'pope', 'cope', 'xl', 'learned')
H, N = 4, 8


def latent_model(name='rope', latent=LATENT, layers=1, null=False, **settings):
  layer = Layer(scheme=make(name) if isinstance(name, str) else name, null_logit=null)
  return build(layer, latent=latent, heads=H, kv_heads=H, head_width=N, layers=layers, **settings)


def by_loops(x_LD, w, latent, frequency_F):
  """DeepSeek-V2, eq. 9 to 19, one query at a time; pairs (f, f + F); norms with scale and 1e-6."""
  normed = lambda c, scale: c / np.sqrt((c**2).mean() + 1e-6) * scale
  C, R, V = latent.width, latent.slice, latent.value

  def turned(x_R, pos):
    a, b = x_R[: R // 2], x_R[R // 2 :]
    cos, sin = np.cos(pos * frequency_F), np.sin(pos * frequency_F)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin])

  latents = [x @ w['latent_DC'] for x in x_LD]
  if latent.norm:
    latents = [normed(c, w['latent_norm']['scale_D']) for c in latents]
  slices = [turned(x @ w['slice_DR'], j) for j, x in enumerate(x_LD)]
  out_LD = []
  for i, x in enumerate(x_LD):
    c_Q = normed(x @ w['query_DC'], w['query_norm']['scale_D'])
    q_HK = (c_Q @ w['query_up_CX']).reshape(H, N + R)
    heads = []
    for h in range(H):
      key_up = w['key_up_CX'][:, h * N : (h + 1) * N]
      value_up = w['value_up_CX'][:, h * V : (h + 1) * V]
      q_N, q_R = q_HK[h, :N], turned(q_HK[h, N:], i)
      s = np.array([
        (q_N @ (latents[j] @ key_up) + q_R @ slices[j]) / np.sqrt(N + R) for j in range(i + 1)
      ])
      p = np.exp(s - s.max())
      p /= p.sum() + (np.exp(w['null_H'][h] - s.max()) if 'null_H' in w else 0)
      heads.append(sum(p[j] * (latents[j] @ value_up) for j in range(i + 1)))
    out_LD.append(np.concatenate(heads) @ w['output_XD'])
  assert len(latents[0]) == C
  return np.stack(out_LD)


@pytest.mark.parametrize(('norm', 'null'), [('rms', False), (None, False), ('rms', True)])
def test_the_block_is_deepseeks(norm, null, rng):
  """And where a logit without a value joins."""
  layer, D = Layer(scheme=make('rope'), null_logit=null), 16
  latent = dataclasses.replace(LATENT, norm=norm)
  module = LatentAttention(layer=layer, latent=latent, heads=H, head_width=N, form='dense')
  spectrum = layer.scheme.spectrum(build_dims(D))
  x_BLD = rng.normal(size=(1, 9, D)).astype(np.float32)
  rows_B = Rows(index_L=jnp.arange(9), pos_L=jnp.arange(9)[None], contiguous=True)
  position = {}, jax.tree.map(jnp.float32, spectrum)
  params = module.init(jax.random.key(0), x_BLD, position, rows_B)['params']
  params = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), params)
  (out_BLD, cache) = module.apply({'params': params}, x_BLD, position, rows_B)
  assert cache is None
  w = jax.tree.map(np.float64, params)
  expected_LD = by_loops(np.float64(x_BLD[0]), w, latent, spectrum.frequency_F)
  np.testing.assert_allclose(out_BLD[0], expected_LD, atol=2e-5)


def build_dims(D):
  from posjax.positions import Dims

  return Dims(width=D, heads=H, kv_heads=1, head_width=LATENT.slice, length=64)


@pytest.mark.parametrize('null', slow([False, True], False), ids=['', 'null'])
@pytest.mark.parametrize('decode', ['absorbed', 'expanded'])
@pytest.mark.parametrize('name', slow(SCHEMES, 'rope'))
def test_either_form_reads_from_latents_what_the_whole_row_says(name, decode, null, rng):
  latent = dataclasses.replace(LATENT, decode=decode)
  model, params = latent_model(name, latent, null=null)
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  found_BLV, cache = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
  (layer,) = cache.layers
  assert layer.value_GRV is None
  assert layer.key_GRK.ndim == 3  # one head, which all share


def test_tiles_find_what_the_definition_finds(rng):
  model, params = latent_model('rope', dataclasses.replace(LATENT, query=None), null=True)
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  found_BLV = whole(model.clone(attention='tiled'), params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=2e-5)


@pytest.mark.parametrize('name', slow(['rope', 'fox', 'cope'], 'rope'))
def test_documents_of_a_packed_row_read_as_each_does_alone(name, rng):
  model, params = latent_model(name, attention='tiled')
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  tokens_BL = jnp.asarray(rng.integers(0, V, (1, L)), jnp.int32)
  segment_L = np.array([1] * 8 + [2] * (L - 8))
  place_L = np.concatenate([np.arange(8), np.arange(L - 8)])
  rows = jnp.asarray(place_L[None]), jnp.asarray(segment_L[None])
  packed_1LV = jax.jit(model.apply)({'params': params}, tokens_BL, spectrum, *rows)
  for cut in (slice(0, 8), slice(8, L)):
    alone_1LV = whole(model, params, spectrum, tokens_BL[:, cut])
    np.testing.assert_allclose(packed_1LV[:, cut], alone_1LV, atol=1e-4)


@pytest.mark.parametrize('name', slow(['yarn', 'rerope'], 'rerope'))
def test_extensions_act_on_the_slice_in_either_pass(name, rng):
  settings = {
    'yarn': {'trained_length': 8, 'factor': 3.0, 'mscale': 0.7, 'mscale_all_dim': 1.0},
    'rerope': {'window': 6},
  }
  model, params = latent_model('rope')
  spectrum = extend(model.spectrum(), name=name, **settings[name])
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  found_BLV, _ = decoded(model, params, spectrum, tokens_BL, PIECES)
  expected_BLV = whole(model, params, spectrum, tokens_BL)
  assert np.abs(expected_BLV - whole(model, params, model.spectrum(), tokens_BL)).max() > 1e-3
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)


@pytest.mark.slow
def test_a_window_keeps_latents_of_its_own_tokens_only(rng):
  layer = Layer(scheme=make('rope'), mask=Mask(window=5))
  model, params = build(layer, latent=LATENT, heads=H, kv_heads=H, head_width=N)
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  found_BLV, cache = decoded(model, params, model.spectrum(), tokens_BL, PIECES)
  expected_BLV = whole(model, params, model.spectrum(), tokens_BL)
  np.testing.assert_allclose(found_BLV, expected_BLV, atol=1e-4)
  assert cache.layers[0].key_GRK.shape == (2, 5, 12 + 4)


def test_a_token_costs_a_latent_and_a_slice_whatever_the_heads():
  of = lambda heads: Decoder(
    pattern=(Layer(scheme=make('rope')),), latent=LATENT, heads=heads, kv_heads=heads, layers=3,
    length=64, vocabulary=V, width=16, head_width=N, mlp_width=24, dtype='float32',
  )  # fmt: skip
  assert cache_bytes_per_token(of(4)) == cache_bytes_per_token(of(8)) == 3 * (12 + 4) * 4


def test_flops_count_every_matrix_and_both_widths():
  model = Decoder(
    pattern=(Layer(scheme=make('rope')),), latent=LATENT, heads=H, kv_heads=H, layers=2, length=64,
    vocabulary=V, width=16, head_width=N, mlp_width=24, dtype='float32',
  )  # fmt: skip
  params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  attention = {'query': 16 * 10 + 10 * H * 12, 'latent': 16 * (12 + 4), 'up': 12 * H * (N + 6)}
  weights = 2 * (sum(attention.values()) + H * 6 * 16 + 3 * 16 * 24) + 16 * V
  products = 2 * 2 * H * (12 + 6) * (L + 1) / 2
  assert flops_per_token(model, params, L) == 3 * (2 * weights + products)


@pytest.mark.parametrize('new, absorbed', [(1, True), (130, True), (200, False), (4096, False)])
def test_the_form_with_fewer_products_is_taken(new, absorbed):
  """DeepSeek-V2's widths: they are equal at 512 (128 + 128) / (1088 - 320) = 170.7 new tokens."""
  assert absorbs(Latent(width=512, slice=64, value=128), 128, new) == absorbed


@pytest.mark.parametrize('name', ['path', 'shaw'])
def test_a_scheme_that_needs_whole_heads_is_refused(name):
  with pytest.raises(ValueError, match=r'Use a scheme that turns keys'):
    latent_model(name)


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'kv_heads': 2}, r'no 2 key/value heads'),
    ({'qk_norm': 'head'}, r'norms on the latents'),
    ({'biases': ('qkv',)}, r'no biases'),
    ({'latent': {'width': 0}}, r'latent\.width = 0.*>= 1'),
    ({'latent': {'width': 8, 'decode': 'both'}}, r"decode = 'both' is unknown.*absorbed"),
    ({'latent': {'width': 8, 'norm': 'layer'}}, r"norm = 'layer' is unknown. Use rms or None"),
  ],
)
def test_what_makes_no_sense_is_refused_with_a_way_out(settings, message):
  settings = {'latent': {'width': 8}, 'heads': H, 'kv_heads': H} | settings
  with pytest.raises(ValueError, match=message):
    build(Layer(scheme=make('rope')), **settings | {'latent': Latent(**settings['latent'])})


def test_segments_are_refused():
  with pytest.raises(ValueError, match=r'no memory of segments.*segment = None'):
    build(Layer(scheme=make('rope'), segment=4), latent=LATENT, kv_heads=4)


def test_norms_after_the_scheme_are_refused():
  with pytest.raises(ValueError, match=r'norms on the latents\. Set model\.qk_norm_after = None'):
    build(Layer(scheme=make('rope'), qk_norm_after=0.0), latent=LATENT, kv_heads=4)


def test_far_keys_are_not_expanded(rng):
  model, params = latent_model('rope', dataclasses.replace(LATENT, decode='expanded'))
  spectrum = extend(model.spectrum(), name='rerope', window=6)
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  with pytest.raises(ValueError, match=r"Use 'absorbed'"):
    decoded(model, params, spectrum, tokens_BL, PIECES)


def test_the_scheme_sees_the_slice_alone(rng):
  inner = make('rope')
  scheme = Decoupled(scheme=inner, width=4)
  spectrum = inner.spectrum(build_dims(16))
  q_LHK = jnp.asarray(rng.normal(size=(5, 2, 10)), jnp.float32)
  found = scheme.query({}, spectrum, q_LHK, jnp.arange(5))
  np.testing.assert_array_equal(found[..., :6], q_LHK[..., :6])
  expected = inner.query({}, spectrum, q_LHK[..., 6:], jnp.arange(5))
  np.testing.assert_array_equal(found[..., 6:], expected)


def test_gradients_reach_every_matrix(rng):
  model, params = latent_model('rope')
  tokens_BL = jnp.asarray(rng.integers(0, V, (2, L)), jnp.int32)
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  loss = lambda params: (model.apply({'params': params}, tokens_BL, spectrum) ** 2).mean()
  for path, g in jax.tree.leaves_with_path(jax.jit(jax.grad(functools.partial(loss)))(params)):
    assert np.abs(g).max() > 0, jax.tree_util.keystr(path)


@pytest.mark.slow
def test_eight_devices_train_it_as_one_does(tmp_path):
  settings = {'config': 'configs/mla.py:smoke'}, ('model.latent.query=16', 'log.every=1')
  mesh = 'mesh.data=2', 'mesh.fsdp=2', 'mesh.tensor=2'
  train_there(words(tmp_path / 'eight', *settings[1], *mesh, **settings[0]), devices=8)
  rows = train_here(tmp_path / 'one', *settings[1], **settings[0])
  assert_close(metrics.read(tmp_path / 'eight'), rows)
