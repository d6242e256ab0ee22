"""GGUF files: the same logits as a Hugging Face directory of the same, dequantised, weights."""

import json

import jax
import numpy as np
import pytest
from checkpoints import numbers, write
from test_refusals import CONFIG

from posjax import interop, loading

gguf = pytest.importorskip('gguf')
KINDS = gguf.GGMLQuantizationType
D, M, H, G, V = 64, 96, 4, 2, 30  # widths of rows that blocks of 32 divide
SHAPES = {
  'token_embd': [V, D], 'output_norm': [D],
  **{
    f'blk.{n}.{name}': shape
    for n in range(2)
    for name, shape in {
      'attn_norm': [D], 'ffn_norm': [D], 'attn_q': [D, D], 'attn_k': [D // 2, D],
      'attn_v': [D // 2, D], 'attn_output': [D, D], 'ffn_gate': [M, D], 'ffn_up': [M, D],
      'ffn_down': [D, M],
    }.items()
  },
}  # fmt: skip
HF = {
  'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'attn_norm': 'input_layernorm',
  'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
  'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj',
}  # fmt: skip
METADATA = {
  'block_count': 2, 'embedding_length': D, 'feed_forward_length': M, 'context_length': 32,
  'attention.head_count': H, 'attention.head_count_kv': G, 'rope.dimension_count': D // H,
  'rope.freq_base': 500.0, 'attention.layer_norm_rms_epsilon': 2.0**-7,
}  # fmt: skip


def make(file, kind=KINDS.F32, changes=(), extra=(), tokens=None, pieces=None):
  """A GGUF file of the family `llama`; returns what its tensors are once dequantised."""
  writer = gguf.GGUFWriter(file, 'llama')
  for name, value in (METADATA | dict(changes)).items():
    if isinstance(value, str):
      writer.add_string(f'llama.{name}', value)
    elif isinstance(value, float):
      writer.add_float32(f'llama.{name}', value)
    else:
      writer.add_uint32(f'llama.{name}', value)
  if tokens:
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('smollm')
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges(['Ġ t'])
  if pieces:
    token, score, own, settings = pieces
    writer.add_tokenizer_model('llama')
    writer.add_token_list(token)
    writer.add_token_scores(score)
    writer.add_token_types(own)
    for key, value in settings.items():
      getattr(writer, f'add_{key}')(value)
  kept = {}
  for name, shape in (SHAPES | {'token_embd': [len(pieces[0]) if pieces else V, D]}).items():
    x = numbers(name + '.weight', shape)
    own = KINDS.F32 if len(shape) == 1 else kind
    stored = gguf.quantize(x, own)
    writer.add_tensor(f'{name}.weight', stored, raw_dtype=own)
    kept[name] = gguf.dequantize(stored, own).reshape(shape)
  for name, x in dict(extra).items():
    writer.add_tensor(name, x)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return kept


def directory(path, kept, **changes):
  """The same weights as a Hugging Face directory, with q and k in halves, not interleaved."""
  tensors = {}
  for name, x in kept.items():
    parts = name.split('.')
    if parts[-1] in ('attn_q', 'attn_k'):  # the inverse of what llama.cpp's converter does
      x = x.reshape(-1, D // H // 2, 2, D).swapaxes(1, 2).reshape(x.shape)
    layer = f'model.layers.{parts[1]}.' if len(parts) == 3 else ''
    tensors[f'{layer}{HF[parts[-1]]}.weight'] = np.ascontiguousarray(x, np.float32)
  config = CONFIG | {
    'vocab_size': V, 'hidden_size': D, 'intermediate_size': M, 'num_attention_heads': H,
    'num_key_value_heads': G, 'rope_theta': 500.0, 'rms_norm_eps': 2.0**-7,
    'tie_word_embeddings': True,
  }  # fmt: skip
  return write(path, config | changes, {}, **tensors)


@pytest.mark.parametrize('kind', [KINDS.F32, KINDS.F16, KINDS.Q8_0, KINDS.Q4_1], ids=str)
def test_parameters_are_the_dequantised_ones_of_the_same_model(kind, tmp_path):
  kept = make(tmp_path / 'm.gguf', kind)
  ours = interop.load(tmp_path / 'm.gguf')
  theirs = interop.load(directory(tmp_path / 'hf', kept))
  jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
  assert ours.config.model == theirs.config.model
  assert ours.config.position == theirs.config.position


def test_a_scaling_and_stored_divisors_become_extensions(tmp_path):
  scaling = {
    'rope.scaling.type': 'yarn', 'rope.scaling.factor': 4.0,
    'rope.scaling.original_context_length': 8,
  }  # fmt: skip
  make(tmp_path / 'yarn.gguf', changes=scaling)
  extension = interop.load(tmp_path / 'yarn.gguf').config.extension
  assert (extension.name, extension.factor, extension.trained_length) == ('yarn', 4.0, 8)
  divisor_F = np.linspace(1, 8, 8, dtype=np.float32)
  make(tmp_path / 'divided.gguf', extra={'rope_freqs.weight': divisor_F})
  model = interop.load(tmp_path / 'divided.gguf')
  (plain,), (divided,) = model.decoder.spectrum(), model.spectrum(16)
  np.testing.assert_allclose(divided.frequency_F, plain.frequency_F / divisor_F)


def test_its_tokenizer_reads_text(tmp_path):
  pytest.importorskip('tokenizers')
  tokens = ['<|endoftext|>', 'Ġ', 't', 'a', 'Ġt', '1', '2', *map(chr, range(65, 88))]
  make(tmp_path / 'm.gguf', tokens=tokens)
  loaded = loading.load(tmp_path / 'out', f'gguf:{tmp_path / "m.gguf"}')
  assert list(loaded.tokenizer.encode('a ta12')) == [3, 4, 3, 5, 6]  # each digit alone
  assert loaded.tokenizer.decode([3, 4, 3, 5, 6]) == 'a ta12'
  assert loaded.tokenizer.bos == 0
  json.loads(loaded.tokenizer.content)


@pytest.fixture(scope='module')
def sentences(tmp_path_factory):
  """A SentencePiece model of byte pairs as Llama's, learned from posjax's own words."""
  sentencepiece = pytest.importorskip('sentencepiece')
  folder = tmp_path_factory.mktemp('pieces')
  sentencepiece.SentencePieceTrainer.train(
    input=loading.__file__, model_prefix=str(folder / 'm'), vocab_size=500, model_type='bpe',
    byte_fallback=True, normalization_rule_name='identity', remove_extra_whitespaces=False,
    user_defined_symbols=['<|im_start|>'], minloglevel=2,
  )  # fmt: skip
  return sentencepiece.SentencePieceProcessor(model_file=str(folder / 'm.model'))


@pytest.mark.parametrize('prefix', [True, False])
def test_pieces_become_the_sentencepiece_model_they_were(prefix, sentences, tmp_path):
  ids = range(sentences.get_piece_size())
  kinds = [
    2 if sentences.is_unknown(n) else 3 if sentences.is_control(n) else 6 if sentences.is_byte(n)
    else 4 if sentences.id_to_piece(n) == '<|im_start|>' else 1
    for n in ids
  ]  # fmt: skip
  settings = {'unk_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2, 'add_space_prefix': prefix}
  pieces = [sentences.id_to_piece(n) for n in ids], [sentences.get_score(n) for n in ids], kinds
  make(tmp_path / 'm.gguf', pieces=(*pieces, settings))
  ours = loading.load(tmp_path / 'out', f'gguf:{tmp_path / "m.gguf"}').tokenizer
  assert (ours.vocabulary, ours.bos, ours.FILE) == (500, 1, 'tokenizer.model')
  for text in ('The run of a config', 'two  spaces, \n a line', 'é ☃ <|im_start|>user', ''):
    expected = sentences.encode(text)
    if not prefix and text:  # what stands before the first word there
      expected = sentences.encode('\n' + text)[2:]
    assert list(ours.encode(text)) == expected
    assert ours.decode(ours.encode(text)) == text


def test_pieces_without_scores_are_refused(tmp_path):
  kinds = {'unk_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
  make(tmp_path / 'm.gguf', pieces=(['<unk>', '<s>', '</s>'], [0.0, 0.0], [2, 3, 3], kinds))
  with pytest.raises(ValueError, match='has 3 tokens, 2 scores and 3 types'):
    interop.load(tmp_path / 'm.gguf')


@pytest.mark.parametrize(
  ('changes', 'extra', 'text'),
  [
    ({'rope.scaling.type': 'longrope'}, {}, "rope.scaling.type = 'longrope', which posjax cannot"),
    ({'attention.sliding_window': 4}, {}, 'attention.sliding_window = 4'),
    ({'rope.dimension_count': 8}, {}, 'rope.dimension_count = 8'),
    ({}, {'blk.0.attn_q.bias': np.zeros(D, np.float32)}, r'layers\.0\.self_attn\.q_proj\.bias'),
    ({'block_count': 3}, {}, 'The checkpoint lacks model.layers.2'),
  ],
)
def test_what_it_asks_for_beyond_the_family_is_refused(tmp_path, changes, extra, text):
  make(tmp_path / 'm.gguf', changes=changes, extra=extra)
  with pytest.raises(ValueError, match=text):
    interop.load(tmp_path / 'm.gguf')


@pytest.mark.parametrize('left', [3, 60, 4000, -100])
def test_a_file_cut_short_is_no_whole_file(tmp_path, left):
  file = tmp_path / 'm.gguf'
  make(file)
  file.write_bytes(file.read_bytes()[:left])
  with pytest.raises(ValueError, match='is no whole GGUF file'):
    interop.load(file)
  with pytest.raises(ValueError, match='There is no file'):
    interop.load(tmp_path / 'none.gguf')


def test_other_architectures_are_refused(tmp_path):
  writer = gguf.GGUFWriter(tmp_path / 'm.gguf', 'mamba')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  with pytest.raises(ValueError, match=r"general.architecture = 'mamba'.*It knows: llama"):
    interop.load(tmp_path / 'm.gguf')
