"""What was found, as a file of its run, and back as an extension."""

import dataclasses
import json
from pathlib import Path

from posjax.fit.budget import Budget, Found


def save(workdir: Path, method: str, found: Found, budget: Budget) -> Path:
  """Writes <workdir>/fits/<method>.json, whole or not at all."""
  path = workdir / 'fits' / f'{method}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  names = ('factor', 'trained_length', 'length', 'windows')
  facts = {name: getattr(budget, name) for name in names}
  partial = path.with_suffix('.partial')
  partial.write_text(json.dumps(dataclasses.asdict(found) | facts, indent=1) + '\n')
  partial.replace(path)
  return path


def resolve(workdir: Path, recipe: dict) -> dict:
  """The extension that {'name': 'fitted', 'by': METHOD} stands for; any other as it is.

  Raises ValueError where the run has no such fit.
  """
  if recipe['name'] != 'fitted':
    return recipe
  if set(recipe) != {'name', 'by'}:
    given = sorted(recipe.keys() - {'name'})
    raise ValueError(f"Extension 'fitted' takes `by`, a way of fitting, not {given}.")
  path = workdir / 'fits' / f'{recipe["by"]}.json'
  if not path.is_file():
    raise ValueError(
      f"There is no fit '{recipe['by']}' of '{workdir}'. Make it, for texts FACTOR times longer: "
      f'python -m posjax.fit --workdir={workdir} --method={recipe["by"]} --factor=FACTOR.'
    )
  return json.loads(path.read_text())['recipe'] | {'label': f'fitted by {recipe["by"]}'}
