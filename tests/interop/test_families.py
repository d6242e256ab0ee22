"""Every family's logits against those of transformers, from tests/fixtures/make_checkpoints.py."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write
from e2e import finish, launch

from posjax import interop
from posjax.interop import checkpoint, family

FIXTURES = pathlib.Path(__file__).parent.parent / 'fixtures'
# By default all rope types, and the first case of each other family; the others are slow.
CASES = [
  pytest.param(
    file.stem, n, id=f'{file.stem.removeprefix("checkpoint-")}-{n}',
    marks=[pytest.mark.slow] * (n > 0 and file.stem != 'checkpoint-llama'),
  )
  for file in sorted(FIXTURES.glob('checkpoint-*.json'))
  for n in range(len(json.loads(file.read_text())['cases']))
]  # fmt: skip
CLOSE = 1e-4  # of logits up to about 10, after a few hundred sums in float32


def by_hub(config):
  """The same config as checkpoints on the Hub spell it."""
  config = {key: value for key, value in config.items() if key != 'transformers_version'}
  config['torch_dtype'] = config.pop('dtype', None)
  rope = config.pop('rope_parameters', None)
  if 'full_attention' in (rope or {}):
    full, near = (rope[kind] for kind in ('full_attention', 'sliding_attention'))
    config |= {'rope_theta': full.pop('rope_theta'), 'rope_local_base_freq': near['rope_theta']}
    config['rope_scaling'] = None if full['rope_type'] == 'default' else full
  elif rope:
    theta, share = rope.pop('rope_theta'), rope.pop('partial_rotary_factor', None)
    if config['model_type'] == 'gpt_neox':
      config |= {'rotary_emb_base': theta, 'rotary_pct': share}
    else:
      config |= {'rope_theta': theta, 'partial_rotary_factor': share}
    kind = rope.pop('rope_type')
    config['rope_scaling'] = None if kind == 'default' else rope | {'type': kind}
  return config


@pytest.mark.parametrize(('file', 'n'), CASES)
def test_logits_are_those_of_transformers(file, n, published, tmp_path):
  case = published(file).cases[n]
  model = interop.load(write(tmp_path / 'checkpoint', case.config, case.shapes))
  np.testing.assert_allclose(model(case.input_ids), case.logits, rtol=0, atol=CLOSE)
  if hasattr(case, 'cached_logits'):
    length = case.input_ids.shape[1]
    cached = model.spectrum(length, mode='as_deployed', prefill=case.prefill)
    np.testing.assert_allclose(
      model(case.input_ids, cached), case.cached_logits, rtol=0, atol=CLOSE
    )
    assert np.abs(case.logits - case.cached_logits).max() > 100 * CLOSE


@pytest.mark.parametrize(('file', 'n'), CASES)
def test_a_config_in_the_spelling_of_the_hub_reads_the_same(file, n, published, tmp_path):
  case = published(file).cases[n]
  ours = checkpoint.open_directory(write(tmp_path / 'new', case.config, case.shapes))
  hub = checkpoint.open_directory(write(tmp_path / 'hub', by_hub(case.config), case.shapes))
  assert hub.config == ours.config


@pytest.mark.parametrize(('file', 'n'), [('checkpoint-llama', 2), ('checkpoint-gemma2', 0),
                                           ('checkpoint-gpt_oss', 0), ('checkpoint-llama4_text', 0),
                                          ])  # fmt: skip
def test_decoding_with_a_cache_gives_the_logits_of_cached_decoding(file, n, published, tmp_path):
  """Where the rotation follows the length; where keys leave a window and logits are capped; where
  a logit has no value; in chunks, and where queries know their position."""
  case = published(file).cases[n]
  model = interop.load(write(tmp_path / 'checkpoint', case.config, case.shapes))
  length, prefill = case.input_ids.shape[1], getattr(case, 'prefill', 12)
  steps = model.decode(batch=1, size=length, prefill=prefill)
  found = [steps(case.input_ids[:, :prefill])]
  found += [steps(case.input_ids[:, n : n + 1]) for n in range(prefill, length)]
  expected = getattr(case, 'cached_logits', case.logits)
  np.testing.assert_allclose(jnp.concatenate(found, axis=1), expected, rtol=0, atol=CLOSE)
  with pytest.raises(ValueError, match=f'holds {length} tokens .* one would have {length + 1}'):
    steps(case.input_ids[:, :1])


@pytest.mark.slow
def test_experts_stored_in_one_tensor_go_to_their_devices(published, tmp_path):
  case = published('checkpoint-gpt_oss').cases[0]
  directory = write(tmp_path / 'checkpoint', case.config, case.shapes)
  program = """
import sys, json, numpy as np
from posjax import interop
model = interop.load(sys.argv[1], mesh={'fsdp': 2, 'tensor': 2})
matrix_EDM = model.params['blocks']['layer_0']['mlp']['experts']['gate_EDM']
assert matrix_EDM.shape == (1, 4, 32, 12)
assert matrix_EDM.addressable_shards[0].data.shape == (1, 2, 16, 12)
np.save(sys.argv[2], model(np.array(json.loads(sys.argv[3]))))
"""
  tokens = json.dumps(np.asarray(case.input_ids).tolist())
  finish(launch('-c', program, directory, tmp_path / 'logits.npy', tokens, devices=4))
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), case.logits, rtol=0, atol=CLOSE)


def test_every_family_has_logits_to_be_held_to():
  assert {file.stem for file in FIXTURES.glob('checkpoint-*.json')} == {
    f'checkpoint-{name}' for name in family.names()
  }


@pytest.mark.parametrize('dtype', ['BF16', 'F16'])
def test_half_precision_sources_give_the_same_numbers(dtype, published, tmp_path):
  """The numbers are exact in both: only their cast can go wrong."""
  case = published('checkpoint-llama').cases[0]
  model = interop.load(write(tmp_path / 'half', case.config, case.shapes, dtype=dtype))
  assert model.params['embedding_VD'].dtype == jnp.float32
  np.testing.assert_allclose(model(case.input_ids), case.logits, rtol=0, atol=CLOSE)


def test_layers_that_predict_further_tokens_are_left_alone_and_others_are_not(published, tmp_path):
  case = published('checkpoint-deepseek_v3').cases[0]
  assert case.config['num_hidden_layers'] == 2 and case.config['num_nextn_predict_layers'] == 1
  further = {'model.layers.2.eh_proj.weight': np.zeros((16, 32), np.float32)}
  interop.load(write(tmp_path / 'a', case.config, case.shapes, **further))
  beyond = {'model.layers.3.eh_proj.weight': np.zeros((16, 32), np.float32)}
  with pytest.raises(ValueError, match=r'layers\.3\.eh_proj'):
    interop.load(write(tmp_path / 'b', case.config, case.shapes, **beyond))


def test_a_rotation_that_nobody_speaks_of_is_the_familys_own_and_one_of_null_is_none(
  published, tmp_path
):
  """gpt-oss is stretched then. Null is read as transformers 4 did, which wrote `rope_scaling`; 5
  takes it for nothing said."""
  case = published('checkpoint-gpt_oss').cases[0]
  bare = {key: value for key, value in case.config.items() if key != 'rope_parameters'}
  opened = checkpoint.open_directory(write(tmp_path / 'a', bare, case.shapes)).config
  found = opened.extension
  assert (found.name, found.factor, found.trained_length) == ('yarn', 32.0, 4096)
  assert not found.truncate and opened.position.theta == 150_000
  null = bare | {'rope_scaling': None, 'rope_theta': 100.0}
  opened = checkpoint.open_directory(write(tmp_path / 'b', null, case.shapes)).config
  assert (opened.extension.name, opened.position.theta) == ('none', 100.0)


def test_an_extension_of_layers_that_know_no_positions_is_none(published, tmp_path):
  case = published('checkpoint-smollm3').cases[0]
  changes = {
    'no_rope_layers': [0] * 5, 'rope_parameters': {'rope_type': 'linear', 'factor': 2.0},
  }  # fmt: skip
  opened = checkpoint.open_directory(write(tmp_path / 'a', case.config | changes, case.shapes))
  assert opened.config.extension.name == 'none'
