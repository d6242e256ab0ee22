"""Every task against a solver of its own, which reads the question and knows nothing of how it was
made; and the rows and streams that are made of tasks."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from posjax import data, positions
from posjax.data import Stream, tasks
from posjax.data.tasks import Examples, Lessons, make

BOS, END, SEPARATOR, NEEDLE, QUERY, PLUS = range(6)

# name, settings: the defaults of every task, and settings that change each field.
SETTINGS = [
  *((name, {}) for name in tasks.TASKS),
  ('copy', {'symbols': 3}),
  ('reverse', {'symbols': 2}),
  ('sort', {'symbols': 100}),
  ('induction', {'symbols': 5, 'queries': 4}),
  ('induction', {'symbols': 2, 'queries': 1}),
  ('recall', {'symbols': 192}),
  ('passkey', {'digits': 1, 'symbols': 2, 'depth': 1.0}),
  ('needles', {'keys': 3, 'values': 2, 'queries': 3, 'digits': 2, 'depth': 0.5}),
  ('needles', {'keys': 5, 'symbols': 5, 'values': 4, 'queries': 1, 'depth': 0}),
  ('variables', {'chains': 3, 'hops': 4, 'digits': 2, 'symbols': 20}),
  ('common', {'words': 4, 'often': 5, 'rarely': 1, 'letters': 1, 'symbols': 120}),
  ('common', {'words': 1, 'rarely': 3, 'letters': 3, 'symbols': 5}),
  ('frequent', {'words': 3, 'power': 1, 'letters': 2}),
  ('frequent', {'words': 4, 'power': 3, 'letters': 1, 'symbols': 150}),
]
NAMED = pytest.mark.parametrize(('name', 'settings'), SETTINGS, ids=lambda x: str(x))


def sizes(task):
  return [task.smallest, task.smallest + 1, task.smallest + 7, task.smallest + 30]


def examples(task):
  """Some of several sizes."""
  for size in sizes(task):
    for index in range(20):
      yield size, task.example(5, index, size)


# --- solvers --------------------------------------------------------------------------------------


def number(digits):
  """Of digits with the least significant first."""
  return sum((digit - 48) * 10**n for n, digit in enumerate(digits))


def split(tokens, mark):
  """A list cut at a mark."""
  at = tokens.index(mark)
  return tokens[:at], tokens[at + 1 :]


def solve_string(function):
  def solve(tokens, settings):
    string, _ = split(tokens, SEPARATOR)
    return function(string)

  return solve


def solve_addition(tokens, settings):
  a, rest = split(tokens, PLUS)
  b, _ = split(rest, SEPARATOR)
  return [48 + int(digit) for digit in reversed(str(number(a) + number(b)))] + [END]


def solve_induction(tokens, settings):
  at = tokens.index(QUERY)
  string, asked = tokens[:at], tokens[at + 1 :: 3]
  assert all(string.count(symbol) == 1 for symbol in asked)
  return [string[string.index(symbol) + 1] for symbol in asked]


def solve_recall(tokens, settings):
  pairs = len(tokens) // 4
  value = dict(zip(tokens[: 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
  assert len(value) == pairs
  return [value[key] for key in tokens[2 * pairs :: 2]]


def runs(tokens):
  """What follows each NEEDLE: a name, and digits or another name."""
  for at, token in enumerate(tokens):
    if token == NEEDLE:
      name, end = tokens[at + 1], at + 2
      while 48 <= tokens[end] < 58:
        end += 1
      yield name, tokens[at + 2 : max(end, at + 3)]


def solve_needles(tokens, settings):
  at, values = tokens.index(QUERY), collections.defaultdict(list)
  for key, digits in runs([*tokens[:at], BOS]):
    values[key] += digits
  answer, rest = [], tokens[at:]
  while rest:
    answer += values[rest[1]]
    rest = rest[2 + len(values[rest[1]]) :]
  return answer


def solve_variables(tokens, settings):
  context, question = split(tokens, QUERY)
  value = {}
  for name, right in runs([*context, BOS]):
    assert name not in value and context.count(name) <= 2
    value[name] = value.get(right[0], right)
  asked = question[: settings.get('digits', 3)]
  return [name for name in value if value[name] == asked]


def words(tokens, settings):
  letters = settings.get('letters', 2)
  text, _ = split(tokens, QUERY)
  return collections.Counter(zip(*[iter(text)] * letters, strict=True)).most_common()


def solve_common(tokens, settings):
  counts = words(tokens, settings)
  most = counts[0][1]
  assert all(count <= settings.get('rarely', 2) for _, count in counts if count < most)
  common = sorted(word for word, count in counts if count == most)
  return [letter for word in common for letter in word] + [END]


def solve_frequent(tokens, settings):
  count = settings.get('words', 2)
  counts = words(tokens, settings)
  assert all(a[1] > b[1] for a, b in itertools.pairwise(counts[: count + 1]))
  return [letter for word, _ in counts[:count] for letter in word] + [END]


SOLVERS = {
  'copy': solve_string(lambda string: [*string, END]),
  'reverse': solve_string(lambda string: [*reversed(string), END]),
  'sort': solve_string(lambda string: [*sorted(string), END]),
  'parity': solve_string(lambda string: [48 + string.count(49) % 2]),
  'summation': solve_string(lambda string: [48 + sum(d - 48 for d in string) % 10]),
  'addition': solve_addition,
  'induction': solve_induction,
  'recall': solve_recall,
  'passkey': solve_needles,
  'needles': solve_needles,
  'variables': solve_variables,
  'common': solve_common,
  'frequent': solve_frequent,
}  # fmt: skip


@NAMED
def test_a_solver_that_reads_the_tokens_finds_the_answer(name, settings):
  task = make(name, **settings)
  for _, (token_T, answer_T) in examples(task):
    answer = SOLVERS[name](token_T[1:].tolist(), settings)
    assert answer == token_T[answer_T].tolist()


@pytest.mark.parametrize('name', tasks.TASKS)
def test_the_solver_does_not_read_the_answer(name):
  """What is marked as answer is struck out where nothing else follows from it: the last run."""
  task = make(name)
  token_T, answer_T = task.example(0, 0, task.smallest + 9)
  tokens, end = token_T.tolist(), len(token_T)
  start = max(t for t in range(end) if not answer_T[t]) + 1
  struck = tokens[1:start] + [BOS] * (end - start)
  assert SOLVERS[name](struck, {})[start - end :] == tokens[start:]


@NAMED
def test_examples_have_their_size_and_ids_within_the_vocabulary(name, settings):
  task = make(name, **settings)
  lengths = [task.length(size) for size in sizes(task)]
  assert lengths == sorted(lengths)
  for size, (token_T, answer_T) in examples(task):
    assert task.length(size) - 2 < len(token_T) <= task.length(size)
    assert token_T.dtype == np.int32 and answer_T.dtype == bool
    assert token_T[0] == BOS and not answer_T[0] and answer_T[-1]
    assert (token_T[1:] > 0).all() and (token_T < task.vocabulary).all()


@NAMED
def test_an_example_is_a_function_of_seed_and_index(name, settings):
  task = make(name, **settings)
  size = task.smallest + 20
  first = [task.example(1, index, size).token_T.tolist() for index in range(8)]
  assert first == [task.example(1, index, size).token_T.tolist() for index in range(8)]
  assert first != [task.example(2, index, size).token_T.tolist() for index in range(8)]
  assert any(one != first[0] for one in first[1:])
  lessons = [task.lesson(1, index, size) for index in range(60)]
  assert len({len(token_T) for token_T, _ in lessons}) > 5 or size < 10


def test_the_bits_are_the_same_on_every_machine():
  """Whoever changes them raises posjax.data.tasks.examples.FORMAT: stored runs would not go on."""
  draw = tasks.base.Draw(0, 1, 2)
  assert draw.below(10, 6).tolist() == [0, 7, 5, 3, 1, 5]
  assert draw.distinct(6, 3).tolist() == [0, 1, 4]
  assert draw.weighted(np.array([1, 2, 3]), 6).tolist() == [2, 0, 1, 2, 2, 1]
  tokens = lambda name, size: make(name).example(0, 0, size).token_T.tolist()
  assert tokens('addition', 4) == [0, 56, 57, 49, 51, 5, 54, 52, 54, 49, 2, 52, 52, 56, 52, 1]
  assert tokens('recall', 2) == [0, 123, 171, 113, 158, 123, 171, 113, 158]
  assert tokens('variables', 21) == [
    0, 3, 157, 54, 57, 48, 120, 3, 158, 157, 65, 3, 159, 158, 64, 4, 54, 57, 48, 157, 158, 159
  ]  # fmt: skip
  assert tokens('frequent', 34) == [
    0, 85, 85, 91, 82, 91, 82, 85, 85, 71, 69, 85, 85, 85, 85, 85, 85, 89, 83, 85, 85, 78, 78, 69,
    79, 85, 85, 85, 85, 4, 85, 85, 91, 82, 1
  ]  # fmt: skip


def test_sizes_to_learn_from_are_uniform():
  task = make('copy')
  lengths = [len(task.lesson(0, index, 10).token_T) for index in range(2000)]
  counts = collections.Counter((length - 3) // 2 for length in lengths)
  assert sorted(counts) == list(range(1, 11))
  # Chi-square with 9 degrees of freedom stays below 33.7 with a probability of 0.9999.
  assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 33.7


def test_abacus_gives_the_digits_of_numbers_that_are_added_the_places_of_their_powers():
  token_T, _ = make('addition').example(0, 0, 3)
  scheme = positions.make('abacus')
  place_T = scheme.place(token_T, np.arange(len(token_T))).tolist()
  number = [1, 2, 3]
  carry = [4] * (len(token_T) == 14)
  assert place_T == [0, *number, 0, *number, 0, *number, *carry, 0]


def test_what_is_learned_from_and_what_is_held_out_differ():
  task = make('copy', symbols=100)
  learned = {task.lesson(0, index, 20).token_T.tobytes() for index in range(200)}
  held = {task.example(0, index, 20).token_T.tobytes() for index in range(200)}
  assert not learned & held


# --- needles --------------------------------------------------------------------------------------


@pytest.mark.parametrize('depth', [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(('name', 'settings'), [('passkey', {}), ('needles', {'keys': 3})])
def test_the_needle_lies_where_it_was_asked_for(name, settings, depth):
  task = make(name, **settings, depth=depth)
  for index in range(20):
    token_T, _ = task.example(0, index, 200)
    at = int(np.flatnonzero(token_T == QUERY)[0])
    (found,) = np.flatnonzero((token_T[:at] == NEEDLE) & (token_T[1 : at + 1] == token_T[at + 1]))
    fillers = lambda part_T: np.count_nonzero(part_T >= 64) - np.count_nonzero(part_T == NEEDLE)
    before, all_of_it = fillers(token_T[:found]), fillers(token_T[:at])
    assert all_of_it == 200 - task.smallest
    assert before == round(depth * all_of_it)


def test_without_a_depth_needles_lie_everywhere():
  places = [np.flatnonzero(make('passkey').example(0, i, 114).token_T == NEEDLE)[0] - 1
            for i in range(1000)]  # fmt: skip
  assert min(places) < 3 and max(places) > 97
  assert abs(np.mean(places) - 50) < 4 * 101 / 12**0.5 / 1000**0.5


def test_the_passkey_stands_only_in_its_needle():
  token_T, answer_T = make('passkey').example(0, 3, 300)
  digits_T = (token_T >= 48) & (token_T < 58)
  assert digits_T.sum() == 10 and answer_T.sum() == 5
  np.testing.assert_array_equal(token_T[digits_T & ~answer_T], token_T[answer_T])


def test_filler_follows_zipfs_law():
  context = np.concatenate(
    [make('passkey', symbols=8).example(0, index, 1000).token_T for index in range(20)]
  )
  count_S = np.bincount(context[context >= 64] - 64, minlength=8)
  expected_S = count_S.sum() / np.arange(1, 9) / sum(1 / n for n in range(1, 9))
  assert ((count_S - expected_S) ** 2 / expected_S).sum() < 29.9  # chi-square, 7 degrees, 0.9999


# --- rows and streams -----------------------------------------------------------------------------

STREAM = {'length': 40, 'batch': 4, 'seed': 3, 'threads': 0}


@NAMED
def test_rows_ask_for_the_answer_alone_and_do_not_show_it_before_its_place(name, settings):
  task = make(name, **settings)
  length = task.length(task.smallest + 30)
  some = [task.example(1, index, task.smallest + 9) for index in range(6)]
  batch = tasks.rows(some, length)
  for b, (token_T, answer_T) in enumerate(some):
    n = len(token_T) - 1
    row = {key: x[b] for key, x in batch.items()}
    assert row['segments'].tolist() == [1] * n + [0] * (length - n)
    np.testing.assert_array_equal(row['positions'][:n], np.arange(n))
    asked = np.flatnonzero(row['targets'] >= 0)
    np.testing.assert_array_equal(asked, np.flatnonzero(answer_T) - 1)
    np.testing.assert_array_equal(row['targets'][asked], token_T[answer_T])
    assert (row['targets'][row['segments'] == 0] == -1).all()
    # Inputs up to a target are the tokens before it, so whatever it shows of the answer is past.
    np.testing.assert_array_equal(row['tokens'][:n], token_T[:-1])
    assert not row['tokens'][n:].any()


def stream(**changes):
  options = {**STREAM, **changes}
  return Stream(Examples(task=options.pop('task', make('copy'))), **options)


def take(source, steps):
  return [next(source) for _ in range(steps)]


def assert_equal(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys() == {'tokens', 'targets', 'positions', 'segments'}
    for key in a:
      assert a[key].dtype == np.int32
      np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize('name', tasks.TASKS)
def test_any_number_of_hosts_sees_the_same_examples(name):
  whole = take(stream(task=make(name)), 3)
  parts = [take(stream(task=make(name), host=host, hosts=2), 3) for host in range(2)]
  joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]}
            for step in zip(*parts, strict=True)]  # fmt: skip
  assert_equal(joined, whole)
  assert not any((a['tokens'] == b['tokens']).all() for a, b in itertools.pairwise(whole))


def test_a_restored_stream_goes_on_bit_by_bit():
  whole = take(stream(), 9)
  stopped = stream()
  take(stopped, 4)
  state = json.loads(json.dumps(stopped.state()))
  resumed = stream(threads=2)
  resumed.restore(state)
  assert_equal(take(resumed, 5), whole[4:])


def test_a_later_phase_goes_on_with_the_examples_that_the_one_before_left():
  whole, first = take(stream(), 5), stream(steps=3)
  assert_equal(take(first, 3), whole[:3])
  assert_equal(take(stream(begin=first.end()), 2), whole[3:])
  other = stream(begin=first.end(), batch=2 * STREAM['batch'], steps=1)
  assert other.end() == (0, 5 * STREAM['batch'])


@pytest.mark.parametrize(
  'examples',
  [Examples(task=make('reverse')), Examples(task=make('copy', symbols=31)),
   Examples(task=make('copy'), size=9)],
)  # fmt: skip
def test_the_position_of_another_task_is_refused_with_the_difference(examples):
  with pytest.raises(ValueError, match=r'documents Copy\(symbols=32\), size None, format 1 inst'):
    Stream(examples, **STREAM).restore(stream().state())


def test_rows_hold_sizes_up_to_the_largest_that_fits_or_that_is_asked_for():
  options = {'length': 40, 'batch': 300, 'seed': 0, 'positions': 'context', 'host': 0, 'hosts': 1}
  for size, largest in ((None, 19), (7, 7)):  # 2 n + 3 tokens, the last of which is no input
    batch = Lessons(Examples(task=make('copy'), size=size), **options)[0]
    inputs = (batch['segments'] > 0).sum(1)
    assert inputs.max() == 2 * largest + 2 and inputs.min() == 4


@NAMED
def test_the_largest_size_that_fits_is_the_largest(name, settings):
  task = make(name, **settings)
  least = task.length(task.smallest) - 1
  for length in (least, least + 1, least + 5, least + 40):
    size = task.fit(length)
    assert task.length(size) - 1 <= length < task.length(size + 1) - 1
  with pytest.raises(ValueError, match=rf'Rows of {least - 1} tokens are too short .*smallest'):
    task.fit(least - 1)


# --- config ---------------------------------------------------------------------------------------


def load(name, size=None, **settings):
  config = ConfigDict({'name': name, 'task': settings, 'size': size})
  return data.load(config, 'train', data.make_tokenizer('bytes'))


def test_a_config_names_a_task_and_its_settings():
  assert load('task:needles', keys=7, depth=0.5, size=90) == Examples(
    task=make('needles', keys=7, depth=0.5), size=90
  )


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ({'name': 'task:pass'}, r"no task 'pass'. Did you mean 'passkey'\? There are: copy, reverse"),
    ({'name': 'task:copy', 'keys': 3}, r"'copy' has no keys. --config.data.task has: symbols\."),
    ({'name': 'task:copy', 'symbols': 0}, 'Copy with symbols 0. Set --config.data.task.symbols to'),
    ({'name': 'task:copy', 'symbols': 2.0}, 'Copy with symbols 2.0. Set .* a whole number >= 1'),
    ({'name': 'task:copy', 'symbols': 193}, r'up to 256, but the tokenizer has 256.*by 1,'),
    ({'name': 'task:needles', 'keys': 2, 'queries': 3}, '3 of 2 keys, of 64 symbols, cannot be'),
    ({'name': 'task:needles', 'keys': 65}, '1 of 65 keys, of 64 symbols, cannot be asked for'),
    ({'name': 'task:passkey', 'depth': 1.5}, r'depth of 1.5 is outside .* Use 0 <= depth <= 1'),
    ({'name': 'task:induction', 'symbols': 4}, '4 symbols leave none beside 4 .* to 5 or more'),
    ({'name': 'task:recall', 'symbols': 1}, '1 symbol is no key and value'),
    ({'name': 'task:variables', 'symbols': 3}, 'need 3 names and different values, of 3 symbols'),
    ({'name': 'task:variables', 'chains': 11, 'digits': 1}, '11 chains of 2 hops need 33 names'),
    ({'name': 'task:common', 'often': 2}, '2 words, 2 times among others 2 times.*often > rarely'),
    ({'name': 'task:common', 'words': 9, 'symbols': 2, 'letters': 3}, '9 words, .* more letters'),
    ({'name': 'task:frequent', 'words': 32, 'letters': 1}, '32 words of 32 symbols .* Use fewer w'),
    ({'name': 'task:frequent', 'power': 40}, 'by a power of 40, are not told .* a lower power'),
  ],
)
def test_settings_that_make_no_sense_are_refused_with_the_way_out(words, message):
  with pytest.raises(ValueError, match=message):
    load(**words)


@pytest.mark.parametrize(
  ('examples', 'length', 'message'),
  [
    (Examples(task=make('copy'), size=20), 40, 'Rows of 40 tokens hold Copy up to size 19, not 20. '
     'Lower --config.data.size, or raise --config.train.length to 42'),
    (Examples(task=make('needles')), 24, 'Rows of 24 tokens are too short for Needles: its smallest'
     ' example has 25 inputs. Raise --config.train.length'),
    (Examples(task=make('passkey'), size=13), 40, 'no examples of size 13 .* the smallest is 14'),
  ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused_with_the_way_out(examples, length, message):
  with pytest.raises(ValueError, match=message):
    Stream(examples, **STREAM | {'length': length})


@pytest.mark.parametrize(
  ('task', 'size', 'message'),
  [
    (make('recall'), 65, '65 pairs need as many keys.* of 128 symbols .* to 130 or more'),
    (make('common'), 5000, '5000 tokens need .* different words, of 32 symbols and 2 letters'),
    (make('frequent', symbols=8), 5000, '5000 tokens need .* different words, of 8 symbols'),
    (make('induction'), 7, 'Induction has no examples of size 7 .* the smallest is 8'),
  ],
)
def test_sizes_that_a_task_cannot_have_are_refused_with_the_way_out(task, size, message):
  with pytest.raises(ValueError, match=message):
    task.example(0, 0, size)


def test_pairs_that_fit_into_rows_are_no_more_than_keys():
  assert make('recall', symbols=8).fit(1000) == 4


def test_every_setting_of_every_task_is_varied_here():
  fields = {name: {field.name for field in dataclasses.fields(kind)}
            for name, kind in tasks.TASKS.items()}  # fmt: skip
  varied = collections.defaultdict(set)
  for name, settings in SETTINGS:
    varied[name] |= settings.keys()
  families = {'copy': ('reverse', 'sort'), 'needles': ('passkey',)}
  for name, of in fields.items():
    own = next((head for head, tail in families.items() if name in tail), name)
    assert of <= varied[own] | varied[name], name
