"""Metrics of a run: one JSON object a line, TensorBoard events, and one honest line for people."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import SummaryWriter
from tqdm import tqdm

# How people read the names they know; any other name is shown as it is.
WORDS = {
  'loss': 'loss {:.3f}',  # nats per token
  'bits_per_byte': 'bits/byte {:.2f}',
  'learning_rate': 'lr {:.1e}',
  'gradient_norm': '|g| {:.2f}',  # before clipping
  'tokens_per_second': '{:,.0f} tok/s',
  'mfu': 'MFU {:.0%}',  # share of the device's peak, given only where that is known
}


class Metrics:
  """Writes `<workdir>/metrics.jsonl` and `<workdir>/tensorboard`, and says how far training is.

  `resumed` is the step training continues from: lines of later steps are dropped, so that the file
  never holds a step twice. On a terminal a progress bar shows the newest values; elsewhere each
  step is a line of standard error. Only process 0 writes. Use as a context manager.
  """

  def __init__(self, workdir: str | os.PathLike, *, total_steps: int, resumed: int = 0):
    self.total_steps = total_steps
    self._step = resumed
    self._first: tuple[int, float] | None = None
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    path = _file(workdir)
    path.parent.mkdir(parents=True, exist_ok=True)
    _keep_until(path, resumed)
    self._file = open(path, 'a')  # noqa: SIM115 - it stays open as long as the run
    self._events = SummaryWriter(str(path.parent / 'tensorboard'), purge_step=resumed + 1)
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(total=total_steps, initial=resumed, unit='step', dynamic_ncols=True)

  def __enter__(self) -> 'Metrics':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Ends the bar and the files; everything written is on disk already."""
    if self._writes:
      if self._bar is not None:
        self._bar.close()
      self._events.close()
      self._file.close()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes what was measured after `step` steps; a value that is not finite is stored as null.

    Raises ValueError unless `step` is greater than the last one written.
    """
    if step <= self._step:
      raise ValueError(
        f'Metrics of step {step} after those of step {self._step}. '
        'Write the steps in order, all values of a step at once.'
      )
    self._step = step
    if not self._writes:
      return
    values = {name: float(value) for name, value in values.items()}
    finite = {name: value for name, value in values.items() if math.isfinite(value)}
    stored = {name: finite.get(name) for name in values}
    self._file.write(json.dumps({'step': step, **stored}) + '\n')
    self._file.flush()
    for name, value in finite.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()
    self._tell(step, values)

  def _tell(self, step: int, values: Mapping[str, float]) -> None:
    if self._bar is not None:
      self._bar.set_postfix_str(describe(values), refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    self._first = self._first or (step, now)  # compilation is over by the first line: not counted
    done, seconds = step - self._first[0], now - self._first[1]
    remain = max(self.total_steps - step, 0)
    left = f'  left {_clock(remain * seconds / done)}' if done else ''
    print(f'step {step}/{self.total_steps}  {describe(values)}{left}', file=sys.stderr, flush=True)


def describe(values: Mapping[str, float]) -> str:
  """The values in words: 'loss 1.234  bits/byte 1.78  lr 2.1e-03'."""
  words = [WORDS.get(name, f'{name} {{:.4g}}').format(value) for name, value in values.items()]
  return '  '.join(words)


def read(workdir: str | os.PathLike) -> list[dict[str, float | None]]:
  """The lines of metrics.jsonl, oldest first: {'step': 10, 'loss': 1.2, ...}; null reads as None.

  A last line that a kill cut short is left out. Raises ValueError if there is no such file.
  """
  path = _file(workdir)
  if not path.is_file():
    raise ValueError(f"No metrics in '{path.parent}'. Give the --workdir that train.py wrote to.")
  rows = []
  lines = path.read_text().splitlines()
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if number == len(lines):
        break
      raise ValueError(f"Line {number} of '{path}' is not JSON. Remove it.") from error
  return rows


def _file(workdir: str | os.PathLike) -> Path:
  return Path(workdir).expanduser() / 'metrics.jsonl'


def _keep_until(path: Path, step: int) -> None:
  if path.is_file():
    rows = [row for row in read(path.parent) if row['step'] <= step]
    partial = path.with_name(path.name + '.partial')
    partial.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    partial.replace(path)


def _clock(seconds: float) -> str:
  """3725.2 -> '1h02m', 151 -> '2m31s', 9 -> '9s'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02d}m'
  return f'{minutes}m{seconds:02d}s' if minutes else f'{seconds}s'
