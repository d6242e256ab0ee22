"""Tasks generated from a seed, over raw ids: no text, no templates, no files.

    task = make('passkey', digits=3)
    token_T, answer_T = task.example(seed=0, index=7, size=128)

Each example is a pure function of (seed, index, size), the same on every machine. What to train on
and what is held out come from different draws.
"""

import dataclasses
import difflib

from posjax.data.tasks import retrieval, ruler, strings
from posjax.data.tasks.base import Example, Task
from posjax.data.tasks.examples import Examples, Lessons, rows

__all__ = ['TASKS', 'Example', 'Examples', 'Lessons', 'Task', 'make', 'rows']

TASKS = {
  'copy': strings.Copy,
  'reverse': strings.Reverse,
  'sort': strings.Sort,
  'addition': strings.Addition,
  'parity': strings.Parity,
  'summation': strings.Summation,
  'induction': strings.Induction,
  'recall': retrieval.Recall,
  'passkey': retrieval.Passkey,
  'needles': retrieval.Needles,
  'variables': ruler.Variables,
  'common': ruler.Common,
  'frequent': ruler.Frequent,
}


def make(name: str, **settings) -> Task:
  """The task `name`. Raises ValueError where it, or a setting, is unknown or makes no sense."""
  if name not in TASKS:
    close = difflib.get_close_matches(name, TASKS, n=1)
    meant = f"Did you mean '{close[0]}'? " if close else ''
    raise ValueError(f"There is no task '{name}'. {meant}There are: {', '.join(TASKS)}.")
  known = [field.name for field in dataclasses.fields(TASKS[name])]
  if unknown := sorted(set(settings) - set(known)):
    raise ValueError(
      f"The task '{name}' has no {', '.join(unknown)}. --config.data.task has: {', '.join(known)}."
    )
  return TASKS[name](**settings)
