import io
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers as huggingface

from posjax.data import load_tokenizer, make_tokenizer, tokenizers

TEXT = 'The quick brown fox jumps over the lazy dog.'


def sentencepiece_model(path, **options):
  content = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter([TEXT] * 10), model_writer=content, vocab_size=32,
      hard_vocab_limit=False, minloglevel=2, **options)
  path.write_bytes(content.getvalue())
  return str(path)


def tokenizer_json(path, special):
  tokenizer = huggingface.Tokenizer(huggingface.models.BPE())
  tokenizer.pre_tokenizer = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = huggingface.decoders.ByteLevel()
  tokenizer.train_from_iterator([TEXT], huggingface.trainers.BpeTrainer(
      special_tokens=special, show_progress=False,
      initial_alphabet=huggingface.pre_tokenizers.ByteLevel.alphabet()))
  tokenizer.enable_truncation(5)
  tokenizer.enable_padding(length=64)
  tokenizer.save(str(path))
  return str(path)


@pytest.fixture(params=['bytes', 'sentencepiece', 'hugging face'])
def tokenizer(request, tmp_path):
  return make_tokenizer({
      'bytes': lambda: 'bytes',
      'sentencepiece': lambda: sentencepiece_model(tmp_path / 'a.model'),
      'hugging face': lambda: tokenizer_json(tmp_path / 'a.json', ['<s>', '</s>']),
  }[request.param]())


def test_text_survives_the_round_trip(tokenizer):
  ids = tokenizer.encode(TEXT)
  assert ids.dtype == np.int32
  assert ((ids >= 0) & (ids < tokenizer.vocabulary)).all()
  assert tokenizer.bos not in ids
  assert tokenizer.decode(ids) == TEXT
  assert tokenizer.decode([tokenizer.bos, *ids]) == TEXT


def test_a_run_directory_keeps_the_tokenizer(tokenizer, tmp_path):
  (tmp_path / 'run').mkdir()
  tokenizer.save(tmp_path / 'run')
  again = load_tokenizer(tmp_path / 'run')
  assert (again.vocabulary, again.bos, again.fingerprint) == (
      tokenizer.vocabulary, tokenizer.bos, tokenizer.fingerprint)
  np.testing.assert_array_equal(again.encode(TEXT), tokenizer.encode(TEXT))


def test_bytes_are_utf8_and_nothing_else():
  tokenizer = make_tokenizer('bytes')
  assert (tokenizer.vocabulary, tokenizer.bos) == (256, 0)
  assert tokenizer.encode('aé€').tolist() == [0x61, 0xc3, 0xa9, 0xe2, 0x82, 0xac]
  assert tokenizer.decode(np.array([0, 0x61, 0xc3])) == 'a\ufffd'  # cut within a character


def test_nul_is_refused_where_it_is_the_start_of_documents():
  with pytest.raises(ValueError, match='NUL byte at offset 3, which opens documents'):
    make_tokenizer('bytes').encode('é\n\0')


def test_sentencepiece_opens_documents_with_bos_or_else_eos(tmp_path):
  assert make_tokenizer(sentencepiece_model(tmp_path / 'a.model')).bos == 1
  assert make_tokenizer(sentencepiece_model(tmp_path / 'b.model', bos_id=-1, eos_id=1)).bos == 1
  neither = sentencepiece_model(tmp_path / 'c.model', bos_id=-1, eos_id=-1)
  with pytest.raises(ValueError, match=r'neither bos nor eos.*Train it without --bos_id=-1'):
    make_tokenizer(neither)


def test_hugging_face_opens_documents_with_bos_or_else_eos(tmp_path):
  assert make_tokenizer(tokenizer_json(tmp_path / 'a.json', ['</s>', '<s>'])).bos == 1
  assert make_tokenizer(tokenizer_json(tmp_path / 'b.json', ['<unk>', '</s>'])).bos == 1
  with pytest.raises(ValueError, match=r"marks \['<unk>'\] as special, none of which can open"):
    make_tokenizer(tokenizer_json(tmp_path / 'c.json', ['<unk>']))


def test_special_tokens_written_in_a_text_are_text(tmp_path):
  for path in (tokenizer_json(tmp_path / 'a.json', ['<s>', '</s>']),
               sentencepiece_model(tmp_path / 'a.model')):
    tokenizer = make_tokenizer(path)
    assert tokenizer.bos not in tokenizer.encode('the fox <s> the dog')


@pytest.mark.parametrize('name', ['a.model', 'a.json'])
def test_a_missing_package_is_answered_with_the_command(name, tmp_path, monkeypatch):
  for package in ('sentencepiece', 'tokenizers'):
    monkeypatch.setitem(sys.modules, package, None)
  (tmp_path / name).touch()
  with pytest.raises(ImportError, match=r"Install it: pip install 'posjax\[tokenizers\]'"):
    make_tokenizer(str(tmp_path / name))


def test_unknown_names_and_empty_directories_are_refused(tmp_path):
  for name in ('char', 'missing.model', 'missing.json'):
    with pytest.raises(ValueError, match=f"no tokenizer '{name}'. Set --config.data.tokenizer"):
      make_tokenizer(name)
  with pytest.raises(ValueError, match='holds no tokenizer'):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize('name', ['a.model', 'a.json'])
def test_a_file_of_another_kind_is_refused(name, tmp_path):
  (tmp_path / name).write_text('neither')
  with pytest.raises(ValueError, match=f'{name} cannot be read as tokenizer'):
    make_tokenizer(str(tmp_path / name))


def test_fingerprints_differ_when_ids_may_differ():
  assert tokenizers.Bytes().fingerprint == tokenizers.Bytes().fingerprint
  assert tokenizers.Bytes(b'other').fingerprint != tokenizers.Bytes().fingerprint
