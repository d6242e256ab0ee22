"""What a training run says of itself as it goes: loss, learning rate, speed."""

import math
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from posjax import cost
from posjax.decoder import Decoder
from posjax.training import make_schedule


class Meter:
  """Turns what the steps of a phase measure into the values of a line.

  train: the phase's section of the config. params: arrays, or their shapes.
  begin: steps of the phases before. done: steps so far. bytes_per_token: None: ids are no text.
  """

  def __init__(
    self, train: ConfigDict, model: Decoder, params: Any, *, begin: int, done: int,
    bytes_per_token: float | None,
  ):  # fmt: skip
    self.bytes_per_token = bytes_per_token
    self.schedule = make_schedule(train, begin)
    self.tokens = train.batch * train.length
    self.flops = cost.flops_per_token(model, params, train.length)
    self.peak = cost.peak_flops(jax.devices()[0].device_kind)
    self.first = True
    self.start(done)

  def start(self, done: int) -> None:
    """The clock runs from here, after `done` steps."""
    self.clock, self.counted = time.monotonic(), done

  def read(self, measured: dict, done: int) -> dict[str, float]:
    """The first time without a speed, which would be that of the compiler."""
    loss, norm = finite(measured, done)
    rate = self.tokens * (done - self.counted) / (time.monotonic() - self.clock)
    values = {'loss': loss}
    if self.bytes_per_token is not None:
      values['bits_per_byte'] = loss / math.log(2) / self.bytes_per_token
    values |= {'learning_rate': float(self.schedule(done - 1)), 'gradient_norm': norm}
    if not self.first:
      values['tokens_per_second'] = rate
      if self.peak is not None:
        values['mfu'] = rate * self.flops / (self.peak * jax.device_count())
    values |= {name: float(value) for name, value in measured.items() if name.startswith('load_')}
    self.first = False
    return values


def finite(measured: dict, step: int) -> tuple[float, float]:
  """Loss and gradient norm. Raises ValueError where one is not finite: it must not be saved."""
  loss, norm = float(measured['loss']), float(measured['gradient_norm'])
  if not (math.isfinite(loss) and math.isfinite(norm)):
    raise ValueError(
      f'At step {step} the loss is {loss} and its gradient {norm}, which is not saved. Lower '
      '--config.train.learning_rate or lengthen --config.train.warmup, and start again, from the '
      'last checkpoint or in another --workdir.'
    )
  return loss, norm
