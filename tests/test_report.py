"""A report that a person can read and that needs nothing but itself."""

import itertools
import json
import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from ml_collections import ConfigDict

from posjax import report
from posjax.report.attention import plot_heads
from posjax.report.drawing import INK, look, spread, styled
from posjax.report.plots import plot_distances, plot_lengths, plot_positions
from posjax.report.tables import HEADER


def rows(recipe, best=False):
  return [
    {'length': length, 'recipe': recipe, 'factor': None, 'estimator': estimator, 'loss': loss,
     'low': loss - 0.1, 'high': loss + 0.1, 'perplexity': 2.5, 'bits_per_byte': 1.25,
     'tokens': 4096, 'documents': 4, 'behind': 0.0, 'behind_low': 0.0, 'behind_high': 0.0,
     'best': best}
    for estimator in ('sliding', 'non-overlapping')
    for length, loss in ((256, 1.5), (512, 1.25))
  ]  # fmt: skip


def make(name='extend', **changes):
  bins = [
    {'above': a, 'context': c, 'mean': 2.0, 'low': 1.9, 'high': 2.1, 'tokens': 40}
    for a, c in ((0, 64), (64, 256), (256, 512))
  ]
  new = {'mean': 3.0, 'low': 2.9, 'high': 3.1, 'tokens': 900}
  far = [{**new, 'above': d // 2, 'distance': d, 'mean': 0.5} for d in (16, 128, 512)]
  return {
    'name': name, 'recipes': ['none', 'yarn', 'ntk'], 'trained_length': 256,
    'lengths': [256, 512], 'overlap': 2, 'documents': 4, 'short_documents': 3, 'targets': 1024,
    'tokens': 4096, 'bytes_per_token': 1.0,
    'rows': rows('none') + rows('yarn', best=True),
    'positions': [{'recipe': 'none', 'length': 512, 'bins': bins}],
    'distances': [{'recipe': 'none', 'length': 512, 'bins': far, 'new': new}], 'repeat': 8,
    'gains': [{'recipe': 'yarn', 'length': 512, 'mean': 0.25, 'low': 0.2, 'high': 0.3,
               'tokens': 9}],
    'refused': [{'recipe': 'ntk', 'length': n, 'reason': 'No <frequencies>. Use linear.'}
                for n in (256, 512)],
    'seconds': 12.0, 'facts': {'device': '1 x cpu', 'packages': {'jax': '0.10', 'numpy': None}},
    **changes,
  }  # fmt: skip


METRICS = [{'step': n, 'loss': 5 / n, 'learning_rate': 1e-3} for n in range(1, 9)]
CONFIG = ConfigDict({'seed': 0, 'position': {'name': 'rope'}})


def test_the_table_aligns_and_marks_trained_length_best_recipe_and_refusals():
  text = report.table(make())
  lines = text.splitlines()
  assert max(map(len, lines)) <= 100
  assert lines[2].split() == ' '.join(HEADER).split()
  assert 'trained 256  none     1.5000  1.400 to 1.600       2.500     1.2500' in text
  assert '        512  yarn    *1.2500  1.150 to 1.350       2.500     1.2500  +0.2500' in text
  assert '        512  ntk     refused\n' in text
  assert 'ntk is refused at 256, 512: No <frequencies>. Use linear.' in text
  assert '4,096 targets: the first 1,024 of each of 4 documents' in text
  assert 'left out: 3.' in ' '.join(lines)


def test_a_single_recipe_is_not_called_the_best():
  text = report.table(make(recipes=['yarn'], rows=rows('yarn', best=True), refused=[]))
  assert '*' not in text and 'refused' not in text


def test_one_document_has_no_interval_and_is_still_shown(tmp_path):
  lonely = [{**row, 'low': None, 'high': None} for row in rows('none', best=True)]
  bare = make(recipes=['none'], rows=lonely, refused=[], gains=[])
  assert ' to ' not in report.table(bare).split('Loss in nats')[0]
  assert report.write(tmp_path, bare, METRICS, CONFIG).exists()


def test_the_page_holds_all_pictures_and_asks_for_nothing_outside(tmp_path):
  page = report.write(tmp_path, make(), METRICS, CONFIG).read_text()
  assert page.count('<svg') == page.count('</svg>') == 5
  assert not re.findall(r'<(?:script|link|img|iframe)\b|@import|url\((?!#)', page)
  assert all(target.startswith('#') for target in re.findall(r'(?:href|src)="([^"]*)"', page))
  assert 'No &lt;frequencies&gt;.' in page and '<frequencies>' not in page
  assert '&quot;name&quot;: &quot;rope&quot;' in page
  assert '<dd>jax 0.10, numpy None</dd>' in page
  assert INK not in page.split('</style>')[1]  # pictures take the page's ink: dark mode


def test_what_is_never_repeated_stands_behind_the_distances():
  with styled():
    axes = plot_distances(make()).axes[0]
  assert [t.get_text().split('\n')[0] for t in axes.get_xticklabels()] == [
    '1', '4', '16', '64', '256', '512', 'never',
  ]  # fmt: skip
  near, never = sorted((line for line in axes.get_lines() if len(line.get_xdata()) in (1, 3)),
                       key=lambda line: -len(line.get_xdata()))  # fmt: skip
  assert near.get_xdata().tolist() == [16, 128, 512] and never.get_ydata().tolist() == [3.0]
  assert never.get_xdata()[0] > 512


def heads(length, recipe, **changes):
  numbers = {name: [[0.25, 0.75], [0.5, 0.5]] for name in ('entropy', 'spread', 'sink')}
  distance = [[10.0, 20.0], [length / 2, 30.0]]
  row = {'length': length, 'recipe': recipe, 'factor': None, 'windows': 8, 'distance': distance}
  return {**row, **numbers, **changes}


def seen(**changes):
  return {
    'name': 'attention', 'measure': 'attention', 'recipes': ['none', 'yarn'],
    'trained_length': 256, 'lengths': [256, 512], 'sinks': 4, 'documents': 4, 'short_documents': 3,
    'rows': [heads(256, 'none'), heads(256, 'yarn'), heads(512, 'yarn')],
    'refused': [{'recipe': 'none', 'length': 512, 'reason': 'Too far.'}], 'seconds': 1.0,
    'facts': {}, **changes,
  }  # fmt: skip


def test_the_table_of_attention_has_a_line_per_layer_and_says_what_it_averages():
  text = report.table(seen())
  assert max(map(len, text.splitlines())) <= 100
  assert 'none          1    15.0 (10.0–20.0)  0.50 (0.25–0.75)        0.50  0.500 (0.250' in text
  assert 'yarn          2  143.0 (30.0–256.0)  0.50 (0.50–0.50)        0.50  0.500 (0.500' in text
  assert '        512  none    refused\n' in text
  assert 'none is refused at 512: Too far.' in text
  said = ' '.join(text.split())
  assert 'first 4 tokens of the window' in said and 'past the first quarter' in said
  assert 'first token of the window' in ' '.join(report.table(seen(sinks=1)).split())


def test_heads_are_drawn_at_the_longest_length_on_one_scale_for_all_recipes(tmp_path):
  with styled():
    figure = plot_heads(seen(rows=[heads(256, 'none'), heads(512, 'none'), heads(512, 'yarn')]))
  assert figure.get_suptitle().endswith('512 tokens')
  maps = [axes.collections[0] for axes in figure.axes[:6]]
  assert [image.get_clim() for image in maps] == [(0, 256), (0, 1), (0, 1)] * 2
  assert maps[0].get_array().ravel().tolist() == [10, 20, 256, 30]
  page = report.write(tmp_path, seen(), METRICS, CONFIG).read_text()
  assert page.count('<svg') == 2 and '<image' not in page
  assert (tmp_path / 'evaluation' / 'attention-heads.png').exists()


def test_a_text_without_repeats_has_no_picture_of_them():
  none = [{'recipe': 'none', 'length': 512, 'bins': [], 'new': None}]
  assert plot_distances(make(distances=none)) is None


@pytest.mark.slow
def test_evaluations_of_one_run_stand_side_by_side(tmp_path):
  report.write(tmp_path, make('lengths'), METRICS, CONFIG)
  page = report.write(tmp_path, make('extend'), METRICS, CONFIG).read_text()
  assert 'Evaluation: lengths' in page and 'Evaluation: extend' in page
  assert {path.name for path in (tmp_path / 'evaluation').iterdir()} == {
    f'{name}{end}' for name in ('lengths', 'extend')
    for end in ('.json', '-lengths.png', '-positions.png', '-distances.png', '-gains.png')
  }  # fmt: skip
  assert (tmp_path / 'training.png').read_bytes().startswith(b'\x89PNG')
  stored = json.loads((tmp_path / 'evaluation' / 'extend.json').read_text())
  assert stored == json.loads(json.dumps(make('extend')))


def test_a_run_without_evaluation_or_metrics_has_a_page_too(tmp_path):
  page = report.write(tmp_path, None, [], CONFIG)
  assert page == Path(tmp_path) / 'report.html' and '<svg' not in page.read_text()


def test_a_loss_that_was_not_finite_is_a_gap_in_the_curve(tmp_path):
  report.write(tmp_path, None, [*METRICS, {'step': 9, 'loss': None}], CONFIG)
  assert (tmp_path / 'training.png').exists()


def test_numbers_that_are_no_numbers_do_not_reach_the_json(tmp_path):
  with pytest.raises(ValueError, match='not JSON compliant'):
    report.write(tmp_path, make(seconds=float('nan')), METRICS, CONFIG)


def test_drawing_leaves_the_settings_of_matplotlib_alone(tmp_path):
  before = dict(matplotlib.rcParams)
  report.write(tmp_path, make(), METRICS, CONFIG)
  assert dict(matplotlib.rcParams) == before


# --- many lines -----------------------------------------------------------------------------------


def crowd(count):
  """An evaluation of `count` recipes: half of them end together, one is refused at 512."""
  recipes = [f'yarn factor={n}' for n in range(count)]
  rows = [
    {'length': length, 'recipe': recipe, 'estimator': 'sliding', 'loss': loss, 'low': loss - 0.1,
     'high': loss + 0.1}
    for n, recipe in enumerate(recipes)
    for length, loss in ((256, 1.0), (512, 1.5 + max(0, n - count // 2) / 10))
    if (n, length) != (1, 512)
  ]  # fmt: skip
  return make(recipes=recipes, rows=rows, refused=[])


@pytest.mark.parametrize('count', [2, 12, 30])
def test_every_line_is_named_beside_the_axes_and_no_name_hides_another(count):
  with styled():
    figure = plot_lengths(crowd(count))
    figure.draw_without_rendering()
  axes, page = figure.axes[0], figure.bbox
  boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
  expected = {f'yarn factor={n}' for n in range(count) if n != 1} | {'yarn factor=1, to 256'}
  assert boxes.keys() == expected
  across = sorted(boxes.values(), key=lambda box: box.y0)
  assert all(below.y1 < above.y0 for below, above in itertools.pairwise(across))
  for box in across:
    assert box.x0 > axes.get_window_extent().x1 and box.x1 <= page.x1
    assert page.y0 <= box.y0 and box.y1 <= page.y1
  assert axes.get_window_extent().width > page.width / 2  # names leave room for what they name


def test_names_stand_in_the_order_of_the_ends_of_their_lines():
  with styled():
    figure = plot_lengths(crowd(12))
  place = {text.get_text(): text.get_position()[1] for text in figure.axes[0].texts}
  rising = [place[f'yarn factor={n}'] for n in range(7, 12)]
  assert rising == sorted(rising) and place['yarn factor=0'] < rising[0]


def test_a_single_recipe_names_its_two_ways_of_counting():
  with styled():
    figure = plot_lengths(make(recipes=['yarn'], rows=rows('yarn')))
  assert {text.get_text() for text in figure.axes[0].texts} == {
    'sliding\nwindows', 'non-overlapping\nwindows'
  }  # fmt: skip


def test_a_single_line_needs_no_name():
  with styled():
    assert not plot_positions(make(recipes=['none'])).axes[0].texts


def test_twenty_lines_are_told_apart_with_and_without_colour():
  looks = [look(i) for i in range(21)]
  for keys in (('color', 'linestyle'), ('marker', 'linestyle')):
    assert len({tuple(one[key] for key in keys) for one in looks}) == 21


@pytest.mark.parametrize(
  ('wishes', 'gap', 'places'),
  [
    ([0.9, 0.1, 0.5], 0.1, [0.9, 0.1, 0.5]),  # nobody in the way
    ([0.5, 0.5, 0.5], 0.1, [0.4, 0.5, 0.6]),  # all move, as little as they can
    ([0.55, 0.5], 0.1, [0.575, 0.475]),
    ([0.0, 0.02, 0.9], 0.1, [0.0, 0.1, 0.9]),  # not below the axes
    ([2.0, 0.0, -1.0], 0.1, [1.0, 0.1, 0.0]),  # ends outside the frame
    ([0.3] * 5, 0.5, [0.0, 0.25, 0.5, 0.75, 1.0]),  # more than there is room for
  ],
)
def test_places_are_apart_in_order_and_nearest_to_the_wishes(wishes, gap, places):
  np.testing.assert_allclose(spread(np.array(wishes), gap), places, atol=1e-12)
