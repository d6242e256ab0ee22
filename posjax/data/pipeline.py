"""Documents to batches. The stream is a pure function of (seed, step).

An epoch is all documents in a shuffled order, end to end, cut into rows of `length` tokens; the
rows are visited in a second shuffled order, so that a batch mixes documents. The rows of all
epochs, one after the other, are the stream, and step t takes rows t B .. (t + 1) B - 1. Nothing
depends on the number of hosts, of threads, or on where a run was stopped.

Phases of other lengths read the same epochs, whose documents keep their order: each goes on at the
token where the one before ended, and shuffles the rows of its own stretch of text. So within an
epoch no token is read twice, and none is left out but a last, shorter row.
"""

import functools
import sys
from collections.abc import Iterator

import grain
import numpy as np

from posjax.data.documents import Documents
from posjax.data.tasks import Examples, Lessons

POSITIONS = ('context', 'document')


class Batches:
  """The endless sequence of one host's batches: item t is step t's. Grain's random-access source.

  For a document [bos, t1, .., tn] the inputs are [bos, .., t(n-1)] and the targets [t1, .., tn]:
  no target belongs to another document than its input. Each item is a dict of int32 arrays
  [B / hosts, L]: tokens, targets, positions (see `Stream`) and segments (1, 2, .. along a row).

  begin: (epoch, token of its shuffled documents) where the first row starts.
  steps: batches there are; None: endless.

  Memory grows with 8 bytes a document and a row of the epoch, twice.
  """

  def __init__(self, documents: Documents, *, length: int, batch: int, seed: int, positions: str,
               host: int, hosts: int, begin: tuple[int, int] = (0, 0), steps: int | None = None):
    self._tokens, self._length, self._batch, self._seed = documents.tokens, length, batch, seed
    self._positions, self._host, self._hosts = positions, host, hosts
    inputs = np.diff(documents.offsets) - 1
    self._inputs = inputs[inputs > 0]
    self._begins = documents.offsets[:-1][inputs > 0]
    total = int(self._inputs.sum())
    self.rows = total // length  # of an epoch; a last, shorter one is dropped
    self._begin, self._steps = begin, steps
    self._first = (total - begin[1]) // length  # rows of the epoch in which the stream begins
    # An epoch's end and the next one's beginning can be read at the same time, hence two.
    self._epoch = functools.lru_cache(maxsize=2)(self._shuffle)

  def __len__(self) -> int:
    return sys.maxsize if self._steps is None else self._steps  # Grain's word for endless

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    share = self._batch // self._hosts
    first = step * self._batch + self._host * share
    rows = [self.read_row(row) for row in range(first, first + share)]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

  def read_row(self, row: int) -> dict[str, np.ndarray]:
    """Returns row `row` of the endless stream, arrays [L]."""
    epoch, index = self._locate(row)
    order, ends, row_order = self._epoch(epoch)
    L = self._length
    start = self._start(epoch) + int(row_order[index]) * L  # in the epoch's input tokens
    tokens_L, targets_L, positions_L, segments_L = (np.empty(L, np.int32) for _ in range(4))
    filled, segment = 0, 0
    place = int(np.searchsorted(ends, start, side='right'))
    while filled < L:
      document, segment = order[place], segment + 1
      skipped = start + filled - int(ends[place] - self._inputs[document])  # 0 after the first
      take = min(L - filled, int(self._inputs[document]) - skipped)
      begin = int(self._begins[document]) + skipped
      part = slice(filled, filled + take)
      tokens_L[part] = self._tokens[begin:begin + take]
      targets_L[part] = self._tokens[begin + 1:begin + take + 1]
      origin = 0 if self._positions == 'context' else skipped
      positions_L[part] = np.arange(origin, origin + take)
      segments_L[part] = segment
      filled, place = filled + take, place + 1
    return {'tokens': tokens_L, 'targets': targets_L, 'positions': positions_L,
            'segments': segments_L}

  def end(self) -> tuple[int, int]:
    """Returns (epoch, token) after the last of `steps`: where another stream goes on."""
    epoch, index = self._last
    return epoch, self._start(epoch) + (index + 1) * self._length

  @functools.cached_property
  def _last(self) -> tuple[int, int] | None:
    """The epoch of the last row, and its index there; None where the stream is endless."""
    return None if self._steps is None else self._locate(self._steps * self._batch - 1)

  def _locate(self, row: int) -> tuple[int, int]:
    """Returns the epoch of a row of the stream, and how many of its rows are visited before it."""
    later = row - self._first
    epoch, index = (0, row) if later < 0 else (1 + later // self.rows, later % self.rows)
    return self._begin[0] + epoch, index

  def _start(self, epoch: int) -> int:
    """Returns the token of the epoch at which its first row starts."""
    return self._begin[1] if epoch == self._begin[0] else 0

  def _shuffle(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the epoch's order of documents, where each ends (in inputs), the order of rows."""
    order = permute(len(self._inputs), self._seed, epoch, 0)
    rows = self._first if epoch == self._begin[0] else self.rows
    if self._last is not None and epoch == self._last[0]:
      rows = self._last[1] + 1
    row_order = permute(rows, self._seed, epoch, 1)
    return order, np.cumsum(self._inputs[order]), row_order


class Stream(Iterator[dict[str, np.ndarray]]):
  """Iterates over batches forever, reading ahead in threads, and can be stopped and restored.

  Yields dicts of int32 arrays [batch / hosts, length]: tokens, targets, positions, segments.
  Host h of H gets the h-th H-th of each batch's rows.

  positions: 'context' counts from the first token of a document that its row shows, so that no
    position reaches `length`; 'document' counts from the document's first token.
  start_step: the step of the first batch.
  begin: (epoch, token) where the text starts: the `end` of the stream before, in a later phase.
  steps: batches there are, whose rows are a stretch of text by themselves; None: endless.

  Raises ValueError where the numbers do not fit together.
  """

  def __init__(self, documents: Documents | Examples, *, length: int, batch: int, seed: int,
               positions: str = 'context', host: int = 0, hosts: int = 1, threads: int = 2,
               start_step: int = 0, begin: tuple[int, int] = (0, 0), steps: int | None = None):
    if positions not in POSITIONS:
      raise ValueError(f"There are no positions '{positions}'. "
                       f"Set --config.data.positions to one of {', '.join(POSITIONS)}.")
    if not 0 <= host < hosts or batch % hosts:
      raise ValueError(f'Host {host} of {hosts} hosts cannot take an equal part of a batch of '
                       f'{batch} rows. Set --config.train.batch to a multiple of {hosts}.')
    if seed < 0:
      raise ValueError(f'The seed {seed} is negative. Use --config.seed >= 0.')
    batches = Lessons if isinstance(documents, Examples) else Batches
    self._batches = batches(documents, length=length, batch=batch, seed=seed, positions=positions,
                            host=host, hosts=hosts, begin=begin, steps=steps)
    if self._batches.rows < batch:
      raise ValueError(
          f'{len(documents)} documents of {len(documents.tokens)} tokens make {self._batches.rows} '
          f'rows of {length}, less than a batch of {batch}. '
          f'Use more text, or lower --config.train.length or --config.train.batch.')
    self._threads = threads
    self._fingerprint = {'documents': documents.fingerprint, 'length': length, 'batch': batch,
                         'seed': seed, 'positions': positions, 'begin': list(begin),
                         'steps': steps}
    self._iterator = None
    self._seek(start_step)

  def __next__(self) -> dict[str, np.ndarray]:
    if self._iterator is None:
      self._iterator = self._read_ahead()
    batch = next(self._iterator)
    self._step += 1
    return batch

  def end(self) -> tuple[int, int]:
    """Returns (epoch, token) after the last of its `steps`."""
    return self._batches.end()

  def state(self) -> dict:
    """Returns plain data: the step of the next batch, and what the stream is a function of.

    The number of hosts is not in it: a run may continue on another number.
    """
    return {'step': self._step, 'fingerprint': dict(self._fingerprint)}

  def restore(self, state: dict) -> None:
    """Continues exactly where `state` was taken. Raises ValueError if it is of another stream."""
    theirs, ours = state['fingerprint'], self._fingerprint
    different = [f'{key} {theirs.get(key)} instead of {ours.get(key)}'
                 for key in sorted({*theirs, *ours}) if theirs.get(key) != ours.get(key)]
    if different:
      raise ValueError(
          f'The saved data position is of another stream: {"; ".join(different)}. Restore with '
          f'the config and data it was saved with, or start a new run (--config.init_from).')
    self._seek(state['step'])

  def _seek(self, step: int) -> None:
    if self._iterator is not None:
      self._iterator.close()
    self._iterator, self._step = None, step

  def _read_ahead(self) -> Iterator:
    # A new iterator over the steps left, not Grain's set_state: that would take over any state.
    options = grain.ReadOptions(num_threads=self._threads,
                                prefetch_buffer_size=4 * self._threads)  # in batches
    left = grain.MapDataset.source(self._batches)[self._step:]
    return iter(left.to_iter_dataset(options))


def permute(n: int, *seeds: int) -> np.ndarray:
  """Returns a permutation of range(n), int64: the order of n random 64-bit keys.

  NumPy promises the bits of Philox and SeedSequence for all versions, but not `permutation`.
  """
  bits = np.random.Philox(np.random.SeedSequence(seeds))
  return np.argsort(bits.random_raw(n), kind='stable')
