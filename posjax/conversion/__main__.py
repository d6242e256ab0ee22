"""Writes a run's conversion to latent attention (posjax/conversion/).

  python -m posjax.conversion --workdir=runs/quickstart --out=runs/latent --rank=64 --slice=32
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from posjax import cli
from posjax.conversion import METHODS
from posjax.conversion.runs import convert_run


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m posjax.conversion', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--workdir', required=True, help='a run that train.py made, or hf:DIR')
  parser.add_argument('--out', required=True, help='where the converted run goes')
  parser.add_argument('--rank', type=int, required=True, help='C, width of the latent')
  parser.add_argument('--slice', type=int, help='R, width of the slice; the head width unless told')
  parser.add_argument('--stride', type=int, default=1, help="of the slice's pairs in a head; 1")
  parser.add_argument('--method', default='attended', help=f'{", ".join(METHODS)}; the last')
  parser.add_argument('--batches', type=int, default=8, help='of training text to look at; 8')
  flags = parser.parse_args(words)
  cli.cache_compilations()
  out = Path(flags.out).expanduser()
  if (out / 'config.json').exists():
    raise ValueError(f"There is a run in '{out}' already. Use another --out.")
  if flags.batches < 1:
    raise ValueError(f'--batches={flags.batches} leaves nothing to look at. Use 1 or more.')
  convert_run(
    flags.workdir, out, rank=flags.rank, slice=flags.slice, stride=flags.stride,
    method=flags.method, batches=flags.batches,
  )  # fmt: skip


if __name__ == '__main__':
  cli.run(main)
