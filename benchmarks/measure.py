"""How the benchmarks measure: in turn, medians, ratios within one run, and where it ran."""

import datetime
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax


def alternate(runs: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, float]:
  """Median seconds of each of `runs`, called in turn so that a drifting machine hits all alike.

  Each is called once before, to compile; results are waited for.
  """
  for run in runs.values():
    jax.block_until_ready(run())
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      jax.block_until_ready(run())  # finds the memory as its predecessor left it: not counted
      began = time.perf_counter()
      jax.block_until_ready(run())
      seconds[name].append(time.perf_counter() - began)
  return {name: statistics.median(times) for name, times in seconds.items()}


def where() -> dict[str, str]:
  """Device, versions, command and date of a measurement."""
  device = jax.devices()[0]
  kind = _processor() if device.platform == 'cpu' else device.device_kind
  return {
    'device': f'{jax.device_count()} x {kind}',
    'python': platform.python_version(),
    'jax': jax.__version__,
    'command': 'python -m ' + shlex.join([f'benchmarks.{Path(sys.argv[0]).stem}', *sys.argv[1:]]),
    'date': datetime.date.today().isoformat(),
  }


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return f'CPU ({names[0]}, {len(names)} cores)'
  except (OSError, IndexError):
    return f'CPU ({platform.machine()})'


def write(path: str | None, results: dict) -> None:
  """Writes results and `where` as JSON to `path`; nothing if None."""
  if path:
    Path(path).write_text(json.dumps(where() | results, indent=1) + '\n')
    print(f'Written: {path}')
