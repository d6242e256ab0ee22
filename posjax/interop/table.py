"""From the names and shapes of another library to ours, and back: a table of weights.

Everything is read from a family's table, both ways. A tensor of theirs holds one or several of our
parameters; each of these may be changed at the border (`Change`), so that the decoder has one
layout of everything. `rows` are a tensor with its output axis first.

Ours are stacked over the repetitions of the decoder's pattern: a table names those of one layer.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from posjax import layers
from posjax.decoder import Decoder
from posjax.interop.files import FLOATS, Tensor


class Weight(NamedTuple):
  """One tensor of theirs, and what it is of ours.

  theirs: its name, with {n} for the layer's number, where it belongs to one, and {e} for that of
    an expert, if there is a tensor for each, while ours have all of them along their first axis.
  ours: names of the parameters it holds, of the model or of a layer.
  sizes: rows of each of them in one group; they lie side by side, in `groups` groups.
  rows_first: whether a matrix is [out, in]; ours are [in, out], but for tables of embeddings.
  skip: so many entries at the beginning of a table nobody reads; 0 when it is written.
  stacked: whether it holds all experts, along its first axis; the rest is as of one of them.
  """

  theirs: str
  ours: tuple[str, ...]
  sizes: tuple[int, ...] = ()
  groups: int = 1
  rows_first: bool = True
  skip: int = 0
  stacked: bool = False

  @property
  def by_expert(self) -> bool:
    """Whether ours have an axis of experts that its rows do not."""
    return self.stacked or '{e}' in self.theirs

  def cut(self, x) -> list:
    """The rows of each parameter in their tensor."""
    x = x[self.skip :]
    rows = x if self.rows_first or x.ndim == 1 else x.T
    if len(self.ours) == 1:
      return [rows]
    grouped = rows.reshape(self.groups, -1, *rows.shape[1:])
    ends = np.cumsum(self.sizes)
    parts = [
      grouped[:, end - size : end] for size, end in zip(self.sizes, ends.tolist(), strict=True)
    ]
    return [part.reshape(-1, *rows.shape[1:]) for part in parts]

  def join(self, parts: Sequence, xp=np):
    """Their tensor, from the rows of each parameter."""
    rows = parts[0]
    if len(parts) > 1:
      grouped = [part.reshape(self.groups, -1, *part.shape[1:]) for part in parts]
      rows = xp.concatenate(grouped, axis=1).reshape(-1, *rows.shape[1:])
    x = rows if self.rows_first or rows.ndim == 1 else rows.T
    return xp.concatenate([xp.zeros((self.skip, *x.shape[1:]), x.dtype), x]) if self.skip else x


def linear(theirs: str, *ours: str, **settings) -> tuple[Weight, Weight]:
  """The matrix and the bias of a linear layer; a model without biases asks for the first alone."""
  biases = tuple(f'{name.rpartition("_")[0]}_bias_{name[-1]}' for name in ours)
  return (
    Weight(f'{theirs}.weight', ours, **settings),
    Weight(f'{theirs}.bias', biases, **settings),
  )


def norm(theirs: str, ours: str) -> tuple[Weight, Weight]:
  """The scale and the bias of a norm."""
  return (
    Weight(f'{theirs}.weight', (f'{ours}/scale_D',)),
    Weight(f'{theirs}.bias', (f'{ours}/bias_D',)),
  )


def embedding(theirs: str, ours: str = 'embedding_VD') -> tuple[Weight]:
  return (Weight(f'{theirs}.weight', (ours,), rows_first=False),)


class Change(NamedTuple):
  """What happens at the border to the parameters whose names `pattern` finds, and its inverse.

  Both take rows and the number of the layer (None outside of layers).
  """

  pattern: str
  bring: Callable
  give: Callable


def half_split(
  head_width: int, turned: int, pattern: str = r'attention/(query|key)_', *, begin: int = 0
) -> Change:
  """From pairs (2f, 2f + 1) to pairs (f, f + F) in `turned` dimensions of each head."""
  pairs, end = begin + np.arange(turned).reshape(-1, 2).T.reshape(-1), begin + turned
  to = np.concatenate([np.arange(begin), pairs, np.arange(end, head_width)])

  def taken(order):
    def take(rows, n):
      heads = rows.reshape(-1, head_width, *rows.shape[1:])
      return heads[:, order].reshape(rows.shape)

    return take

  return Change(pattern, taken(to), taken(np.argsort(to)))


def headed(pattern: str, heads: int) -> Change:
  """A matrix of theirs that ours have as [in, heads, width]."""
  return Change(
    pattern,
    lambda rows, n: rows.T.reshape(rows.shape[1], heads, -1),
    lambda x, n: x.reshape(len(x), -1).T,
  )


def times(pattern: str, factor: Callable[[int | None], float]) -> Change:
  """Multiplied by a number that may depend on the layer."""
  return Change(pattern, lambda x, n: x * factor(n), lambda x, n: x / factor(n))


def plus(pattern: str, number: float) -> Change:
  return Change(pattern, lambda x, n: x + number, lambda x, n: x - number)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
  """A family's weights, what changes at the border, and names of tensors that are no weights.

  zeros: names of our parameters that are 0 in this family, which stores none for them.
  """

  weights: tuple[Weight, ...]
  changes: tuple[Change, ...] = ()
  ignored: str = r'$^'
  zeros: tuple[str, ...] = ()

  def fold(self, direction: str, name: str, x, n):
    """x after the changes of a parameter, 'bring' to ours, or 'give' to theirs."""
    changes = [change for change in self.changes if re.search(change.pattern, name)]
    for change in changes if direction == 'bring' else changes[::-1]:
      x = getattr(change, direction)(x, n)
    return x


class Place(NamedTuple):
  """Where a parameter comes from: its weight, None where it is 0, and its place among what that
  holds; the layers of its stack."""

  weight: Weight | None
  which: int
  name: str
  numbers: tuple[int | None, ...]  # layers, by repetition; (None,) outside of them

  @property
  def layered(self) -> bool:
    return self.numbers != (None,)

  def inner(self, leaf) -> tuple[int, ...]:
    """The shape of one layer's parameter."""
    return leaf.shape[1:] if self.layered else leaf.shape

  def theirs(self, n: int | None, shape: tuple[int, ...]) -> list[str]:
    """Names of what one layer's parameter, of this shape, is read from: one, or each expert's."""
    if self.weight is None:
      return []
    experts = range(shape[0]) if '{e}' in self.weight.theirs else (None,)
    return [self.weight.theirs.format(n=n, e=e) for e in experts]


def places(table: Table, model: Decoder, names: Iterable[str]) -> dict[str, Place]:
  """The place of each of the model's parameters, named 'blocks/layer_0/mlp/up_DM'.

  Raises ValueError for one that the table does not have.
  """
  source = {
    name: (weight, which) for weight in table.weights for which, name in enumerate(weight.ours)
  }
  found = {}
  for path in names:
    match = re.fullmatch(r'(blocks|rest)/layer_(\d+)/(.*)', path)
    stack, n, name = match.groups() if match else (None, None, path)
    if name not in source and name not in table.zeros:
      raise ValueError(
        f"The model's parameter '{path}' has no counterpart in this family: its weights cannot be "
        'read into such a model, nor written from it. Use a model as the family has it.'
      )
    numbers: tuple[int | None, ...] = (None,)
    if match:
      numbers = tuple(
        layer for layer in range(model.layers) if layers.place(model, layer)[::2] == (stack, int(n))
      )
    found[path] = Place(*source.get(name, (None, 0)), name, numbers)
  return found


def bring(
  table: Table, model: Decoder, shapes: Any, shardings: Any, tensors: Mapping[str, Tensor]
) -> Any:
  """The model's parameters, float32, each straight to its shards.

  Everything is checked before any number is read: raises ValueError for a tensor that is missing or
  left over, or has another shape than the config says.
  """
  paths, leaves, tree = _flat(shapes)
  found = places(table, model, paths)
  _check(table, found, dict(zip(paths, leaves, strict=True)), tensors)

  def array(path, leaf, sharding):
    place = found[path]

    def shard(index):
      read = functools.partial(_read, table, place, tensors, place.inner(leaf))
      if not place.layered:
        return read(None, index)
      return np.stack([read(n, index[1:]) for n in place.numbers[index[0]]])

    return jax.make_array_from_callback(leaf.shape, sharding, shard)

  flat = [
    array(path, leaf, sharding)
    for path, leaf, sharding in zip(paths, leaves, tree.flatten_up_to(shardings), strict=True)
  ]
  return tree.unflatten(flat)


def give(table: Table, model: Decoder, params: Any) -> dict[str, Callable[[], np.ndarray]]:
  """Their tensors by name, float32, each made when it is asked for.

  Raises ValueError where a parameter is not 0 that this family has no tensor for.
  """
  paths, leaves, _ = _flat(params)
  found = places(table, model, paths)
  rows: dict[str, dict[int, Callable]] = {}
  weights: dict[str, Weight] = {}
  for path, leaf in zip(paths, leaves, strict=True):
    place = found[path]
    if place.weight is None and np.any(np.asarray(leaf)):
      raise ValueError(
        f"The model's '{path}' is not 0, and this family has no tensor for it. Export it as one "
        'that has.'
      )
    for repetition, n in enumerate(place.numbers):
      names = place.theirs(n, place.inner(leaf))
      for e, name in enumerate(names):
        at = (repetition,) * place.layered + (e,) * ('{e}' in place.weight.theirs)
        weights[name] = place.weight
        rows.setdefault(name, {})[place.which] = functools.partial(
          _rows, table, place, leaf, at, n
        )

  def tensor(name):
    parts, weight = [rows[name][which]() for which in sorted(rows[name])], weights[name]
    if weight.stacked:
      whole = np.stack([weight.join(of_one) for of_one in zip(*parts, strict=True)])
    else:
      whole = weight.join(parts)
    return np.ascontiguousarray(whole, np.float32)

  return {name: functools.partial(tensor, name) for name in rows}


def _rows(table: Table, place: Place, leaf, at: tuple[int, ...], n: int | None):
  """Rows of a parameter; of each expert's, where they are stacked."""
  x = np.asarray(leaf[at], np.float32)
  one = lambda x: _given(table, place.name, x, n)
  return [one(x_e) for x_e in x] if place.weight.stacked else one(x)


def _given(table: Table, name: str, x, n: int | None):
  """Rows of one parameter, with their output axis first."""
  return table.fold('give', name, x.T if x.ndim == 2 else x, n)


def _read(table: Table, place: Place, tensors, shape, n: int | None, index) -> np.ndarray:
  """The part `index` of one layer's parameter, as ours is. Only what is needed is read."""
  if place.weight is None:
    return np.zeros(shape, np.float32)[index]
  names = place.theirs(n, shape)
  if place.weight.by_expert:
    if place.weight.stacked:
      arrays = map(tensors[names[0]].part, range(shape[0])[index[0]])
    else:
      arrays = (tensors[name].array() for name in names[index[0]])
    ours = (_ours(table, place, array, n) for array in arrays)
    return np.stack([np.asarray(x[index[1:]], np.float32) for x in ours])
  array = tensors[names[0]].array()
  return np.ascontiguousarray(_ours(table, place, array, n)[index], np.float32)


def _ours(table: Table, place: Place, array: np.ndarray, n: int | None) -> np.ndarray:
  """A view of their numbers where nothing changes them."""
  rows = place.weight.cut(array)[place.which]
  if any(re.search(change.pattern, place.name) for change in table.changes):
    rows = table.fold('bring', place.name, rows.astype(np.float32), n)
  return rows.T if rows.ndim == 2 else rows


def _check(table: Table, found: Mapping[str, Place], leaf_of, tensors) -> None:
  wanted: dict[str, tuple[Weight, int | None, dict[int, tuple[int, ...]]]] = {}
  for path, place in found.items():
    shape = place.inner(leaf_of[path])
    for n in place.numbers:
      for name in place.theirs(n, shape):
        wanted.setdefault(name, (place.weight, n, {}))[2][place.which] = shape
  left = sorted(
    name for name in tensors.keys() - wanted.keys() if not re.search(table.ignored, name)
  )
  missing = sorted(wanted.keys() - tensors.keys())
  for names, what, way in (
    (missing, 'lacks', 'Complete its download, or correct its config'),
    (left, 'has, beyond what its config describes,', 'Correct its config, or take them away'),
  ):
    if names:
      more = f' and {len(names) - 3} more' if len(names) > 3 else ''
      raise ValueError(f'The checkpoint {what} {", ".join(names[:3])}{more}. {way}.')
  for name, (weight, n, shapes) in wanted.items():
    tensor = tensors[name]
    shape = jax.eval_shape(functools.partial(_whole, table, weight, n, shapes)).shape
    if weight.stacked:
      shape = (shapes[0][0], *shape)
    if tensor.shape != shape:
      raise ValueError(
        f"The checkpoint has '{name}' of shape {list(tensor.shape)}, but by its config it is "
        f'{list(shape)}. One of the two is of another model: bring the config of these weights.'
      )
    if tensor.dtype not in FLOATS:
      raise ValueError(
        f"The checkpoint has '{name}' as {tensor.dtype}, which is no weight: those are "
        f'{", ".join(FLOATS)}.'
      )


def _whole(table: Table, weight: Weight, n: int | None, shapes: Mapping[int, tuple[int, ...]]):
  """Their tensor, or one expert's, of parameters that are 0."""
  inner = lambda which: shapes[which][1:] if weight.by_expert else shapes[which]
  arrays = [(weight.ours[which], jnp.zeros(inner(which))) for which in sorted(shapes)]
  return weight.join([_given(table, name, x, n) for name, x in arrays], jnp)


def _flat(tree: Any) -> tuple[list[str], list[Any], Any]:
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return [name(path) for path, _ in leaves], [leaf for _, leaf in leaves], structure
