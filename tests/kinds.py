"""Schemes by the hooks they override, for what follows from these alone."""

import pytest

from posjax import positions

HOOKS = (
  'embed', 'query', 'key', 'features', 'table', 'score', 'start', 'walk', 'prepare', 'read'
)  # fmt: skip


def first_of_each_kind() -> list:
  """All schemes as parameters of a test; the second of a kind and on are for the slow tests."""
  seen, params = set(), []
  for name in positions.names():
    kind = tuple(map(positions.find(name)().overrides, HOOKS))
    params.append(pytest.param(name, marks=[pytest.mark.slow] * (kind in seen)))
    seen.add(kind)
  return params
