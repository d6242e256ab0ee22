"""A checkpoint of another library as a run: its config in posjax's words, its weights on a mesh.

hf:DIR is a Hugging Face directory: config.json, safetensors, perhaps a tokenizer. gguf:FILE is one
file of all that, quantised.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posjax import config as configs
from posjax import data, sharding
from posjax.decoder import Decoder, init_params
from posjax.experiment import build
from posjax.interop import family, gguf, mxfp4, table
from posjax.interop.files import PICKLES, Tensor, open_checkpoint, read_json
from posjax.interop.keys import Keys


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
  """A checkpoint whose config is read and whose weights are not."""

  config: ConfigDict  # complete, as configs/base.py
  table: table.Table
  tensors: dict[str, Tensor]
  tokenizer: Any  # posjax.data's; None where there is none
  source: dict[str, Any]  # its config.json


def is_foreign(name: str | None) -> bool:
  """Whether a checkpoint's name is that of another library's, not of a run directory."""
  return name is not None and str(name).startswith(tuple(f'{kind}:' for kind in OPENERS))


def open_named(name: str) -> Opened:
  """'hf:DIR', with a tokenizer that reads text. Raises ValueError as `open_directory`."""
  kind, _, path = name.partition(':')
  opened = OPENERS[kind](path)
  if opened.tokenizer is None:
    raise ValueError(
      f"'{path}' has no tokenizer that posjax reads. Put its tokenizer.json there, and install the "
      "package that reads it: pip install 'posjax[tokenizers]'."
    )
  return opened


def open_directory(directory: str | Path) -> Opened:
  """Reads config.json, the headers of the weights, and the tokenizer if there is one.

  Raises ValueError where the directory holds no checkpoint that posjax computes exactly; the
  message names the file, key or tensor.
  """
  directory = Path(directory).expanduser()
  if directory.is_file() or directory.suffix in PICKLES:
    what = 'pickled, which runs code when it is read' if directory.suffix in PICKLES else 'a file'
    raise ValueError(
      f"'{directory}' is {what}. Name the directory that holds config.json and safetensors."
    )
  keys = Keys(read_json(directory / 'config.json'), f"'{directory / 'config.json'}'")
  recipe = family.find(keys).read(keys)
  source = keys.take('torch_dtype', None) or keys.take('dtype', None)
  keys.check_all_read()
  tensors = prefixed(mxfp4.unpack(open_checkpoint(directory)), recipe.prefix)
  recipe, tensors = tie(recipe, tensors)
  config = complete(recipe, source)
  return Opened(
    config=config,
    table=recipe.table,
    tensors=tensors,
    tokenizer=find_tokenizer(directory, config),
    source=keys.content,
  )


def open_gguf(file: str | Path) -> Opened:
  """Raises ValueError as `open_directory`; ImportError without the package that reads it."""
  file = Path(file).expanduser()
  found = gguf.read(file)
  divisors = found.config.pop('frequency_divisors', None)
  recipe = found.family.read(Keys(found.config, f"'{file}'"))
  if divisors is not None:
    recipe = divide(recipe, divisors, file)
  if getattr(found.family, 'GGUF_INTERLEAVED', False):
    changes = *recipe.table.changes, table.half_split(*[recipe.model['head_width']] * 2)
    recipe = dataclasses.replace(recipe, table=dataclasses.replace(recipe.table, changes=changes))
  config = complete(recipe, None)
  tokenizer = None
  if found.tokenizer is not None:
    with contextlib.suppress(ImportError):
      tokenizer = data.tokenizers.of_file(*found.tokenizer)
      check_tokenizer(tokenizer, config, file)
      config.data.tokenizer = f'gguf:{file}'
  return Opened(
    config=config,
    table=recipe.table,
    tensors=found.tensors,
    tokenizer=tokenizer,
    source=found.config,
  )


def divide(recipe: family.Recipe, divisors: list[float], file: Path) -> family.Recipe:
  """With stored divisors of the frequencies, as Llama 3's scaling is kept."""
  if recipe.extension['name'] != 'none':
    raise ValueError(
      f"'{file}' has divisors of frequencies and a scaling of them. Use one of both."
    )
  extension = {'name': 'rescale', 'divisors': tuple(divisors), 'trained_length': recipe.length}
  return dataclasses.replace(recipe, extension=extension)


OPENERS = {'hf': open_directory, 'gguf': open_gguf}


def complete(recipe: family.Recipe, source: Any) -> ConfigDict:
  """The config of an experiment with this model.

  Whoever stored float32 meant it; other types are computed in what suits the device.
  """
  config = configs.load('configs/base.py')
  with config.ignore_type():
    for key, value in recipe.model.items():
      if isinstance(value, dict):
        config.model[key].update(value)
      else:
        config.model[key] = value
    config.model.dtype = 'float32' if source == 'float32' else 'auto'
    config.position = ConfigDict(recipe.position)
    config.layers = recipe.layers
    extension = recipe.extension
    stays = lambda one: one.get('position') == {'name': 'none'} or not one.get('extended', True)
    if all(map(stays, recipe.layers or ({},))):
      extension = {'name': 'none'}  # there is nothing that it would change
    config.extension = ConfigDict({'factor': 1.0, 'trained_length': None} | extension)
    config.train.length = recipe.length
  return config


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
  """With the names of a model that has a head, where they were stored without one."""
  if any(name.startswith(prefix) for name in tensors):
    return tensors
  return {name if name.startswith('lm_head.') else prefix + name: x for name, x in tensors.items()}


def tie(recipe: family.Recipe, tensors: dict[str, Tensor]):
  """A tied model's head that is stored after all is left out where it is the embedding, and makes
  the model untied where it is not, as in transformers."""
  names = {ours: weight.theirs for weight in recipe.table.weights for ours in weight.ours}
  head, embedding = names['head_DV'], names['embedding_VD']
  if not recipe.model['tied'] or head not in tensors or embedding not in tensors:
    return recipe, tensors
  pair = [tensors[name] for name in (head, embedding)]
  if pair[0].shape == pair[1].shape and np.array_equal(*(x.array() for x in pair)):
    return recipe, {name: tensor for name, tensor in tensors.items() if name != head}
  return dataclasses.replace(recipe, model=recipe.model | {'tied': False}), tensors


def find_tokenizer(directory: Path, config: ConfigDict) -> Any:
  """The tokenizer beside the weights, which the config then names; None where there is none, or not
  the package that reads it.

  Raises ValueError where it makes ids that the model does not have.
  """
  files = [directory / name for name in ('tokenizer.json', 'tokenizer.model')]
  found = next((file for file in files if file.is_file()), None)
  if found is None:
    return None
  config.data.tokenizer = str(found)
  try:
    tokenizer = data.make_tokenizer(str(found))
  except ImportError:
    return None
  check_tokenizer(tokenizer, config, found)
  return tokenizer


def check_tokenizer(tokenizer: Any, config: ConfigDict, where: Any) -> None:
  if tokenizer.vocabulary > config.model.vocabulary:
    raise ValueError(
      f"'{where}' makes {tokenizer.vocabulary} ids, but the model has {config.model.vocabulary}. "
      'Put the tokenizer there that the model was trained with.'
    )


def build_on(
  opened: Opened, mesh: Mapping[str, int] | None = None
) -> tuple[Decoder, Any, Mesh]:
  """Its model, with its parameters on the mesh nearest to `mesh`, devices along axes: {'fsdp': 8}.
  None: a whole copy on each device."""
  if mesh is not None:
    opened.config.mesh.update({'data': 1} | dict(mesh))
  devices = sharding.nearest_mesh(opened.config.mesh)
  model = build(opened.config, devices)
  return model, read_params(opened, model, devices), devices


def read_params(opened: Opened, model: Decoder, mesh: Mesh) -> Any:
  """float32 parameters, each straight to its shards."""
  shapes = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
  places = sharding.place(shapes, mesh)
  return table.bring(opened.table, model, shapes, places, opened.tensors)
