"""Checkpoints that survive kills, full disks and flipped bits.

A run's checkpoints lie in `<directory>/<step>`, written by Orbax in the background: `params`, the
parameters; `state`, whatever else training needs (a pytree: optimizer, step); `data`, a JSON
dictionary (the position in the data). When all of it has reached the disk, `manifest.json` is added
atomically. It holds the sha256 of every file and the shape and dtype of every leaf. A step without
it is a save that did not finish; a file that disagrees with it is damaged. Only then are older
checkpoints deleted, so at every moment one whole checkpoint exists.

The directory is shared by all hosts. One process trains in it at a time (see posjax/run.py); any
number may read with `restore_params`, which changes nothing on the disk.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

LOG = logging.getLogger('posjax')  # warnings reach the terminal without any set-up


class Checkpoints:
  """The checkpoints of one run, saved every `every` steps; the newest `keep` remain, and `lasting`.

  Use as a context manager, or call `close`: a process that ends without it may lose the save in
  flight (never an earlier one). Raises ValueError if `every` or `keep` is below 1.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    every: int = 1,
    keep: int = 2,
    lasting: Collection[int] = (),
  ):
    if every < 1 or keep < 1:
      raise ValueError(f'Checkpoints every {every} steps, {keep} kept. Both must be at least 1.')
    self.directory = Path(directory).expanduser().absolute()  # Orbax takes no relative path
    self.every, self.keep, self.lasting = every, keep, lasting
    self._writer = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix='seal')
    self._saving: Future | None = None
    logging.getLogger('absl').addFilter(_not_from_orbax)

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Waits for the save in flight. Raises OSError if it failed."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      self._writer.close()
      logging.getLogger('absl').removeFilter(_not_from_orbax)

  def wait(self) -> None:
    """Blocks until the last save is whole on disk. Raises OSError if it failed."""
    saving, self._saving = self._saving, None
    if saving is not None:
      saving.result()

  def due(self, step: int) -> bool:
    """Whether `step` (optimizer steps done so far) is one of every `every`-th."""
    return step > 0 and step % self.every == 0

  def latest(self) -> int | None:
    """The newest step whose save finished, None before the first. It may still be damaged."""
    return max(self._finished(), default=None)

  def save(self, step: int, *, params: Any, state: Any, data: dict) -> None:
    """Copies the arrays to host memory, then writes in the background; the next save waits for it.

    The arrays may be donated as soon as this returns. Host memory grows by one copy of them.

    Leaves are arrays. Raises TypeError if `data` is not JSON, OSError if this save or the one
    before could not be written (a full disk, say; the checkpoints before it are untouched), and
    ValueError unless `step` is newer than all others.
    """
    json.dumps(data)  # raises here rather than in the background
    self.wait()
    latest = self.latest()
    if latest is not None and step <= latest:
      raise ValueError(
        f'Step {step} is not newer than the checkpoint of step {latest} in {self.directory}. '
        'Resume from that one, or train in another --workdir.'
      )
    leaves = {'params': _leaves(params), 'state': _leaves(state)}
    items = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      state=ocp.args.StandardSave(state),
      data=ocp.args.JsonSave(data),
    )
    try:
      self._clear(step)
      self._writer.save(self.directory / str(step), args=items)
    except OSError as error:
      raise self._failure(step, error) from error
    self._saving = self._thread.submit(self._seal, step, leaves)

  def restore(
    self, step: int | None = None, *, params_like: Any, state_like: Any
  ) -> tuple[int, Any, Any, dict]:
    """Returns (step, params, state, data) of the newest whole checkpoint, or of `step`.

    Arrays take the shardings of `params_like` and `state_like` (arrays or jax.ShapeDtypeStructs;
    without a sharding, the first device), so the number of devices may differ from the save's.

    A damaged or unfinished newer checkpoint is renamed to `<step>.damaged`, with a warning, and
    training writes that step again. Raises ValueError if there is no checkpoint, if none is whole
    (each is listed with its reason; nothing is renamed), or if a leaf's shape or dtype differs.
    """
    self.wait()
    step, reasons = self._choose(step)
    likes = {'params': params_like, 'state': state_like}
    items = self._read(step, likes, data=ocp.args.JsonRestore())
    if jax.process_index() == 0:
      for newer, reason in reasons.items():
        aside = self._put_aside(newer)
        LOG.warning(
          'Checkpoint %d is not whole (%s): kept as %s, continuing from step %d.',
          newer, reason, aside, step,
        )  # fmt: skip
    return step, items.params, items.state, items.data

  def restore_params(self, like: Any, step: int | None = None) -> Any:
    """The parameters alone, for evaluation: as `restore`, but nothing is renamed."""
    self.wait()
    step, reasons = self._choose(step)
    for newer, reason in reasons.items():
      LOG.warning('Checkpoint %d is not whole (%s): using step %d.', newer, reason, step)
    return self._read(step, {'params': like}).params

  def _read(self, step: int, likes: dict[str, Any], **others: Any) -> ocp.args.Composite:
    manifest = json.loads((self.directory / str(step) / 'manifest.json').read_text())
    for item, like in likes.items():
      _check(f'Checkpoint {step} in {self.directory}', manifest[item], _leaves(like), item)
    wanted = {
      item: ocp.args.StandardRestore(jax.tree.map(_placed, like)) for item, like in likes.items()
    }
    return self._writer.restore(
      self.directory / str(step), args=ocp.args.Composite(**wanted, **others)
    )

  def _choose(self, step: int | None) -> tuple[int, dict[int, str]]:
    """Returns the newest whole step (or checks `step`) and why each newer one is not whole."""
    if jax.process_count() == 1:
      return self._choose_here(step)
    # One host reads and hashes; the others learn the step, -1 for none.
    chosen, reasons, error = -1, {}, None
    if jax.process_index() == 0:
      try:
        chosen, reasons = self._choose_here(step)
      except ValueError as caught:
        error = caught
    chosen = int(multihost_utils.broadcast_one_to_all(np.int32(chosen)))
    if chosen < 0:
      raise error or ValueError('No whole checkpoint. Process 0 says why.')
    return chosen, reasons

  def _choose_here(self, step: int | None) -> tuple[int, dict[int, str]]:
    present = sorted(self._present(), reverse=True)
    if step is not None and step not in present:
      raise ValueError(f'No checkpoint of step {step} in {self.directory}. There are: {present}.')
    steps = present if step is None else [step]
    reasons = {}
    for candidate in steps:
      reason = self._damage(candidate)
      if reason is None:
        return candidate, reasons
      reasons[candidate] = reason
    if not reasons:
      raise ValueError(f'No checkpoint in {self.directory}. Train there first.')
    listed = ''.join(f'\n  {newer}: {reason}' for newer, reason in reasons.items())
    raise ValueError(
      f'No whole checkpoint in {self.directory}:{listed}\n'
      'Restore these files from a copy, or delete the directory and train anew.'
    )

  def _damage(self, step: int) -> str | None:
    """Why the checkpoint of `step` cannot be trusted, or None."""
    here = self.directory / str(step)
    try:
      files = json.loads((here / 'manifest.json').read_text())['files']
      for file, digest in files.items():
        if not (here / file).is_file():
          return f'{file} is missing'
        if _sha256(here / file) != digest:
          return f'{file} has changed since it was written'
    except FileNotFoundError:
      return 'no manifest.json: the save did not finish'
    except (ValueError, KeyError, TypeError, AttributeError):
      return 'manifest.json is not what was written'
    except OSError as error:
      return str(error)
    return None

  def _seal(self, step: int, leaves: dict[str, dict[str, str]]) -> None:
    """Waits for Orbax, writes the manifest, deletes what is too old. Runs in the background."""
    here = self.directory / str(step)
    try:
      self._writer.wait_until_finished()
      if jax.process_index() != 0:
        return
      files = sorted(path for path in here.rglob('*') if path.is_file())
      digests = {path.relative_to(here).as_posix(): _sha256(path) for path in files}
      _write_whole(here / 'manifest.json', json.dumps({'files': digests, **leaves}, indent=1))
    except Exception as error:
      self._remove(here)  # what Orbax did not finish goes before the next save
      raise self._failure(step, error) from error
    oldest = sorted(self._finished())[-self.keep :][0]
    for old in self._present():
      if old < oldest and old not in self.lasting:
        self._remove(self.directory / str(old))

  def _clear(self, step: int) -> None:
    """Makes room for `step`: removes what a killed Orbax left, puts an unfinished save aside."""
    if jax.process_index() != 0:
      return
    self.directory.mkdir(parents=True, exist_ok=True)
    for leftover in self.directory.glob('*.orbax-checkpoint-tmp'):
      self._remove(leftover)
    if (self.directory / str(step)).exists():
      aside = self._put_aside(step)
      LOG.warning('An earlier save of step %d did not finish: kept as %s.', step, aside)

  def _failure(self, step: int, error: Exception) -> OSError:
    # TensorStore's message opens with the whole path, twice; its cause comes last.
    cause = getattr(error, 'strerror', None) or str(error).rsplit(': ', 1)[-1]
    whole = ', '.join(map(str, sorted(self._finished()))) or 'none'
    return OSError(
      f'The checkpoint of step {step} could not be written to {self.directory}: {cause}. '
      f'Earlier checkpoints are untouched ({whole}). Make room if the disk is full, and run the '
      'same command again.'
    )

  def _put_aside(self, step: int) -> str:
    names = (f'{step}.damaged{n or ""}' for n in itertools.count())
    name = next(name for name in names if not (self.directory / name).exists())
    (self.directory / str(step)).rename(self.directory / name)
    return name

  def _remove(self, path: Path) -> None:
    # The manifest goes first: a kill half way through must not leave what looks finished.
    (path / 'manifest.json').unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)

  def _present(self) -> list[int]:
    if not self.directory.is_dir():
      return []
    return [int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()]

  def _finished(self) -> list[int]:
    return [s for s in self._present() if (self.directory / str(s) / 'manifest.json').is_file()]


def _check(where: str, stored: dict[str, str], wanted: dict[str, str], item: str) -> None:
  """Orbax would cast dtypes and cut or pad shapes without a word. Raises ValueError instead."""
  names = [name for name in stored | wanted if stored.get(name) != wanted.get(name)]
  if names:
    listed = ''.join(
      f'\n  {item}.{name}: stored {stored.get(name)}, wanted {wanted.get(name)}'
      for name in names[:8]
    )
    more = f'\n  and {len(names) - 8} more' if len(names) > 8 else ''
    raise ValueError(
      f'{where} does not fit this model:{listed}{more}\n'
      'Use the config it was trained with (config.json beside it), or another --workdir.'
    )


def _leaves(tree: Any) -> dict[str, str]:
  """The name of every leaf and its dtype and shape in words: {'layer.kernel': 'float32[4,3]'}."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda tree: tree, tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): (
      f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'
    )
    for path, leaf in leaves
  }


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
  sharding = getattr(leaf, 'sharding', None)  # a NumPy array has none
  first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding or first)


def _sha256(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _write_whole(path: Path, text: str) -> None:
  """Writes all of `text` or nothing."""
  partial = path.with_name(path.name + '.partial')
  with open(partial, 'w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  partial.replace(path)


def _not_from_orbax(record: logging.LogRecord) -> bool:
  """Keeps Orbax's log off the terminal unless absl's verbosity asks for it: failures are raised."""
  verbose = logging.getLogger('absl').isEnabledFor(logging.INFO)
  return verbose or f'{os.sep}orbax{os.sep}' not in record.pathname
