"""Weights of four bits are those that transformers makes of them."""

import json

import numpy as np
import pytest
from checkpoints import write
from test_families import CLOSE

from posjax import interop
from posjax.interop import export, files, mxfp4


def stored(directory, **arrays):
  directory.mkdir()
  files.write_file(directory / files.WEIGHTS, arrays)
  return files.open_checkpoint(directory)


def test_they_are_those_of_transformers(published, tmp_path):
  (case,) = published('mxfp4-transformers').cases
  pair = {'x_blocks': np.uint8(case.blocks), 'x_scales': np.uint8(case.scales)}
  found = mxfp4.unpack(stored(tmp_path / 'a', **pair, other=np.zeros(3, np.float32)))
  assert found.keys() == {'x', 'other'}
  assert found['x'].shape == case.weights.shape and len(np.unique(case.weights)) > 50
  np.testing.assert_array_equal(found['x'].array(), case.weights)
  np.testing.assert_array_equal(found['x'].part(1), case.weights[1])


def packed(rng, experts, inputs, outputs):
  return (
    rng.integers(0, 256, (experts, outputs, inputs // 32, 16)).astype(np.uint8),
    rng.integers(124, 128, (experts, outputs, inputs // 32)).astype(np.uint8),
  )


def test_a_checkpoint_of_them_reads_as_that_of_their_numbers_does(rng, published, tmp_path):
  """With a config as on the Hub; what is written of it has floats, and says so."""
  case = published('checkpoint-gpt_oss').cases[0]
  shapes, pairs, whole = dict(case.shapes), {}, {}
  for n in range(3):
    name = f'model.layers.{n}.mlp.experts.gate_up_proj'
    experts, inputs, outputs = shapes.pop(name)
    blocks, scales = packed(rng, experts, inputs, outputs)
    pairs |= {f'{name}_blocks': blocks, f'{name}_scales': scales}
    scale = 2.0 ** (scales[..., None].astype(float) - 127)
    both = np.stack([mxfp4.VALUES[blocks & 15], mxfp4.VALUES[blocks >> 4]], -1)
    rows = (both.reshape(*scales.shape, 32) * scale).reshape(experts, outputs, inputs)
    whole[name] = np.float32(np.swapaxes(rows, 1, 2))
  quantised = {'quant_method': 'mxfp4', 'modules_to_not_convert': ['model.layers.*.self_attn']}
  hub = case.config | {'quantization_config': quantised, 'experts_per_token': 2}
  ours = interop.load(write(tmp_path / 'ours', hub, shapes, **pairs))
  plain = interop.load(write(tmp_path / 'plain', case.config, shapes, **whole))
  np.testing.assert_array_equal(ours(case.input_ids), plain(case.input_ids))
  assert np.abs(ours(case.input_ids) - case.logits).max() > 100 * CLOSE
  out = export.write(tmp_path / 'out', ours.config, ours.decoder, ours.params, source=hub)
  assert 'quantization_config' not in json.loads((out / 'config.json').read_text())
  np.testing.assert_allclose(interop.load(out)(case.input_ids), ours(case.input_ids), atol=CLOSE)


def test_what_is_no_such_pair_is_refused(tmp_path):
  for n, (blocks, scales) in enumerate((((2, 3, 2, 8), (2, 3, 2)), ((2, 3, 2, 16), (2, 3)))):
    pair = {'x_blocks': np.zeros(blocks, np.uint8), 'x_scales': np.zeros(scales, np.uint8)}
    with pytest.raises(ValueError, match=r"'x_blocks' of shape .* no MXFP4, which is bytes"):
      mxfp4.unpack(stored(tmp_path / str(n), **pair))


def test_other_ways_to_quantise_are_refused_by_name(published, tmp_path):
  case = published('checkpoint-gpt_oss').cases[0]
  config = case.config | {'quantization_config': {'quant_method': 'awq'}}
  with pytest.raises(ValueError, match=r"quant_method = 'awq', which posjax cannot do"):
    interop.load(write(tmp_path / 'a', config, case.shapes))
