"""What train.py and eval.py share as programs: an error a user can cause is one screen of text."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax


def run(main: Callable[[Sequence[str]], None]) -> None:
  """Calls main(sys.argv[1:]); a ValueError or OSError becomes its message and exit status 2.

  POSJAX_TRACEBACK=1 shows where it came from. Anything else is a defect and keeps its traceback.
  """
  try:
    main(sys.argv[1:])
  except (ValueError, OSError) as error:
    if os.environ.get('POSJAX_TRACEBACK'):
      raise
    path = Path(sys.argv[0])
    name = path.parent.name if path.name == '__main__.py' else path.name  # python -m
    sys.exit(_report(f'{name}: {error}\n(POSJAX_TRACEBACK=1 shows where this was raised.)', 2))
  except KeyboardInterrupt:
    sys.exit(_report('Interrupted.', 130))  # 128 + SIGINT, as shells report it


def numbers(text: str) -> dict[str, int]:
  """{'fsdp': 8, 'tensor': 2} of 'fsdp=8,tensor=2', for argparse."""
  pairs = [part.partition('=') for part in text.split(',')]
  if not all(name and count.lstrip('-').isdecimal() for name, _, count in pairs):
    raise argparse.ArgumentTypeError(f"'{text}' is not understood: fsdp=8,tensor=2")
  return {name: int(count) for name, _, count in pairs}


def _report(text: str, status: int) -> int:
  print(text, file=sys.stderr)
  return status


def cache_compilations() -> None:
  """Keeps compiled programs between starts, in the place the user gave JAX or in POSJAX_CACHE."""
  if jax.config.jax_compilation_cache_dir is None:
    cache = Path(os.environ.get('POSJAX_CACHE', '~/.cache/posjax')).expanduser()
    jax.config.update('jax_compilation_cache_dir', str(cache / 'compiled'))
