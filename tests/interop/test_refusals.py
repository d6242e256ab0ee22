"""Checkpoints that cannot be read exactly: one clear error each, and nothing half loaded."""

import json
import pickle
import struct

import numpy as np
import pytest
from checkpoints import numbers, write
from e2e import finish, launch

from posjax import interop
from posjax.interop import checkpoint, files
from posjax.interop.keys import Keys

CONFIG = {
  'architectures': ['LlamaForCausalLM'], 'model_type': 'llama', 'vocab_size': 16,
  'hidden_size': 8, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 12,
  'max_position_embeddings': 32, 'rms_norm_eps': 1e-5, 'tie_word_embeddings': False,
}  # fmt: skip
LAYER = {
  'self_attn.q_proj': [8, 8], 'self_attn.k_proj': [8, 8], 'self_attn.v_proj': [8, 8],
  'self_attn.o_proj': [8, 8], 'mlp.gate_proj': [12, 8], 'mlp.up_proj': [12, 8],
  'mlp.down_proj': [8, 12], 'input_layernorm': [8], 'post_attention_layernorm': [8],
}  # fmt: skip
SHAPES = {
  'model.embed_tokens.weight': [16, 8], 'model.norm.weight': [8], 'lm_head.weight': [16, 8],
  **{f'model.layers.{n}.{k}.weight': shape for n in (0, 1) for k, shape in LAYER.items()},
}  # fmt: skip


def tensors(shapes=SHAPES):
  return {name: numbers(name, shape) for name, shape in shapes.items()}


@pytest.fixture
def llama(tmp_path):
  return write(tmp_path / 'llama', CONFIG, SHAPES)


def shard(directory, parts):
  """The checkpoint of a directory in shards, which `parts` gives names to by file."""
  whole = tensors()
  (directory / files.WEIGHTS).unlink()
  for file, names in parts.items():
    files.write_file(directory / file, {name: whole[name] for name in names})
  of = {name: file for file, names in parts.items() for name in names}
  (directory / files.INDEX).write_text(json.dumps({'weight_map': of}))
  return directory


def halves():
  names = sorted(SHAPES)
  return {'a-1.safetensors': names[:9], 'a-2.safetensors': names[9:]}


def test_shards_hold_what_one_file_does(llama):
  whole = interop.load(f'hf:{llama}').params
  parts = interop.load(shard(llama, halves())).params
  np.testing.assert_array_equal(whole['embedding_VD'], parts['embedding_VD'])
  np.testing.assert_array_equal(
    whole['blocks']['layer_0']['mlp']['down_MD'], parts['blocks']['layer_0']['mlp']['down_MD']
  )


@pytest.mark.slow
def test_parameters_go_to_their_shards_on_a_mesh(llama, tmp_path):
  """On four devices each holds a part of every matrix, and the logits stay."""
  program = """
import sys, numpy as np
from posjax import interop
model = interop.load(sys.argv[1], mesh={'fsdp': 2, 'tensor': 2})
attention = model.params['blocks']['layer_0']['attention']
assert attention['query_DX'].addressable_shards[0].data.shape == (2, 4, 4)
assert model.params['embedding_VD'].addressable_shards[0].data.shape == (8, 4)
np.save(sys.argv[2], model(np.arange(16)[None]))
"""
  finish(launch('-c', program, llama, tmp_path / 'logits.npy', devices=4))
  logits_BLV = interop.load(llama)(np.arange(16)[None])
  np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), logits_BLV, atol=1e-5)


def test_weights_are_read_where_the_package_safetensors_wrote_them(llama):
  safetensors = pytest.importorskip('safetensors.numpy')
  safetensors.save_file(tensors(), llama / files.WEIGHTS)
  found = files.open_checkpoint(llama)
  for name, array in tensors().items():
    np.testing.assert_array_equal(found[name].array(), array)
  files.write_file(llama / 'again.safetensors', tensors())
  again = safetensors.load_file(llama / 'again.safetensors')
  assert again.keys() == SHAPES.keys()
  np.testing.assert_array_equal(again['lm_head.weight'], numbers('lm_head.weight', [16, 8]))


def test_a_missing_shard_is_named(llama):
  (shard(llama, halves()) / 'a-2.safetensors').unlink()
  with pytest.raises(ValueError, match=r"a-2.safetensors' is missing, which model.safetensors.ind"):
    interop.load(llama)


@pytest.mark.parametrize('left', [4, 100, -1])
def test_a_file_cut_short_is_refused(llama, left):
  """Within the length, within the header, within the numbers."""
  file = llama / files.WEIGHTS
  content = file.read_bytes()
  file.write_bytes(content[:left])
  with pytest.raises(ValueError, match=r"model.safetensors' (is cut short|has \d+ bytes, but its)"):
    interop.load(llama)


def test_an_index_that_disagrees_with_its_shards_is_refused(llama):
  index = shard(llama, halves()) / files.INDEX
  of = json.loads(index.read_text())['weight_map']
  index.write_text(json.dumps({'weight_map': of | {'lm_head.bias': 'a-1.safetensors'}}))
  with pytest.raises(ValueError, match=r"the index, but not the file, has 'lm_head.bias'"):
    interop.load(llama)
  del of['model.norm.weight']
  index.write_text(json.dumps({'weight_map': of}))
  with pytest.raises(ValueError, match=r"the file, but not the index, has 'model.norm.weight'"):
    interop.load(llama)
  index.write_text(json.dumps({'weight_map': {'x': '../../etc/a.safetensors'}}))
  with pytest.raises(ValueError, match='which is no file beside it'):
    interop.load(llama)


def test_a_header_without_end_is_refused(llama):
  text = b'[' * 100_000
  (llama / files.WEIGHTS).write_bytes(struct.pack('<Q', len(text)) + text)
  with pytest.raises(ValueError, match='a header that is not that of safetensors'):
    interop.load(llama)


@pytest.mark.parametrize(
  ('tokens_BL', 'text'),
  [
    ([[16]], 'There is no token 16 in a vocabulary of 16'),
    ([[-1]], 'There is no token -1'),
    ([[0.5]], 'whole numbers, not float64'),
    ([1, 2], r'whole numbers, not int64 \[\]'),
    ([], 'A row without tokens'),
    ([[]], 'A row without tokens'),
  ],
)
def test_tokens_that_a_model_does_not_have_are_refused(llama, tokens_BL, text):
  with pytest.raises(ValueError, match=text):
    interop.load(llama)(tokens_BL)


def header(entries):
  text = json.dumps(entries).encode()
  return struct.pack('<Q', len(text)) + text


@pytest.mark.parametrize(
  ('entry', 'text'),
  [
    ({'dtype': 'F8_E4M3', 'shape': [8], 'data_offsets': [0, 8]}, "holds 'x' as F8_E4M3"),
    ({'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}, 'which do not fit each other'),
    ({'dtype': 'F32', 'shape': [1], 'data_offsets': [4, 8]}, 'with a gap or no shape'),
    ({'dtype': 'F32', 'shape': [-2], 'data_offsets': [0, 8]}, 'with a gap or no shape'),
    ({'dtype': 'F32', 'shape': [2]}, 'a header that is not that of safetensors'),
    ([2], 'a header that is not that of safetensors'),
  ],
)
def test_a_header_that_contradicts_itself_is_refused(llama, entry, text):
  (llama / files.WEIGHTS).write_bytes(header({'x': entry}) + bytes(8))
  with pytest.raises(ValueError, match=text):
    interop.load(llama)


@pytest.mark.parametrize(
  ('shapes', 'text'),
  [
    ({'model.norm.weight': None}, 'The checkpoint lacks model.norm.weight'),
    ({'model.layers.2.mlp.up_proj.weight': [12, 8]}, 'has, beyond what its config describes, mod'),
    ({'model.layers.1.self_attn.q_proj.bias': [8]}, 'layers.1.self_attn.q_proj.bias'),
    (
      {'model.layers.1.mlp.up_proj.weight': [8, 12]},
      r'of shape \[8, 12\], but by its config it is',
    ),
    ({'model.embed_tokens.weight': [15, 8]}, r'of shape \[15, 8\], but .* it is \[16, 8\]'),
  ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(tmp_path, shapes, text):
  shapes = {name: shape for name, shape in {**SHAPES, **shapes}.items() if shape is not None}
  with pytest.raises(ValueError, match=text):
    interop.load(write(tmp_path / 'llama', CONFIG, shapes))


def test_whole_numbers_are_no_weights(tmp_path):
  extra = {'model.norm.weight': np.ones(8, np.int32)}
  with pytest.raises(ValueError, match=r"has 'model.norm.weight' as I32, which is no weight"):
    interop.load(write(tmp_path / 'llama', CONFIG, SHAPES, **extra))


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'architectures': ['MambaForCausalLM']}, "architectures = 'MambaForCausalLM', which posjax"),
    ({'architectures': None, 'model_type': 'mamba'}, "has model_type = 'mamba'"),
    ({'model_type': 'gpt2'}, "has model_type = 'gpt2', which posjax cannot do. For LlamaForCausal"),
    ({'vocab_size': None}, "has no 'vocab_size'"),
    ({'num_hidden_layers': 0}, 'num_hidden_layers = 0, which'),
    ({'num_attention_heads': 3}, 'num_attention_heads = 3, which'),
    ({'hidden_act': 'mish'}, "hidden_act = 'mish', which posjax cannot do"),
    ({'attention_bias': 'yes'}, "attention_bias = 'yes'"),
    ({'quantization_config': {'bits': 4}}, "quantization_config = {'bits': 4}"),
    ({'attn_logit_softcapping': 50.0}, 'attn_logit_softcapping = 50.0'),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor = 0.5'),
    ({'rope_scaling': {'type': 'spiral'}}, "rope_type = 'spiral', which posjax cannot do. It can"),
    ({'rope_scaling': {'type': 'linear'}}, "rope_scaling, has no 'factor'"),
    ({'rope_scaling': {'type': 'linear', 'factor': 0.5}}, 'factor = 0.5'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'beta': 3}}, 'beta = 3'),
    ({'rope_parameters': {'rope_type': 'default', 'mrope_section': [2, 1, 1]}}, 'mrope_section'),
    ({'rope_theta': 1}, 'rope_theta = 1'),
    ({'rope_theta': float('inf')}, 'rope_theta = inf, which'),
    ({'rms_norm_eps': float('nan')}, 'rms_norm_eps = nan, which'),
    ({'rms_norm_eps': -1.0}, r'norm_epsilon = -1\.0\. Use a number >= 0'),
    ({'rope_scaling': {'rope_type': ['yarn']}}, r"rope_type = \['yarn'\], which"),
    (
      {'rope_scaling': {'type': 'longrope', 'short_factor': 3, 'long_factor': [1.0]}},
      'short_factor = 3, which posjax cannot do. It must be a list of numbers',
    ),
    (
      {'rope_scaling': {'type': 'longrope', 'short_factor': [1.0, 1.0], 'long_factor': [1.0, 1.0],
                        'original_max_position_embeddings': 1}},
      'original_max_position_embeddings = 1, which',
    ),
    ({'rope_scaling': 'linear'}, "rope_scaling = 'linear'"),
    (
      {'rope_scaling': {'type': 'yarn', 'factor': 2.0, 'original_max_position_embeddings': 8},
       'original_max_position_embeddings': 16},
      'original_max_position_embeddings = 8',
    ),
  ],
)  # fmt: skip
def test_a_config_that_asks_for_something_else_is_refused_and_the_key_named(
  tmp_path, changes, text
):
  with pytest.raises(ValueError, match=text):
    interop.load(write(tmp_path / 'llama', CONFIG | changes, SHAPES))


@pytest.mark.parametrize(
  ('family', 'changes', 'text'),
  [
    ('gpt_oss', {'hidden_act': 'gelu'}, "hidden_act = 'gelu'"),
    ('gpt_oss', {'swiglu_alpha': 1.5}, r'swiglu_alpha = 1\.5, which posjax cannot do\. It can'),
    ('gpt_oss', {'experts_per_token': 3}, 'experts_per_token = 3, .* By its other keys it is 2'),
    ('gpt_oss', {'sliding_window': None}, 'sliding_window = None'),
    ('llama4_text', {'attention_chunk_size': None}, 'attention_chunk_size = None'),
    ('llama4_text', {'attn_scale': -0.1}, r'attn_scale = -0\.1'),
    ('llama4_text', {'no_rope_layers': [1, 0]}, r'no_rope_layers = \[1, 0\]'),
    ('llama4_text', {'layer_types': ['sliding_attention'] * 3}, 'layer_types = '),
    ('llama4_text', {'moe_layers': 2}, 'moe_layers = 2'),
    ('llama4_text', {'use_qk_norm': 'l2'}, "use_qk_norm = 'l2'"),
    ('transfo_xl', {'div_val': 4}, 'div_val = 4, which posjax cannot do. It can do: 1'),
    ('transfo_xl', {'d_embed': 8}, 'd_embed = 8, .* By its other keys it is 16'),
    ('transfo_xl', {'mem_len': 20}, 'mem_len = 20'),
    ('transfo_xl', {'same_length': True}, 'same_length = True'),
    ('transfo_xl', {'pre_lnorm': True}, 'pre_lnorm = True'),
    ('transfo_xl', {'cutoffs': [12, 5]}, r'cutoffs = \[12, 5\]'),
    ('transfo_xl', {'attn_type': 1}, 'attn_type = 1'),
  ],
)
def test_a_familys_own_keys_are_refused_by_name(family, changes, text, published, tmp_path):
  case = published(f'checkpoint-{family}').cases[0]
  with pytest.raises(ValueError, match=text):
    interop.load(write(tmp_path / family, case.config | changes, case.shapes))


def test_keys_that_ask_for_nothing_are_no_error(tmp_path):
  extra = {'some_flag': False, 'some_value': None, 'attention_dropout': 0.1, 'use_cache': True}
  interop.load(write(tmp_path / 'llama', CONFIG | extra, SHAPES))


def test_a_flag_that_is_null_is_false_whatever_it_is_where_it_is_absent():
  """As in transformers, where null stands in for no default and is not true."""
  keys = Keys({'rope_interleave': None}, 'config.json')
  assert not keys.flag('rope_interleave', True)
  assert keys.flag('norm_topk_prob', True)


def test_pickles_are_refused_and_never_opened(llama, tmp_path):
  class Trap:
    def __reduce__(self):
      return (open, (str(tmp_path / 'sprung'), 'w'))

  (llama / files.WEIGHTS).unlink()
  (llama / 'pytorch_model.bin').write_bytes(pickle.dumps(Trap()))
  with pytest.raises(ValueError, match=r'pytorch_model.bin: pickled, which runs code'):
    interop.load(llama)
  with pytest.raises(ValueError, match='pickled, which runs code when it is read'):
    interop.load(llama / 'pytorch_model.bin')
  assert not (tmp_path / 'sprung').exists()


def test_code_beside_the_weights_is_never_run(tmp_path):
  config = CONFIG | {'auto_map': {'AutoModelForCausalLM': 'modeling.Trap'}}
  directory = write(tmp_path / 'llama', config, SHAPES)
  (directory / 'modeling.py').write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
  (directory / 'configuration.py').write_text((directory / 'modeling.py').read_text())
  interop.load(directory)
  assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize(
  ('content', 'text'),
  [
    (None, "There is no '.*config.json'"), ('{', 'is no JSON'), ('[]', 'holds no JSON object'),
    ('[' * 100_000, 'is no JSON'),
  ],
)
def test_a_directory_without_a_config_is_no_checkpoint(llama, content, text):
  (llama / 'config.json').unlink()
  if content is not None:
    (llama / 'config.json').write_text(content)
  with pytest.raises(ValueError, match=text):
    interop.load(llama)


def test_other_formats_are_named(llama):
  (llama / files.WEIGHTS).rename(llama / 'tf_model.h5')
  with pytest.raises(ValueError, match=r'It holds tf_model.h5'):
    interop.load(llama)


def test_a_tied_head_that_is_stored_counts_where_it_differs(tmp_path):
  """As in transformers 5: tied where the two are equal or one is missing, else as stored."""
  tied = CONFIG | {'tie_word_embeddings': True}
  same = {'lm_head.weight': numbers('model.embed_tokens.weight', [16, 8])}
  assert 'head_DV' not in interop.load(write(tmp_path / 'same', tied, SHAPES, **same)).params
  assert 'head_DV' in interop.load(write(tmp_path / 'other', tied, SHAPES)).params
  without = {name: shape for name, shape in SHAPES.items() if name != 'lm_head.weight'}
  assert 'head_DV' not in interop.load(write(tmp_path / 'none', tied, without)).params


def test_names_may_lack_the_prefix_of_a_model_with_a_head(tmp_path):
  short = {name.removeprefix('model.'): shape for name, shape in SHAPES.items()}
  opened = checkpoint.open_directory(write(tmp_path / 'llama', CONFIG, short))
  assert opened.tensors.keys() == SHAPES.keys()


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(llama):
  tokenizers = pytest.importorskip('tokenizers')
  words = {'<s>': 0} | {f'w{n}': n for n in range(1, 17)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token='<s>'))
  tokenizer.add_special_tokens(['<s>'])
  tokenizer.save(str(llama / 'tokenizer.json'))
  with pytest.raises(ValueError, match='makes 17 ids, but the model has 16'):
    interop.load(llama)
