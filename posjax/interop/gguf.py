"""GGUF, the format of local models: one file of metadata, a tokenizer, and quantised weights.

Its metadata become a config.json and its tensors get the names that a family's table knows, so that
what a family reads is written down once. Weights are dequantised by the package `gguf`.
"""

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from posjax.interop import family, pieces
from posjax.interop.keys import Keys

# Tensors of Llama and what is built like it: theirs, and the name in a Hugging Face directory.
NAMES = {
  'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head',
  'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
  'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj', 'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}  # fmt: skip
FREQUENCIES = 'rope_freqs.weight'  # divisors of the frequencies, where they are stored

# What cuts a text before byte pairs are merged, by the name that llama.cpp gives it.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r'|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_LETTERS = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}


def _split(pattern: str) -> list[dict[str, Any]]:
  cut = {'type': 'Split', 'pattern': {'Regex': pattern}, 'behavior': 'Isolated', 'invert': False}
  return [cut, _LETTERS | {'use_regex': False}]


CUTS = {
  'gpt-2': [_LETTERS],
  'smollm': [{'type': 'Digits', 'individual_digits': True}, _LETTERS],
  'llama-bpe': _split(_WORDS % '{1,3}'),
  'qwen2': _split(_WORDS % ''),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantised:
  """A tensor of the file, as posjax.interop.files.Tensor; dequantised each time it is asked for."""

  data: np.ndarray
  kind: Any
  shape: tuple[int, ...]
  dtype: str = 'F32'

  def array(self) -> np.ndarray:
    return importlib.import_module('gguf').dequantize(self.data, self.kind).reshape(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
  """What a GGUF file holds: a config.json, tensors by name; and a tokenizer, None for kinds that
  posjax does not know: the name of the file that it would be, and its content."""

  config: dict[str, Any]
  family: Any
  tensors: dict[str, Quantised]
  tokenizer: tuple[str, bytes] | None


def read(file: Path) -> File:
  """Raises ValueError where the file is not whole, or of a family or kind posjax does not know."""
  try:
    gguf = importlib.import_module('gguf')
  except ImportError as error:
    raise ImportError(
      "GGUF files need the package 'gguf', which is not installed. "
      "Install it: pip install 'posjax[interop]'."
    ) from error
  if not file.is_file():
    raise ValueError(f"There is no file '{file}'. Name a GGUF file.")
  try:
    reader = gguf.GGUFReader(file)
    found = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
      tensor.name: Quantised(
        data=tensor.data,
        kind=tensor.tensor_type,
        shape=tuple(int(n) for n in reversed(tensor.shape)),
      )
      for tensor in reader.tensors
    }
  except (ValueError, IndexError, KeyError, TypeError, UnicodeDecodeError) as error:
    raise ValueError(f"'{file}' is no whole GGUF file: {error}. Copy it again.") from error
  named = {theirs(name): tensor for name, tensor in tensors.items() if name != FREQUENCIES}
  architecture = found.get('general.architecture')
  chosen = next(
    (one for one in map(family.load, family.names()) if architecture == getattr(one, 'GGUF', None)),
    None,
  )
  if chosen is None:
    known = [one.GGUF for one in map(family.load, family.names()) if hasattr(one, 'GGUF')]
    raise ValueError(
      f"'{file}' has general.architecture = {architecture!r}, which posjax does not read as GGUF. "
      f'It knows: {", ".join(known)}.'
    )
  own = {
    name.removeprefix(f'{architecture}.'): value
    for name, value in found.items()
    if name.startswith(f'{architecture}.')
  }
  embedding = named.get('model.embed_tokens.weight')
  config = configure(Keys(own, f"'{file}', {architecture},"), embedding, 'lm_head.weight' in named)
  if FREQUENCIES in tensors:
    config['frequency_divisors'] = tensors[FREQUENCIES].array().astype(float).tolist()
  config |= {'architectures': [chosen.ARCHITECTURES[0]], 'model_type': chosen.MODEL_TYPE}
  return File(config=config, family=chosen, tensors=named, tokenizer=tokenizer(found))


def theirs(name: str) -> str:
  """'blk.3.attn_q.weight' is 'model.layers.3.self_attn.q_proj.weight'; unknown names stay."""
  parts = name.split('.')
  if len(parts) == 4 and parts[0] == 'blk' and parts[2] in NAMES:
    return f'model.layers.{parts[1]}.{NAMES[parts[2]]}.{parts[3]}'
  return f'{NAMES[parts[0]]}.{parts[1]}' if len(parts) == 2 and parts[0] in NAMES else name


def configure(keys: Keys, embedding: Quantised | None, has_head: bool) -> dict[str, Any]:
  """config.json of metadata, whose keys have lost the name of the architecture."""
  if embedding is None:
    raise ValueError(f"{keys.where} has no tensor 'token_embd.weight'.")
  D, H = keys.whole('embedding_length'), keys.whole('attention.head_count')
  K = keys.whole('attention.key_length', D // H)
  keys.same('attention.value_length', K)
  keys.same('rope.dimension_count', K)
  keys.same('vocab_size', embedding.shape[0])
  config = {
    'vocab_size': embedding.shape[0],
    'hidden_size': D,
    'num_hidden_layers': keys.whole('block_count'),
    'num_attention_heads': H,
    'num_key_value_heads': keys.whole('attention.head_count_kv', H),
    'head_dim': K,
    'intermediate_size': keys.whole('feed_forward_length'),
    'max_position_embeddings': keys.whole('context_length'),
    'rms_norm_eps': keys.number('attention.layer_norm_rms_epsilon'),
    'rope_theta': keys.number('rope.freq_base', 10_000.0),
    'tie_word_embeddings': not has_head,
    'rope_scaling': scaling(keys),
  }
  keys.check_all_read()
  return config


def scaling(keys: Keys) -> dict[str, Any] | None:
  kind = keys.one_of('rope.scaling.type', ('none', 'linear', 'yarn'), 'none')
  factor = keys.number('rope.scaling.factor', None)
  original = keys.whole('rope.scaling.original_context_length', None)
  keys.take('rope.scaling.finetuned', None)
  if kind == 'none':
    return None
  found = {'rope_type': kind, 'factor': factor, 'original_max_position_embeddings': original}
  return {key: value for key, value in found.items() if value is not None}


def tokenizer(found: dict[str, Any]) -> tuple[str, bytes] | None:
  """As of `File`. Raises ValueError where its lists do not fit."""
  tokens, cut = found.get('tokenizer.ggml.tokens'), found.get('tokenizer.ggml.pre')
  kind = found.get('tokenizer.ggml.model')
  if kind == 'llama' and tokens:
    return 'tokenizer.model', pieces.model(found)
  if kind == 'gpt2' and cut in CUTS and tokens:
    return 'tokenizer.json', byte_pairs(found, tokens, cut)
  return None


def byte_pairs(found: dict[str, Any], tokens: list[str], cut: str) -> bytes:
  """A tokenizer.json."""
  kinds = found.get('tokenizer.ggml.token_type') or [1] * len(tokens)
  added = [
    {'id': n, 'content': token, 'special': kind == 3, 'single_word': False, 'lstrip': False,
     'rstrip': False, 'normalized': False}
    for n, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    if kind in (3, 4)  # control and user-defined tokens
  ]  # fmt: skip
  content = {
    'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': added,
    'normalizer': {'type': 'NFC'} if cut == 'qwen2' else None,
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': CUTS[cut]},
    'post_processor': None,
    'decoder': _LETTERS,
    'model': {
      'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
      'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
      'vocab': {token: n for n, token in enumerate(tokens)},
      'merges': [merge.split(' ', 1) for merge in found.get('tokenizer.ggml.merges', [])],
    },
  }  # fmt: skip
  return json.dumps(content).encode()
