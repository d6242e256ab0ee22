"""The run directory: config.json, revision.json and a lock, so that one process trains in it.

Open it as `with Run(workdir, config) as run, Stop() as stop:` around all of training.
"""

import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import jax
from ml_collections import ConfigDict

from posjax.config import HOUSE, complete, difference, from_json, load, nearest, to_json

LOG = logging.getLogger('posjax')

# Which keys a resumed run may change, and what it means. The first pattern that fits decides.
MAY_CHANGE = (
  ('model.attention', True, 'another form of the same function'),
  ('model.remat', True, 'memory against time'),
  ('model.dtype', True, 'of activations; parameters are float32 either way'),
  ('model.experts.form', True, 'another form of the same function'),
  ('model.*', False, 'the stored parameters belong to another model'),
  ('position.*', False, 'the stored parameters were trained with another scheme'),
  ('layers', False, 'the stored parameters belong to another pattern of layers'),
  ('sampling.*', False, 'the stored parameters were trained on other positions'),
  ('extension.*', False, 'the stored parameters were trained with another spectrum'),
  ('data.threads', True, 'speed only'),
  ('data.*_dir', True, 'where files are, not what they hold'),
  ('data.validation_split', True, 'losses before and after do not compare'),
  ('data.*', False, 'the stream would not go on where it stopped'),
  ('train.length', False, 'the stream would not go on where it stopped'),
  ('train.batch', False, 'the stream would not go on where it stopped'),
  ('seed', False, 'the order of the data follows from it'),
  ('init_from', False, 'the run has begun elsewhere'),
  ('phases', False, 'the run would have gone another way'),
  ('train.accumulate', True, 'memory against time'),
  ('train.loss_chunk', True, 'memory against time'),
  ('train.steps', True, 'the schedule stretches with it: later learning rates change'),
  ('train.*', True, 'from here on the run differs from an uninterrupted one'),
  ('*', True, 'not part of what is learned'),
)

PACKAGES = (
  'posjax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'ml-collections', 'numpy'
)  # fmt: skip


class Run:
  """An open run directory, held by this process until the context ends.

  Entering makes `workdir` if needed and writes config.json and one more record of revision.json.
  `resumed` tells whether there was a run already; `changed` holds (key, old, new) of the keys that
  differ from it, which are printed. With several hosts, process 0 holds and writes.

  Raises ValueError if another process holds the directory, if it is something else than a run, or
  if the run there was made with a config that this one cannot continue.
  """

  def __init__(self, workdir: str | os.PathLike, config: ConfigDict):
    self.workdir = Path(workdir).expanduser()
    self.config = config
    self.resumed = False
    self.changed: list[tuple[str, Any, Any]] = []
    self._lock = None

  def __enter__(self) -> 'Run':
    first = jax.process_index() == 0
    if first:
      self._lock = _lock(self.workdir)
    try:
      self.resumed = (self.workdir / 'config.json').exists()
      if self.resumed:
        self.changed = difference(load_config(self.workdir), self.config)
        _check_changes(self.workdir, self.changed, self.config)
      if first:
        self._write()
    except BaseException:
      self.__exit__()
      raise
    return self

  def __exit__(self, *_) -> None:
    if self._lock is not None:
      os.ftruncate(self._lock.fileno(), 0)
      self._lock.close()
      self._lock = None

  def _write(self) -> None:
    for key, old, new in self.changed:
      print(f'{key}: {old!r} -> {new!r} ({_verdict(key, self.config)[1]})')
    _write_whole(self.workdir / 'config.json', to_json(self.config))
    starts = self.workdir / 'revision.json'
    records = json.loads(starts.read_text()) if starts.exists() else []
    records.append(revision() | {'changed': {key: [old, new] for key, old, new in self.changed}})
    _write_whole(starts, json.dumps(records, indent=2, default=str) + '\n')


def load_config(workdir: str | os.PathLike) -> ConfigDict:
  """The config of the run in `workdir`. Raises ValueError if there is no run.

  Keys that posjax did not have when the run was made are as configs/base.py has them, which is what
  was done before they were there; a warning names them.
  """
  workdir = Path(workdir).expanduser()
  if not workdir.is_dir():
    runs = [str(path.parent) for path in workdir.parent.glob('*/config.json')]
    way_out = nearest(str(workdir), runs) if runs else 'Train one: python train.py --workdir=DIR.'
    raise ValueError(f"No run at '{workdir}'. {way_out}")
  try:
    config = from_json((workdir / 'config.json').read_text())
  except FileNotFoundError as error:
    raise ValueError(
      f"'{workdir}' is not a run: it has no config.json. "
      'Give the --workdir that train.py was called with.'
    ) from error
  except ValueError as error:
    raise ValueError(
      f"'{workdir / 'config.json'}' cannot be read: {error}. Restore it from a copy."
    ) from error
  if lacking := complete(config, load('configs/base.py')):
    LOG.warning(
      "The run in '%s' was made before posjax had %s: read as configs/base.py has them.",
      workdir, ', '.join(lacking),
    )  # fmt: skip
  return config


def check_continues(source: ConfigDict, config: ConfigDict) -> None:
  """Says what `config`, which starts from the parameters of `source`, does differently with them.

  Raises ValueError where the parameters would fit and mean something else. Other shapes are refused
  when the parameters are read.
  """
  for key, old, new in difference(source, config):
    if key in ('model.heads', 'model.kv_heads', 'model.head_width'):
      raise ValueError(
        f'The parameters of init_from were trained with {key} = {old}, not {new}: the same numbers '
        f'would be cut into other heads. Set --config.{key}={old}.'
      )
    if key == 'layers' or key.startswith(('model.', 'position.', 'extension.', 'sampling.')):
      print(f'{key}: {old!r} -> {new!r} (the parameters were trained with the former)')


def revision() -> dict[str, Any]:
  """What runs here: git revision, packages, Python, devices, command line, date."""
  versions = {}
  for package in PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return {
    'date': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
    'command': shlex.join(['python', *sys.argv]),
    'git': _git(HOUSE),
    'python': platform.python_version(),
    'packages': versions,
    'devices': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
  }


class Stop:
  """Turns SIGTERM and Ctrl-C into a question that the training loop asks: `if stop.asked: ...`.

  The loop then saves and ends by itself. A second Ctrl-C raises KeyboardInterrupt at once. The old
  handlers return when the context ends. Python raises ValueError outside the main thread.
  """

  def __init__(self):
    self.asked = False
    self._before = {}

  def __enter__(self) -> 'Stop':
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number: int, frame: FrameType | None) -> None:
    if self.asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    if not self.asked:
      # Not print: the signal may have come in the middle of one.
      os.write(2, b'\n%s: saving, then stopping.\n' % signal.Signals(number).name.encode())
    self.asked = True


def _lock(workdir: Path) -> TextIO:
  """Opens `<workdir>/lock` for this process alone; the kernel lets go when it dies, however."""
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f"'{workdir}' is a file. Give a directory as --workdir.")
  if workdir.is_dir() and not (workdir / 'config.json').exists():
    ours = ('lock', 'config.json.partial')  # left by a kill in the first moments of a run
    others = sorted(path.name for path in workdir.iterdir() if path.name not in ours)
    if others:
      raise ValueError(
        f"'{workdir}' holds other things than a run ({', '.join(others[:3])}). "
        'Give a new or empty directory as --workdir.'
      )
  workdir.mkdir(parents=True, exist_ok=True)
  lock = open(workdir / 'lock', 'a+')  # noqa: SIM115 - it stays open as long as the run
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    lock.seek(0)
    holder = lock.read().strip() or 'another process'
    lock.close()
    raise ValueError(
      f"'{workdir}' is in use by {holder}. Wait for it, stop it, or use another --workdir."
    ) from None
  lock.truncate(0)
  since = time.strftime('%Y-%m-%d %H:%M:%S')
  lock.write(f'process {os.getpid()} on {socket.gethostname()} since {since}\n')
  lock.flush()
  return lock


def _verdict(key: str, config: ConfigDict) -> tuple[bool, str]:
  if key == 'train.steps' and config.phases:
    return False, 'the phases after it begin where it ends'
  return next((may, why) for pattern, may, why in MAY_CHANGE if fnmatch(key, pattern))


def _check_changes(workdir: Path, changed: list[tuple[str, Any, Any]], config: ConfigDict) -> None:
  refused = [(key, old, new) for key, old, new in changed if not _verdict(key, config)[0]]
  if refused:
    listed = ''.join(
      f'\n  {k}: {old!r} -> {new!r} ({_verdict(k, config)[1]})' for k, old, new in refused
    )
    raise ValueError(
      f"The run in '{workdir}' was made with another config:{listed}\n"
      'Use another --workdir, or put these keys back.'
    )


def _git(folder: Path) -> dict[str, Any]:
  """The revision of `folder` and whether files differ from it; says so where there is none."""

  def git(*words: str) -> str:
    command = ['git', '-C', str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

  try:
    git('ls-files', '--error-unmatch', 'posjax/run.py')  # not another repository around ours
    return {'revision': git('rev-parse', 'HEAD'), 'dirty': bool(git('status', '--porcelain'))}
  except (OSError, subprocess.CalledProcessError):
    return {'revision': None, 'note': 'posjax does not run from a git checkout'}


def _write_whole(path: Path, text: str) -> None:
  """Writes all of `text` or nothing."""
  partial = path.with_name(path.name + '.partial')
  partial.write_text(text)
  partial.replace(path)
