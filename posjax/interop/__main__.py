"""Writes a checkpoint, a run's or another library's, as a Hugging Face directory.

  python -m posjax.interop --checkpoint=runs/quickstart --out=exported
  python -m posjax.interop --checkpoint=hf:DIR --out=longer --extension.name=yarn \\
    --extension.factor=4

An extension takes the place of the checkpoint's own. What transformers has no words for is refused.
"""

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posjax import cli, loading
from posjax.interop import export


def main(words: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m posjax.interop', description=__doc__, allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--checkpoint', required=True, help='a run directory, hf:DIR or gguf:FILE')
  parser.add_argument('--out', required=True, help='a new directory')
  parser.add_argument('--dtype', default='float32', help='of the weights; float32')
  flags, rest = parser.parse_known_args(words)
  name = flags.checkpoint
  loaded = loading.load(name)
  path = export.write(
    flags.out,
    loaded.config,
    loaded.model,
    loaded.params,
    source=loaded.source,
    tokenizer=loaded.tokenizer,
    dtype=flags.dtype,
    extension=settings(rest),
    beside=Path(name.removeprefix('hf:')) if name.startswith('hf:') else None,
  )
  print(f'Exported: {path}')


def settings(words: Sequence[str]) -> dict[str, Any] | None:
  """{'name': 'yarn', 'factor': 4.0} of --extension.name=yarn --extension.factor=4.0."""
  found = {}
  for word in words:
    key, equals, text = word.removeprefix('--extension.').partition('=')
    if not word.startswith('--extension.') or not equals:
      raise ValueError(f"'{word}' is not understood. Settings are written --extension.KEY=VALUE.")
    try:
      found[key] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      found[key] = text
  return found or None


if __name__ == '__main__':
  cli.run(main)
