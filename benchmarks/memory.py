"""Peak memory of a training step by length: batch 1, each measurement in a process of its own.

  python -m benchmarks.memory --json=benchmarks/results/memory.json
  python -m benchmarks.memory --schemes rope t5 --lengths 2048 4096

  python -m benchmarks.memory --compiled --json=benchmarks/results/memory-compiled.json

The model: d_model 256, 2 layers, 8 heads of 32, plain MLP of 1024, 256 ids, float32, AdamW.
`peak` is the largest resident set of a process after one step, `step` that less what it was before.

--compiled runs nothing: it takes the compiler's word for what a step allots, its own work (`step`)
and with state and batch (`peak`). It lacks the process itself: Python and programs.
"""

import argparse
import json
import resource
import subprocess
import sys

import jax

from benchmarks import measure, training
from posjax import cost, positions

LENGTHS = (2048, 4096, 8192, 16384, 32768)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--schemes', nargs='+', default=positions.names())
  parser.add_argument('--lengths', nargs='+', type=int, default=LENGTHS)
  parser.add_argument('--compiled', action='store_true', help='compile, and run nothing')
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
      row = allotted(name, length) if flags.compiled else peak_of_a_process(name, length)
      before = results.setdefault(name, {}).get(str(length // 2))
      growth = f'{row["step"] / before["step"]:6.2f} times' if before else ' ' * 12
      results[name][str(length)] = row
      print(
        f'{name:12} {length:6,} tokens  peak {row["peak"] / 2**20:7,.0f} MiB  '
        f'step {row["step"] / 2**20:7,.0f} MiB {growth}',
        flush=True,
      )
  measure.write(flags.json, {'unit': 'bytes', 'results': results})


def allotted(name: str, length: int) -> dict[str, int]:
  """What the compiled step of a scheme allots at a length, in bytes."""
  step, init, *rest = training.program(name, 1, length, layers=2)
  state = jax.eval_shape(init, jax.random.key(0))
  held, own = cost.memory_bytes(step.lower(state, *rest).compile().memory_analysis())
  return {'peak': held + own, 'step': own}


def peak_of_a_process(name: str, length: int) -> dict[str, int]:
  words = [sys.executable, '-m', 'benchmarks.memory', '--one', name, str(length)]
  done = subprocess.run(words, capture_output=True, text=True, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def peak(name: str, length: int) -> dict[str, int]:
  """Runs one training step of a scheme at a length, in this process; bytes."""
  run = training.ours(name, 1, length, layers=2)
  before = resident()
  jax.block_until_ready(run())
  return {'peak': resident(), 'step': resident() - before}


def resident() -> int:
  """Largest resident set of this process so far, in bytes."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == '__main__':
  main()
