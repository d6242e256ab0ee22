import jax.numpy as jnp
import numpy as np
import pytest

from posjax import positions
from posjax.extension import extend

DIMS = positions.Dims(width=16, heads=2, kv_heads=1, head_width=8, length=64)
EPS = np.finfo(np.float32).eps


def score(q_K, k_K, m, n, theta=1e4, gamma=0.4, scale_base=512, waves=1.0, fading=1.0):
  """Sun et al. 2022, eq. of xPos, pairs (f, f + K/2): float64, from the distance alone."""
  K, total = len(q_K), 0.0
  for f in range(K // 2):
    zeta = (f / (K / 2) + gamma) / (1 + gamma)
    q, k = (complex(x[f], x[f + K // 2]) for x in (q_K, k_K))
    turn = np.exp(1j * (m - n) * theta ** (-2 * f / K) / waves)
    total += zeta ** ((m - n) / scale_base / fading) * (q * k.conjugate() * turn).real
  return total


def bound(q_K, k_K, m, n, **settings):
  """Rounding of angles as large as the positions, of exponents up to 40, of the sum."""
  q_K, k_K = (np.tile(np.hypot(*np.split(x, 2)), 2) / 2**0.5 for x in (q_K, k_K))
  return EPS * 4 * (max(m, n) + 100) * score(q_K, k_K, m, n, waves=1e300, **settings)


def hooks(scheme, q_LHK, k_LGK, pos_L, spectrum=None, dtype=jnp.float32):
  spectrum = spectrum or scheme.spectrum(DIMS)
  return (
    scheme.query({}, spectrum, jnp.asarray(q_LHK, dtype), jnp.asarray(pos_L)),
    scheme.key({}, spectrum, jnp.asarray(k_LGK, dtype), jnp.asarray(pos_L)),
  )


def scores(scheme, q_LHK, k_LGK, pos_L, spectrum=None):
  q_LHK, k_LGK = hooks(scheme, q_LHK, k_LGK, pos_L, spectrum)
  return np.einsum('ihk,jk->hij', np.float64(q_LHK), np.float64(k_LGK)[:, 0])


def vectors(rng, L):
  return np.float32(rng.normal(size=(L, 2, 8))), np.float32(rng.normal(size=(L, 1, 8)))


@pytest.mark.parametrize(
  'settings', [{}, {'theta': 100.0}, {'gamma': 0.1}, {'gamma': 3.0}, {'scale_base': 64}]
)
def test_scores_turn_and_fade_as_in_the_paper(rng, settings):
  pos_L = np.array([0, 1, 5, 300])
  q_LHK, k_LGK = vectors(rng, 4)
  s_HIJ = scores(positions.make('xpos', **settings), q_LHK, k_LGK, pos_L)
  for h, i, j in np.ndindex(2, 4, 4):
    arguments = q_LHK[i, h], k_LGK[j, 0], pos_L[i], pos_L[j]
    fades = {key: value for key, value in settings.items() if key != 'theta'}
    error = bound(*arguments, **fades)
    assert abs(s_HIJ[h, i, j] - score(*arguments, **settings)) < error
    if abs(pos_L[i] - pos_L[j]) < 200:
      continue
    others = [
      score(*arguments, **settings | {'fading': 1e9}),  # RoPE
      score(*arguments, **settings | {'fading': -1.0}),  # queries grow: the sign is wrong
      score(*arguments, **settings | {'gamma': settings.get('gamma', 0.4) / 2}),
      score(*arguments, **settings | {'scale_base': settings.get('scale_base', 512) / 2}),
      score(*arguments, **settings | {'theta': settings.get('theta', 1e4) * 2}),
    ]
    assert min(abs(s_HIJ[h, i, j] - other) for other in others) > error


def test_16_384_tokens_neither_overflow_nor_lose_what_is_near_or_far(rng):
  """Uncentred, keys at the end would be e^40 times those at the beginning, queries e^-40."""
  pos_L = np.array([0, 1, 8191, 8192, 16_000, 16_382, 16_383])
  q_LHK, k_LGK = vectors(rng, len(pos_L))
  scheme = positions.make('xpos')
  q, k = hooks(scheme, q_LHK, k_LGK, pos_L)
  assert max(np.abs(q).max(), np.abs(k).max()) < 1e18
  s_HIJ = scores(scheme, q_LHK, k_LGK, pos_L)
  for h, i, j in np.ndindex(2, len(pos_L), len(pos_L)):
    if j <= i:
      arguments = q_LHK[i, h], k_LGK[j, 0], pos_L[i], pos_L[j]
      assert abs(s_HIJ[h, i, j] - score(*arguments)) < bound(*arguments)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_as_many_tokens_as_there_are_positions_stay_finite_also_where_a_mask_hides_them(rng, dtype):
  scheme = positions.make('xpos')
  last = scheme.capacity(scheme.spectrum(DIMS), DIMS) - 1
  assert 32_768 <= last < 33_500
  pos_L = np.array([0, 1, last // 2, last - 1, last])
  q_LHK, k_LGK = (10 * x for x in vectors(rng, 5))
  q, k = hooks(scheme, q_LHK, k_LGK, pos_L, dtype=dtype)
  assert np.isfinite(jnp.einsum('ihk,jgk->hij', q, k, preferred_element_type=jnp.float32)).all()
  size = np.abs(np.float64(q)[-1] * np.float64(k)[-1]).sum(-1)
  plain = np.abs(np.float64(q_LHK)[-1] * np.float64(k_LGK)[-1]).sum(-1)
  assert (size > 0.1 * plain).all()  # a token at the end still sees itself


def test_a_key_is_the_same_in_rows_of_any_length(rng):
  """The authors' code centres on the row: keys of 8 tokens would not fit queries of 16."""
  scheme = positions.make('xpos', scale_base=4)
  q_LHK, k_LGK = vectors(rng, 16)
  _, cached = hooks(scheme, q_LHK[:8], k_LGK[:8], np.arange(8))
  _, k = hooks(scheme, q_LHK, k_LGK, np.arange(16))
  np.testing.assert_array_equal(cached, k[:8])
  zeta = 0.4 / 1.4
  assert zeta ** (-(16 // 2 - 8 // 2) / 4) > 3  # by which theirs would be off


@pytest.mark.parametrize('method', ['linear', 'ntk', 'yarn'])
def test_linear_stretches_waves_and_fading_and_the_others_waves_alone(rng, method):
  scheme = positions.make('xpos')
  trained = scheme.spectrum(DIMS)
  spectrum = extend(trained, name=method, factor=4.0, trained_length=64)
  assert spectrum.rate == (0.25 if method == 'linear' else 1.0)
  q_LHK, k_LGK = vectors(rng, 4)
  pos_L = np.array([0, 1, 5, 300])
  if method == 'linear':
    s_HIJ = scores(scheme, q_LHK, k_LGK, pos_L, spectrum)
    arguments = q_LHK[3, 1], k_LGK[0, 0], 300, 0
    exact = score(*arguments, waves=4.0, fading=4.0)
    assert abs(s_HIJ[1, 3, 0] - exact) < bound(*arguments)
    halfway = score(*arguments, waves=4.0)  # frequencies alone, as x-transformers interpolates
    assert abs(exact - halfway) > 100 * bound(*arguments)
    stretched = scheme.capacity(spectrum, DIMS) / scheme.capacity(trained, DIMS)
    assert abs(stretched - 4) < 1e-3


def test_what_cannot_fade_or_cannot_be_held_is_refused():
  for name in ('gamma', 'scale_base'):
    with pytest.raises(ValueError, match=f'{name} = 0 cannot fade. Use one above 0'):
      positions.make('xpos', **{name: 0})
  scheme, x_LHK = positions.make('xpos'), jnp.zeros((1, 1, 8), jnp.float16)
  for hook in (scheme.query, scheme.key):
    with pytest.raises(ValueError, match=r'up to e\^40, .* Use --config.model.dtype=bfl'):
      hook({}, scheme.spectrum(DIMS), x_LHK, jnp.arange(1))
