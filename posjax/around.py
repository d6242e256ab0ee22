"""Another scheme, as it is: for those that change what it sees, or what becomes of its logits."""

import dataclasses

from posjax.positions import Scheme


@dataclasses.dataclass(frozen=True, kw_only=True)
class Around(Scheme):
  """Hands every hook on to `scheme`; override those that are to differ."""

  scheme: Scheme

  @property
  def relative(self) -> bool:
    return self.scheme.relative

  @property
  def reads_positions(self) -> bool:
    return self.scheme.reads_positions

  @property
  def replaces_logits(self) -> bool:
    return self.scheme.replaces_logits

  @property
  def features_read(self) -> int:
    return self.scheme.features_read

  @property
  def factorises(self) -> bool:
    return self.scheme.factorises

  def overrides(self, hook):
    return self.scheme.overrides(hook)

  def query(self, *arguments):
    return self.scheme.query(*arguments)

  def key(self, *arguments):
    return self.scheme.key(*arguments)

  def features(self, *arguments):
    return self.scheme.features(*arguments)

  def continued(self, *arguments):
    return self.scheme.continued(*arguments)

  def age(self, *arguments):
    return self.scheme.age(*arguments)

  def remembered(self, *arguments):
    return self.scheme.remembered(*arguments)

  def recalled(self, *arguments):
    return self.scheme.recalled(*arguments)

  def table(self, *arguments):
    return self.scheme.table(*arguments)

  def score(self, *arguments):
    return self.scheme.score(*arguments)

  def start(self, *arguments):
    return self.scheme.start(*arguments)

  def prepare(self, *arguments):
    return self.scheme.prepare(*arguments)

  def walk(self, *arguments):
    return self.scheme.walk(*arguments)

  def read(self, *arguments):
    return self.scheme.read(*arguments)

  def columns(self, *arguments, **sizes):
    return self.scheme.columns(*arguments, **sizes)

  def temperature(self, *arguments):
    return self.scheme.temperature(*arguments)
