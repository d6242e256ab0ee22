import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kinds import first_of_each_kind

from posjax import positions
from posjax.attend import Mask
from posjax.attention import Layer
from posjax.decoder import Decoder, check_length, init_params
from posjax.extension import extend
from posjax.norm import LayerNorm, RMSNorm

B, L, V = 2, 7, 11
SIZES = {
  'length': 16, 'vocabulary': V, 'width': 8, 'layers': 2, 'heads': 4, 'kv_heads': 2,
  'head_width': 6, 'mlp_width': 12, 'dtype': 'float32', 'attention': 'dense',
}  # fmt: skip
TOKENS_BL = np.random.default_rng(0).integers(V, size=(B, L))


def decoder(window=None, cap=None, null_logit=False, qk_norm_after=None, **changes):
  settings = {
    'mask': Mask(window=window), 'cap': cap, 'null_logit': null_logit,
    'qk_norm_after': qk_norm_after,
  }  # fmt: skip
  layer = Layer(scheme=positions.Scheme(), **settings)
  return Decoder(pattern=(layer,), **{**SIZES, **changes})


@functools.cache
def random_params(**changes):
  """Weights of the initial size, norms and biases away from 1 and 0."""
  rng, model = np.random.default_rng(1), decoder(**changes)
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())['params']
  return jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)


ACTIVATIONS = {
  'silu': lambda x: x / (1 + np.exp(-x)),
  'gelu': lambda x: x * np.vectorize(lambda x: 0.5 * (1 + math.erf(x / math.sqrt(2))))(x),
  'gelu_tanh': lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
  'gelu_sigmoid': lambda x: x / (1 + np.exp(-1.702 * x)),
  'relu': lambda x: np.maximum(x, 0),
  'relu2': lambda x: np.maximum(x, 0) ** 2,
}


def by_definition(
  params, tokens_L, *, H, G, K, seen, mlp='gated', activation=None, residual='sequential',
  norm='rms', norm_at='input', norm_epsilon=None, qk_norm='none', biases=(), embedding_scale=None,
  embedding_norm=False, logit_cap=None, cap=None, null_logit=False, gate_limit=np.inf,
  gate_offset=0.0, qk_norm_after=None, cutoffs=None,
):  # fmt: skip
  """The model in float64, one token after the other; softmax attention without positions.

  seen: for each layer of the pattern, the keys that query i sees.
  """
  p = jax.tree.map(np.float64, params)
  active = ACTIVATIONS[activation or {'gated': 'silu', 'plain': 'gelu_tanh'}[mlp]]

  def normalise(x, weights, kind):
    if kind == 'rms':
      return x / np.sqrt((x * x).mean() + (norm_epsilon or 1e-6)) * weights['scale_D']
    y = (x - x.mean()) / np.sqrt(x.var() + (norm_epsilon or 1e-5)) * weights['scale_D']
    return y + weights['bias_D'] if kind == 'layer' else y

  def biased(y, weights, name, place):
    return y + weights[name] if place in biases else y

  def feed(x, weights):
    up = biased(x @ weights['up_DM'], weights, 'up_bias_M', 'mlp')
    if mlp == 'gated':
      gate = biased(x @ weights['gate_DM'], weights, 'gate_bias_M', 'mlp')
      up = np.clip(up, -gate_limit, gate_limit) + gate_offset
      up = up * active(np.minimum(gate, gate_limit))
    else:
      up = active(up)
    return biased(up @ weights['down_MD'], weights, 'down_bias_D', 'mlp')

  scale = np.sqrt(p['embedding_VD'].shape[1]) if embedding_scale is None else embedding_scale
  x_LD = p['embedding_VD'][tokens_L] * scale
  if embedding_norm:
    x_LD = np.stack([normalise(x, p['input_norm'], norm) for x in x_LD])
  for block, keys in blocks_in_order(p, seen):
    a, heads = block['attention'], {'query': [], 'key': [], 'value': []}
    for x in x_LD:
      y = normalise(x, block['attention_norm'], norm) if norm_at in ('input', 'both') else x
      for kind, count in (('query', H), ('key', G), ('value', G)):
        long = biased(y @ a[f'{kind}_DX'], a, f'{kind}_bias_X', 'qkv')
        if qk_norm == 'whole' and kind != 'value':
          long = normalise(long, a[f'{kind}_norm'], 'rms')
        vectors = [long[h * K : h * K + K] for h in range(count)]
        if qk_norm == 'head' and kind != 'value':
          vectors = [normalise(v, a[f'{kind}_norm'], 'rms') for v in vectors]
        if qk_norm_after is not None and kind != 'value':
          vectors = [v / np.sqrt((v * v).mean() + qk_norm_after) for v in vectors]
        heads[kind].append(vectors)
    after_LD = []
    for i, x in enumerate(x_LD):
      out = []
      for h in range(H):
        g = h // (H // G)
        s = np.array([heads['query'][i][h] @ heads['key'][j][g] / np.sqrt(K) for j in keys(i)])
        s = s if cap is None else cap * np.tanh(s / cap)
        weight = np.exp(s - s.max())
        nothing = np.exp(a['null_H'][h] - s.max()) if null_logit else 0
        weight /= weight.sum() + nothing
        out.append(sum(w * heads['value'][j][g] for w, j in zip(weight, keys(i), strict=True)))
      out = biased(np.concatenate(out) @ a['output_XD'], a, 'output_bias_D', 'output')
      if norm_at in ('output', 'both'):
        out = normalise(out, block['attention_output_norm'], norm)
      entry = x if residual != 'sequential' else x + out
      if norm_at == 'sum':
        entry = normalise(entry, block['attention_sum_norm'], norm)
      read = entry
      if norm_at in ('input', 'both'):
        which = 'attention' if residual == 'parallel_shared' else 'mlp'
        read = normalise(entry, block[f'{which}_norm'], norm)
      fed = feed(read, block['mlp'])
      if norm_at in ('output', 'both'):
        fed = normalise(fed, block['mlp_output_norm'], norm)
      x = entry + fed + (0 if residual == 'sequential' else out)
      after_LD.append(normalise(x, block['mlp_sum_norm'], norm) if norm_at == 'sum' else x)
    x_LD = np.stack(after_LD)
  if norm_at != 'sum':
    x_LD = np.stack([normalise(x, p['final_norm'], norm) for x in x_LD])
  logits_LV = x_LD @ (p['head_DV'] if 'head_DV' in p else p['embedding_VD'].T)
  logits_LV = biased(logits_LV, p, 'head_bias_V', 'head')
  if cutoffs is not None:
    clusters_LC = biased(x_LD @ p['cluster_DC'], p, 'cluster_bias_C', 'head') if cutoffs else None
    return np.stack([
      by_cluster(logits_LV[i], clusters_LC[i] if cutoffs else (), cutoffs)
      for i in range(len(x_LD))
    ])
  return logits_LV if logit_cap is None else logit_cap * np.tanh(logits_LV / logit_cap)


def by_cluster(logits_V, clusters_C, cutoffs):
  """ln p of each token: p of its cluster, which is one token of the first, times p within it."""
  edges, found = [0, *cutoffs, len(logits_V)], []
  size = edges[1]
  total = sum(np.exp(x) for x in [*logits_V[:size], *clusters_C])
  for v, logit in enumerate(logits_V):
    if v < size:
      found.append(np.log(np.exp(logit) / total))
      continue
    c = next(c for c in range(1, len(edges)) if edges[c] <= v < edges[c + 1])
    within = np.exp(logit) / np.exp(logits_V[edges[c] : edges[c + 1]]).sum()
    found.append(np.log(np.exp(clusters_C[c - 1]) / total * within))
  return np.array(found)


def blocks_in_order(params, seen):
  """(weights, keys seen) of each layer: the pattern's repetitions, then what is left of it."""
  for part in ('blocks', 'rest'):
    layers = params.get(part, {})
    for n in range(len(jax.tree.leaves(layers)[0]) if layers else 0):
      for at in range(len(layers)):
        yield jax.tree.map(lambda w: w[n], layers[f'layer_{at}']), seen[at]  # noqa: B023


def window(size):
  return lambda i: range(max(0, i - size + 1), i + 1)


def everything(i):
  return range(i + 1)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'kv_heads': 1, 'norm': 'layer', 'mlp': 'plain'},
    {'kv_heads': 4, 'qk_norm': 'head', 'tied': True, 'window': 3},
    {'residual': 'parallel', 'norm': 'layer', 'biases': ('qkv', 'mlp'), 'activation': 'relu'},
    {'residual': 'parallel_shared', 'norm': 'layer_unbiased', 'mlp': 'plain', 'biases': ('head',),
     'activation': 'gelu', 'tied': True},
    {'norm_at': 'output', 'norm_epsilon': 0.1, 'qk_norm': 'head', 'activation': 'gelu_tanh'},
    {'norm_at': 'both', 'embedding_scale': 3.0, 'biases': ('output', 'mlp'), 'mlp': 'plain',
     'activation': 'relu2'},
    {'norm_at': 'both', 'residual': 'parallel', 'activation': 'gelu'},
    {'qk_norm': 'whole', 'norm_epsilon': 0.3, 'cap': 0.2, 'logit_cap': 0.7},
    {'norm_at': 'sum', 'norm': 'layer', 'norm_epsilon': 0.2, 'embedding_norm': True},
    {'null_logit': True, 'cap': 0.5, 'gate_limit': 0.1, 'gate_offset': 0.7,
     'activation': 'gelu_sigmoid'},
    {'qk_norm_after': 0.3, 'biases': ('qkv',)},
    {'cutoffs': (3, 7), 'biases': ('head',), 'tied': True},
    {'cutoffs': (1,)},
    {'cutoffs': ()},
  ],
  ids=[
    'gated, rms, grouped', 'plain, layer, one key head', 'qk_norm, tied, windowed',
    'parallel, biases', 'one norm for both, head bias', 'norms at the output, epsilon',
    'norms at both, scale, output bias', 'norms at both, parallel',
    'qk_norm of the whole, caps', 'norms of sums, embedding norm', 'null logit, limited gate',
    'qk_norm without scale', 'three clusters', 'two clusters', 'one cluster',
  ],
)  # fmt: skip
def test_the_model_is_its_definition(changes, tolerance):
  model, params = decoder(**changes), random_params(**changes)
  got_BLV = jax.jit(model.apply)({'params': params}, TOKENS_BL, model.spectrum())
  settings = {'G': changes.get('kv_heads', 2), **changes}
  seen = window(settings.pop('window')) if 'window' in settings else everything
  for key in ('kv_heads', 'tied'):
    settings.pop(key, None)
  for b in range(B):
    exact_LV = by_definition(params, TOKENS_BL[b], H=4, K=6, seen=[seen], **settings)
    size = np.abs(exact_LV).max()
    np.testing.assert_allclose(got_BLV[b], exact_LV, atol=size * tolerance(L * 12))
  assert ('head_DV' in params) == (not model.tied)


def test_without_positions_and_without_a_mask_the_cat_chases_the_mouse_as_the_mouse_the_cat():
  """The decoder is equivariant to permutations; a causal mask, or a scheme, breaks that."""
  cat, chases, mouse = 3, 5, 7
  tokens_BL = np.array([[cat, chases, mouse], [mouse, chases, cat]])
  params = random_params()

  def difference(scheme, causal):
    model = Decoder(pattern=(Layer(scheme=scheme, mask=Mask(causal=causal)),), **SIZES)
    straight, swapped = model.apply({'params': params}, tokens_BL, model.spectrum())
    return np.abs(straight - swapped[::-1]).max() / np.abs(straight).max()

  assert difference(positions.Scheme(), causal=False) < 1e-5
  assert difference(positions.Scheme(), causal=True) > 0.01
  assert difference(positions.make('rope'), causal=False) > 0.01
  assert difference(positions.make('alibi'), causal=False) > 0.01


@pytest.mark.parametrize('layers', [2, 5, 6])
def test_layers_take_turns_as_the_pattern_says(layers, tolerance):
  """A window, a chunk, everything: less than once, with layers left over, and twice."""
  masks = Mask(window=3), Mask(chunk=4), Mask()
  seen = window(3), lambda i: range(i - i % 4, i + 1), everything
  pattern = tuple(Layer(scheme=positions.Scheme(), mask=mask) for mask in masks)
  model = Decoder(pattern=pattern, **SIZES | {'layers': layers})
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.asarray(0.4 * rng.normal(size=x.shape), x.dtype), shapes)
  got_BLV = jax.jit(model.apply)({'params': params}, TOKENS_BL, model.spectrum())
  exact_LV = by_definition(params, TOKENS_BL[0], H=4, G=2, K=6, seen=seen)
  size = np.abs(exact_LV).max()
  np.testing.assert_allclose(got_BLV[0], exact_LV, atol=size * tolerance(L * 12 * layers))
  other = by_definition(params, TOKENS_BL[0], H=4, G=2, K=6, seen=seen[::-1])
  assert np.abs(got_BLV[0] - other).max() > 0.01


def test_layers_of_one_scheme_share_what_all_layers_share_and_others_do_not():
  def learned(*schemes):
    model = Decoder(pattern=tuple(Layer(scheme=scheme) for scheme in schemes), **SIZES)
    params = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())['params']
    return sorted(name for name in params if name.startswith('position'))

  t5, alibi = positions.make('t5'), positions.make('alibi')
  assert learned(t5, t5) == ['position']
  assert learned(t5, alibi) == ['position']
  assert learned(alibi, t5) == ['position_1']
  assert learned(t5, positions.make('t5', buckets=16)) == ['position', 'position_1']


def test_an_extension_leaves_layers_alone_that_say_so():
  near = Layer(scheme=positions.make('rope'), mask=Mask(window=3), extended=False)
  far = Layer(scheme=positions.make('rope', theta=1e6))
  spectrum = Decoder(pattern=(near, far), **SIZES).spectrum()
  after = extend(spectrum, name='yarn', factor=4.0, trained_length=16)
  assert after[0] is spectrum[0]
  assert after[1].frequency_F[-1] == spectrum[1].frequency_F[-1] / 4
  with pytest.raises(ValueError, match='makes no sense here'):
    extend(spectrum[:1], name='yarn', factor=4.0, trained_length=16)


def test_a_scheme_at_the_input_must_be_that_of_all_layers():
  learned, rope = (Layer(scheme=positions.make(name)) for name in ('learned', 'rope'))
  with pytest.raises(ValueError, match='acts once, for all layers, but the layers differ'):
    Decoder(pattern=(learned, rope), **SIZES)


@pytest.mark.parametrize(
  ('settings', 'text'),
  [
    ({'memory': 4}, 'memory of 4 tokens belongs to segments'),
    ({'segment': 0}, 'Segments of 0 tokens'),
    ({'segment': 4, 'memory': -1}, 'with a memory of -1 cannot be'),
    ({'segment': 4, 'mask': Mask(chunk=4)}, 'both cut a row'),
  ],
)
def test_layers_that_cannot_be_are_refused(settings, text):
  with pytest.raises(ValueError, match=text):
    Layer(scheme=positions.Scheme(), **settings)


@functools.cache
def value_and_gradient(remat):
  model, params = decoder(remat=remat, attention='tiled'), random_params()

  def total(params):
    return jnp.sum(model.apply({'params': params}, TOKENS_BL, model.spectrum()) ** 2)

  return jax.jit(jax.value_and_grad(total))(params)


@pytest.mark.parametrize('remat', ['block', 'dots'])
def test_computing_layers_again_changes_neither_values_nor_gradients(remat):
  again, kept = value_and_gradient(remat), value_and_gradient('none')
  for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(kept), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def equations(jaxpr):
  inner = [
    getattr(p, 'jaxpr', p)
    for e in jaxpr.eqns
    for p in jax.tree.leaves(
      list(e.params.values()), is_leaf=lambda x: hasattr(x, 'jaxpr') or hasattr(x, 'eqns')
    )
  ]
  return len(jaxpr.eqns) + sum(equations(j) for j in inner if hasattr(j, 'eqns'))


def test_the_program_does_not_grow_with_depth():
  def size(layers):
    model = decoder(layers=layers)
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())
    total = jax.grad(lambda params: model.apply(params, TOKENS_BL, model.spectrum()).sum())
    return equations(jax.make_jaxpr(total)(shapes).jaxpr)

  assert size(2) == size(6) > 100


@pytest.mark.parametrize('own', [True, False])
def test_a_scheme_learns_per_layer_or_once_for_all_layers(own):
  class Lift(positions.Scheme):
    def init(self, key, dims):
      return {} if own else {'lift_HK': jnp.zeros((dims.heads, dims.head_width))}

    def init_layer(self, key, dims):
      return {'lift_HK': jnp.zeros((dims.heads, dims.head_width))} if own else {}

    def query(self, params, spectrum, q_LHK, pos_L):
      return q_LHK + params['lift_HK']

  model, params = Decoder(pattern=(Layer(scheme=Lift()),), **SIZES), random_params()
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())['params']
  where = shapes['blocks']['layer_0'] if own else shapes
  assert where['position']['lift_HK'].shape == ((2, 4, 6) if own else (4, 6))

  def change(lift):
    learned = {'position': {'lift_HK': lift}}
    layer = {**params['blocks']['layer_0'], **learned}
    full = {**params, 'blocks': {'layer_0': layer}} if own else {**params, **learned}
    plain = decoder().apply({'params': params}, TOKENS_BL, model.spectrum())
    return np.abs(model.apply({'params': full}, TOKENS_BL, model.spectrum()) - plain).max()

  zeros = np.zeros(where['position']['lift_HK'].shape, np.float32)
  ones = zeros.copy()
  ones[-1] = 1  # of the last layer, or of the last head
  assert change(zeros) == 0
  assert change(ones) > 1e-3


def test_layers_have_weights_of_their_own_and_norms_start_at_one():
  model = decoder(norm='layer', width=64, vocabulary=300)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS_BL, model.spectrum())['params']
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  blocks = params['blocks']['layer_0']
  for weight in ('query_DX', 'key_DX', 'value_DX', 'output_XD'):
    first, second = blocks['attention'][weight]
    assert not np.allclose(first, second)
  assert (np.asarray(blocks['mlp_norm']['scale_D']) == 1).all()
  assert (np.asarray(blocks['mlp_norm']['bias_D']) == 0).all()
  for weight, deviation in (
    (params['embedding_VD'], 64**-0.5),
    (params['head_DV'], 64**-0.5),
    (blocks['attention']['query_DX'], 64**-0.5),
    (blocks['attention']['output_XD'], (24 * 4) ** -0.5),  # H K = 24, two blocks of two sums
    (blocks['mlp']['gate_DM'], 64**-0.5),
    (blocks['mlp']['down_MD'], (12 * 4) ** -0.5),
  ):
    assert abs(float(weight.std()) / deviation - 1) < 5 / (2 * weight.size) ** 0.5


def test_parameters_start_the_same_whatever_tokens_and_form_the_model_is_traced_with():
  model = Decoder(pattern=(Layer(scheme=positions.make('xl')),), **SIZES | {'attention': 'tiled'})
  ours = jax.jit(functools.partial(init_params, model))(jax.random.key(3))
  theirs = jax.jit(model.init)(jax.random.key(3), TOKENS_BL, model.spectrum())['params']
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize('name', first_of_each_kind())
def test_positions_that_count_along_the_row_are_the_default(name):
  """Also where they are given per row, promised to be contiguous or not."""
  model = Decoder(pattern=(Layer(scheme=positions.make(name)),), **SIZES | {'head_width': 8})
  shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS_BL, model.spectrum())['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: jnp.float32(0.4 * rng.normal(size=x.shape)), shapes)

  @jax.jit  # one program for the three
  def logits(params, count_BL):
    run = functools.partial(model.apply, {'params': params}, TOKENS_BL, model.spectrum())
    return run(), run(count_BL), run(count_BL, contiguous=True)

  default, given, promised = logits(params, np.tile(np.arange(L), (B, 1)))
  atol = 1e-4 * float(jnp.abs(default).max())
  np.testing.assert_allclose(given, default, atol=atol)
  np.testing.assert_allclose(promised, default, atol=atol)


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_bfloat16_activations_give_float32_logits_and_gradients(remat):
  model, params = decoder(dtype='bfloat16', remat=remat), random_params()

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def total(params):
    logits_BLV = model.apply({'params': params}, TOKENS_BL, model.spectrum())
    hidden_BLD = model.apply({'params': params}, TOKENS_BL, model.spectrum(), method='hidden')
    return jnp.sum(logits_BLV**2), (logits_BLV, hidden_BLD)

  (_, (logits_BLV, hidden_BLD)), grads = total(params)
  assert (logits_BLV.dtype, hidden_BLD.dtype) == (jnp.float32, jnp.bfloat16)
  exact_LV = by_definition(params, TOKENS_BL[0], H=4, G=2, K=6, seen=[everything])
  # Some ten roundings of 2^-8 between embedding and logits.
  assert np.abs(logits_BLV[0] - exact_LV).max() < 10 * 2**-8 * np.abs(exact_LV).max()
  for grad in jax.tree.leaves(grads):
    assert grad.dtype == jnp.float32
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'kv_heads': 3}, '4 query heads cannot share 3 key/value heads evenly'),
    ({'mlp': 'gatde'}, r"model.mlp = 'gatde' is unknown. Use one of: gated, plain"),
    ({'norm': 'batch'}, r"model.norm = 'batch' is unknown. Use one of: rms, layer"),
    ({'activation': 'swish'}, r"model.activation = 'swish' is unknown. Use one of: None, silu"),
    ({'residual': 'none'}, r"model.residual = 'none' is unknown. Use one of: sequential, par"),
    ({'qk_norm': True}, r"model.qk_norm = 'True' is unknown. Use one of: none, head, whole"),
    ({'cutoffs': (7, 3)}, r'cutoffs = \(7, 3\) do not cut 11 ids into clusters. Use ids that rise'),
    ({'cutoffs': (11,)}, r'cutoffs = \(11,\) do not cut 11 ids'),
    ({'cutoffs': (5,), 'logit_cap': 2.0}, 'no model.logit_cap is made for. Use it or model.cut'),
    ({'qk_norm_after': -1.0}, 'qk_norm_after = -1.0 is added to a mean square. Use 0 or more'),
    ({'cap': 0.0}, 'Logits capped at 0.0 are no logits'),
    ({'norm_at': 'pre'}, r"model.norm_at = 'pre' is unknown. Use one of: input, output, both"),
    ({'biases': ('qkv', 'key')}, r"model.biases names 'key'. It may name: qkv, output, mlp, rout"),
    ({'biases': ('router',)}, r"No layer has experts. Leave 'router' out of model.biases"),
    ({'mlp': 'plain', 'gate_offset': 1.0}, 'Plain MLPs have no gate. Leave out model.gate_limit'),
    ({'gate_limit': 0.0}, 'model.gate_limit = 0.0 lets nothing through. Use one above 0'),
    ({'norm_at': 'sum', 'residual': 'parallel'}, r"model.norm_at = 'sum' has none there"),
    ({'dtype': 'float64'}, "model.dtype = 'float64' is unknown"),
    ({'remat': 'all'}, r"model.remat = 'all' is unknown. Use one of: none, block, dots"),
    ({'attention': 'flash'}, r"model.attention = 'flash' is unknown. Use one of: auto, dense"),
    ({'layers': 0}, r'model.layers = 0. Use a whole number >= 1'),
    ({'vocabulary': None}, 'model.vocabulary = None'),
    ({'mlp_width': 0}, r'model.mlp_width = 0. Use a whole number >= 1'),
  ],
)
def test_sizes_and_words_that_cannot_be_are_refused(changes, text):
  with pytest.raises(ValueError, match=text):
    decoder(**changes)


def test_a_window_of_no_keys_is_refused():
  with pytest.raises(ValueError, match='window of 0 keys'):
    decoder(window=0)


def test_any_length_fits_a_scheme_without_a_table():
  check_length(decoder(), decoder().spectrum(), 10**9)


@pytest.mark.parametrize(('norm', 'centre'), [(RMSNorm(), False), (LayerNorm(), True)])
def test_norms_are_computed_in_float32_whatever_comes_in(rng, norm, centre):
  """Sums of squares of bfloat16 values around 300 would lose the small ones."""
  x_LD = jnp.asarray(300 + 10 * rng.normal(size=(4, 64)), jnp.bfloat16)
  scale_D = rng.normal(size=64)
  params = {'scale_D': jnp.float32(scale_D)}
  bias_D = rng.normal(size=64) * centre
  if centre:
    params['bias_D'] = jnp.float32(bias_D)
  y_LD = norm.apply({'params': params}, x_LD)
  x = np.float64(x_LD)
  x = x - x.mean(-1, keepdims=True) * centre
  exact_LD = x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.epsilon) * scale_D + bias_D
  assert y_LD.dtype == jnp.bfloat16
  half = float(jnp.finfo(jnp.bfloat16).eps) / 2
  np.testing.assert_allclose(np.float64(y_LD), exact_LD, rtol=1.01 * half, atol=1e-5)
