"""A model as a Hugging Face directory, which transformers loads with the same logits.

The config.json is that of the checkpoint the weights came from, with what has changed since, or one
that a family writes of its own. Whatever it is, it is read again before anything is written: what
would not come back as the same model with the same spectrum is refused.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from posjax import composition, data
from posjax.decoder import Decoder
from posjax.experiment import build
from posjax.extension import extend
from posjax.interop import checkpoint, family, files, rope, table
from posjax.interop.keys import Keys
from posjax.mlp import USUAL

SHARD_BYTES = 2 * 2**30
OPENER = '<s>'  # what the byte vocabulary has in the place of its NUL
KEPT = ('dtype', 'remat', 'attention', 'length', 'mesh')  # fields that change no logits
BESIDE = (  # of a source directory, as they are
  'tokenizer_config.json', 'special_tokens_map.json', 'generation_config.json',
  'added_tokens.json', 'vocab.json', 'merges.txt', 'chat_template.jinja',
)  # fmt: skip


def write(
  directory: str | Path, config: ConfigDict, model: Decoder, params: Any, *,
  source: Mapping[str, Any] | None = None, tokenizer: Any = None, dtype: str = 'float32',
  extension: Mapping[str, Any] | None = None, beside: Path | None = None,
  shard_bytes: int = SHARD_BYTES,
) -> Path:  # fmt: skip
  """Writes config.json, safetensors and the tokenizer, and returns the directory.

  Args:
    source: config.json of the checkpoint that the weights came from.
    dtype: of the weights: float32, bfloat16 or float16.
    extension: in place of the config's own.
    beside: the checkpoint's directory, of which small files are copied.

  Raises ValueError where transformers has no such model, or no rope type for the extension.
  """
  directory = Path(directory).expanduser()
  if dtype not in ('float32', 'bfloat16', 'float16'):
    raise ValueError(f"Weights are not written as '{dtype}'. Use float32, bfloat16 or float16.")
  if directory.exists() and any(directory.iterdir()):
    raise ValueError(f"'{directory}' is not empty. Name a new directory to export to.")
  config = config.copy_and_resolve_references()
  if extension is not None:
    with config.ignore_type():
      config.extension = ConfigDict(complete(config, dict(extension)))
  if source is None:
    model, params = unscaled(model, params)
  theirs, recipe = describe(config, model, source)
  tensors = table.give(recipe.table, model, params)
  directory.mkdir(parents=True, exist_ok=True)
  write_shards(directory, tensors, jnp.dtype(dtype), shard_bytes)
  content = theirs | {'torch_dtype': dtype}
  content.pop('dtype', None)
  write_json(directory / 'config.json', content)
  write_tokenizer(directory, tokenizer, beside)
  return directory


def complete(config: ConfigDict, extension: dict[str, Any]) -> dict[str, Any]:
  """With the trained length that a factor counts from where it says none: that of the weights."""
  extension = {'factor': 1.0, 'trained_length': None} | extension
  if extension['trained_length'] is None:
    extension['trained_length'] = config.extension.trained_length or config.train.length
  return extension


def unscaled(model: Decoder, params: Any):
  """The same model without a scale of embedded tokens, which is in the table then."""
  scale = model.width**0.5 if model.embedding_scale is None else model.embedding_scale
  if scale == 1 or model.tied:  # a tied table is the head's, too
    return model, params
  params = {**params, 'embedding_VD': params['embedding_VD'] * scale}
  return model.clone(embedding_scale=1.0), params


def describe(config: ConfigDict, model: Decoder, source: Mapping[str, Any] | None):
  """(config.json, the recipe that it reads as). Raises ValueError where there is none."""
  if source is not None:
    theirs = stretched(dict(source), config)
    theirs.pop('quantization_config', None)  # what is written is not
    return theirs, read_back(theirs, config, model)
  reasons = []
  for name in family.names():
    chosen = family.load(name)
    if hasattr(chosen, 'write'):
      try:
        settings = chosen.write(model) | stretched({'rope_parameters': {}}, config)
        theirs = settings | {
          'architectures': [chosen.ARCHITECTURES[0]], 'model_type': chosen.MODEL_TYPE,
        }  # fmt: skip
        return theirs, read_back(theirs, config, model)
      except ValueError as error:
        reasons.append(f'{name}: {error}')
  raise ValueError('No family has such a model.\n  ' + '\n  '.join(reasons))


def stretched(theirs: dict[str, Any], config: ConfigDict) -> dict[str, Any]:
  """config.json with rotary settings of the config's extension, where the model rotates."""
  position = dataclasses.asdict(composition.make(config.position))
  spelled = {'rope_parameters', 'rope_scaling', 'rope_theta', 'rotary_emb_base'} & theirs.keys()
  if 'theta' not in position or not spelled:
    return {key: value for key, value in theirs.items() if value != {}}
  latent, extension = config.model.latent, dict(config.extension)
  width = config.model.head_width if latent.width is None else latent.slice
  length = config.train.length
  if extension['name'] != 'none':
    length = max(length, round(extension['factor'] * (extension['trained_length'] or length)))
  settings = rope.write(position, extension, length, width)
  original = 'original_max_position_embeddings'
  if original in theirs and original in settings['rope_parameters']:  # said twice
    settings[original] = settings['rope_parameters'][original]
  full = 'full_attention'
  if full in (theirs.get('rope_parameters') or {}):  # those of layers without a window
    nested = theirs['rope_parameters'] | {full: settings['rope_parameters']}
    return theirs | settings | {'rope_parameters': nested}
  if 'rope_parameters' in theirs:
    turned = 'partial_rotary_factor'  # stays, also where it says what is usual
    kept = {key: x for key, x in (theirs['rope_parameters'] or {}).items() if key == turned}
    return theirs | settings | {'rope_parameters': settings['rope_parameters'] | kept}
  # As it was spelled: what is turned stays, the base may have changed.
  parameters = settings.pop('rope_parameters')
  theta = parameters.pop('rope_theta')
  parameters.pop('partial_rotary_factor', None)
  theirs |= dict.fromkeys({'rope_theta', 'rotary_emb_base'} & theirs.keys(), theta)
  scaling = None if parameters['rope_type'] == 'default' else parameters
  return theirs | settings | {'rope_scaling': scaling}


def read_back(theirs: dict[str, Any], config: ConfigDict, model: Decoder) -> family.Recipe:
  """The recipe of a config.json. Raises ValueError where it is another model or spectrum."""
  theirs['tie_word_embeddings'] = model.tied
  keys = Keys(theirs, 'The config.json to be written')
  recipe = family.find(keys).read(keys)
  for key in ('dtype', 'torch_dtype'):
    keys.take(key, None)
  keys.check_all_read()
  again = checkpoint.complete(recipe, None)
  twin = build(again)
  ours, read = facts(model), facts(twin)
  for name in ours:
    if ours[name] != read[name]:
      raise ValueError(f'In that family model.{name} would be {read[name]!r}, not {ours[name]!r}.')
  trained = config.extension.trained_length or config.train.length
  for length in (trained, 2 * trained + 1):
    both = [
      by_layer(one, extend(one.spectrum(), length=length, **own.extension))
      for one, own in ((model, config), (twin, again))
    ]
    if not all(map(same_numbers, *both)):
      raise ValueError(
        f"Extension '{config.extension.name}' would come back with other numbers: transformers has "
        'no rope type that is the same. Export without it, or with one that has.'
      )
  return recipe


def facts(model: Decoder) -> dict[str, Any]:
  """What decides a model's logits, but for its weights and spectra."""
  found = {
    field.name: getattr(model, field.name)
    for field in dataclasses.fields(Decoder)
    if field.name not in ('parent', 'name', 'pattern', *KEPT)
  }
  kinds = {layer.mlp or model.mlp for layer in model.pattern}
  if 'experts' not in kinds:
    found['experts'] = None
  elif len(kinds) == 1:
    found['mlp_width'] = None
  found['activation'] = model.activation or USUAL[model.mlp]
  if model.norm_epsilon is None:
    found['norm_epsilon'] = 1e-6 if model.norm == 'rms' else 1e-5
  own = [layer_facts(layer, model) for layer in model.pattern]
  return found | {'layers': by_layer(model, own)}


def layer_facts(layer, model: Decoder) -> dict[str, Any]:
  """A theta is seen in the spectrum, where an extension may have changed it."""
  scheme = {k: v for k, v in dataclasses.asdict(layer.scheme).items() if k != 'theta'}
  if scheme.get('length', 0) is None:  # rows of a table, by default those of the training length
    scheme['length'] = model.length
  found = {field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}
  kind = type(layer.scheme).__name__
  return found | {'scheme': (kind, scheme), 'mlp': layer.mlp or model.mlp, 'extended': True}


def by_layer(model: Decoder, pattern) -> list:
  return [pattern[n % len(pattern)] for n in range(model.layers)]


def same_numbers(ours: Any, read: Any) -> bool:
  ours, read = (jax.tree.leaves(one) for one in (ours, read))
  return len(ours) == len(read) and all(
    np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-6, atol=0)
    for a, b in zip(ours, read, strict=True)
  )


def write_shards(directory: Path, tensors, dtype, shard_bytes: int) -> None:
  """model.safetensors, or, of more than `shard_bytes`, shards and their index."""
  shards: list[tuple[Path, list[str]]] = []
  held: dict[str, np.ndarray] = {}

  def flush():
    file = directory / f'model-{len(shards) + 1:05}.safetensors'
    files.write_file(file, held)
    shards.append((file, list(held)))
    held.clear()

  total = 0
  for name, make in tensors.items():
    array = make().astype(dtype)
    if held and sum(x.nbytes for x in held.values()) + array.nbytes > shard_bytes:
      flush()
    held[name], total = array, total + array.nbytes
  flush()
  if len(shards) == 1:
    shards[0][0].rename(directory / files.WEIGHTS)
    return
  weight_map = {}
  for number, (file, names) in enumerate(shards, 1):
    name = f'model-{number:05}-of-{len(shards):05}.safetensors'
    file.rename(directory / name)
    weight_map |= dict.fromkeys(names, name)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  write_json(directory / files.INDEX, index)


def write_tokenizer(directory: Path, tokenizer: Any, beside: Path | None) -> None:
  if isinstance(tokenizer, data.tokenizers.Bytes):
    write_json(directory / data.tokenizers.HuggingFace.FILE, of_bytes(tokenizer.bos))
    write_json(
      directory / 'tokenizer_config.json',
      {'tokenizer_class': 'PreTrainedTokenizerFast', 'bos_token': OPENER},
    )
  elif tokenizer is not None:
    tokenizer.save(directory)
  for name in BESIDE:
    if beside is not None and (beside / name).is_file():
      (directory / name).write_bytes((beside / name).read_bytes())


def of_bytes(bos: int) -> dict[str, Any]:
  """A tokenizer.json whose ids are UTF-8 bytes, but for `bos`, which opens a text."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # written as they are
  rest = [n for n in range(256) if n not in plain]
  letter = {n: chr(n) for n in plain} | {n: chr(256 + place) for place, n in enumerate(rest)}
  cut = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
  return {
    'version': '1.0', 'truncation': None, 'padding': None, 'normalizer': None,
    'added_tokens': [
      {'id': bos, 'content': OPENER, 'special': True, 'single_word': False, 'lstrip': False,
       'rstrip': False, 'normalized': False}
    ],
    'pre_tokenizer': cut, 'post_processor': None, 'decoder': cut,
    'model': {
      'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
      'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False, 'merges': [],
      'vocab': {OPENER if n == bos else letter[n]: n for n in range(256)},
    },
  }  # fmt: skip


def write_json(file: Path, content: Mapping[str, Any]) -> None:
  partial = file.with_name(file.name + '.partial')
  partial.write_text(json.dumps(content, indent=2) + '\n')
  partial.replace(file)
