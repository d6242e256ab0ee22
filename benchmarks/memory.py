"""Peak memory of a training step against its length: batch 1, each measurement a process of its own.

  python -m benchmarks.memory --json=benchmarks/results/memory.json
  python -m benchmarks.memory --schemes rope t5 --lengths 2048 4096

The model: d_model 256, 2 layers, 8 heads of 32, plain MLP of 1024, 256 ids, float32, AdamW. Two
steps are run; peak is the process's largest resident set, `step` is that less what it was before
the first one.
"""

import argparse
import json
import subprocess
import sys

from benchmarks import measure
from posjax import positions

LENGTHS = (2048, 4096, 8192, 16384, 32768)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--schemes', nargs='+', default=positions.names())
  parser.add_argument('--lengths', nargs='+', type=int, default=LENGTHS)
  parser.add_argument('--json', help='write the figures here, too')
  parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.one:
    print(json.dumps(peak(flags.one[0], int(flags.one[1]))))
    return
  print(measure.where())
  results = {}
  for name in flags.schemes:
    for length in flags.lengths:
      words = [sys.executable, '-m', 'benchmarks.memory', '--one', name, str(length)]
      done = subprocess.run(words, capture_output=True, text=True, check=True)
      row = json.loads(done.stdout.splitlines()[-1])
      before = results.setdefault(name, {}).get(str(length // 2))
      growth = f'{row["step"] / before["step"]:6.2f} times' if before else ' ' * 12
      results[name][str(length)] = row
      print(
        f'{name:12} {length:6,} tokens  peak {row["peak"] / 2**20:7,.0f} MiB  '
        f'step {row["step"] / 2**20:7,.0f} MiB {growth}  {row["seconds"]:6.1f} s',
        flush=True,
      )
  measure.write(flags.json, {'unit': 'bytes', 'results': results})


def peak(name: str, length: int) -> dict[str, float]:
  """Runs two training steps of one scheme at one length; bytes, and seconds of the second step."""
  import resource
  import time

  import jax

  from benchmarks import training

  def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

  run = training.ours(name, 1, length, layers=2)
  before = resident()
  jax.block_until_ready(run())
  began = time.perf_counter()
  jax.block_until_ready(run())
  seconds = time.perf_counter() - began
  return {'peak': resident(), 'step': resident() - before, 'seconds': seconds}


if __name__ == '__main__':
  main()
