"""A finished run is evaluated at any length, with any recipe, without training."""

import json
import logging
import math
import shutil

import jax
import numpy as np
import pytest
from e2e import train_here

import eval as evaluation
from posjax import data, run
from posjax.config import load
from posjax.experiment import as_trained, build
from posjax.extension import extend
from posjax.extension.frequencies import linear, yarn

EXTEND = '--eval=configs/eval/extend.py:smoke'


@pytest.fixture(scope='module')
def rope(six_steps, tmp_path_factory):
  """A run of six steps, to evaluate."""
  return shutil.copytree(six_steps, tmp_path_factory.mktemp('rope') / 'run')


def evaluate(workdir, *words):
  evaluation.main([f'--workdir={workdir}', *words])


def compilations(caplog) -> int:
  """How many programs named `score` were compiled since jax.log_compiles was entered."""
  return sum(message.startswith('Compiling jit(score)') for message in caplog.messages)


def test_lengths_and_recipes_become_a_table_json_pictures_and_one_page(rope, capsys, caplog):
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    evaluate(rope, EXTEND, '--eval.multiples=(1, 2)', '--eval.repeat=2')
  assert compilations(caplog) == 2  # one per length, of four recipes each
  out = capsys.readouterr().out
  for recipe in ('none', 'linear', 'ntk', 'yarn'):
    assert f'trained 32  {recipe}' in out and f'        64  {recipe}' in out
  assert out.endswith(f'Report: {rope}/report.html\n')

  results = json.loads((rope / 'evaluation' / 'extend.json').read_text())
  rows = {(r['length'], r['recipe']): r for r in results['rows'] if r['estimator'] == 'sliding'}
  assert len(rows) == 8 and not results['refused']
  assert results['facts']['scheme'] == 'rope' and results['facts']['packages']['jax']
  # At the trained length every extension is the identity.
  assert len({rows[32, recipe]['loss'] for recipe in ('none', 'linear', 'ntk', 'yarn')}) == 1
  assert len({rows[64, recipe]['loss'] for recipe in ('none', 'linear', 'ntk', 'yarn')}) == 4
  assert all(0 < row['loss'] < 2 * math.log(256) for row in rows.values())

  pictures = sorted(path.name for path in (rope / 'evaluation').glob('*.png'))
  assert pictures == [
    f'extend-{kind}.png' for kind in ('distances', 'gains', 'lengths', 'positions')
  ]
  for picture in pictures:
    assert (rope / 'evaluation' / picture).read_bytes().startswith(b'\x89PNG')
  page = (rope / 'report.html').read_text()
  assert 'yarn' in page and '<svg' in page and 'src="http' not in page


def test_a_sweep_of_over_a_hundred_settings_compiles_once(rope, caplog):
  cheap = ('--eval.tokens=512', '--eval.multiples=(4,)', '--eval.samples=10')
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    evaluate(rope, '--eval=configs/eval/sweep.py', *cheap)
  assert compilations(caplog) == 1
  results = json.loads((rope / 'evaluation' / 'sweep.json').read_text())
  loss = {r['recipe']: r['loss'] for r in results['rows'] if r['estimator'] == 'sliding'}
  assert len(loss) == len(results['recipes']) == 113 and results['lengths'] == [128]
  for method in ('linear factor', 'ntk factor', 'yarn factor'):  # and each setting was used
    assert len({x for name, x in loss.items() if name.startswith(method)}) >= 14
  assert (rope / 'evaluation' / 'sweep-sweep.png').exists()
  assert not (rope / 'evaluation' / 'sweep-lengths.png').exists()  # of one length


@pytest.mark.slow
def test_dynamic_methods_are_reported_in_both_modes(rope):
  evaluate(rope, '--eval=configs/eval/methods.py:smoke')
  results = json.loads((rope / 'evaluation' / 'methods.json').read_text())
  loss = {
    (r['length'], r['recipe']): r['loss'] for r in results['rows'] if r['estimator'] == 'sliding'
  }
  modes = [f'dynamic_ntk mode={mode}' for mode in ('exact', 'as_deployed')]
  assert not results['refused']
  assert set(results['recipes']) == {*modes, 'none', 'yarn', 'dual_chunk'}
  assert len({loss[32, name] for name in (*modes, 'none', 'yarn')}) == 1  # within what was trained
  assert len({loss[128, name] for name in results['recipes']}) == 5


@pytest.mark.slow
def test_attention_of_all_heads_becomes_a_table_json_a_picture_and_a_part_of_the_page(
  rope, capsys, caplog
):
  with jax.log_compiles(), caplog.at_level(logging.WARNING):
    evaluate(rope, '--eval=configs/eval/attention.py:smoke')
  assert compilations(caplog) == 2  # one per length, of three recipes each
  out = capsys.readouterr().out
  assert 'trained 32  none        1  ' in out and '       128  yarn        2  ' in out
  results = json.loads((rope / 'evaluation' / 'attention.json').read_text())
  heads = {(r['length'], r['recipe']): r for r in results['rows']}
  assert len(heads) == 6 and not results['refused']
  assert heads[32, 'none']['distance'] == heads[32, 'yarn']['distance']  # the identity, there
  assert heads[128, 'none']['distance'] != heads[128, 'yarn']['distance']
  assert np.shape(heads[128, 'none']['sink']) == (2, 4)
  assert (rope / 'evaluation' / 'attention-heads.png').read_bytes().startswith(b'\x89PNG')
  page = (rope / 'report.html').read_text()
  assert 'Evaluation: attention' in page and 'sink mass' in page


def test_all_texts_of_a_glob_are_evaluated_whatever_the_run_was_trained_on(tmp_path):
  texts = {f'The {n}th text.' for n in range(3)}
  for n, text in enumerate(texts):
    (tmp_path / f'{n}.txt').write_text(text)
  words = [f'--eval.data.glob={tmp_path}/*.txt']
  settings = load('configs/eval/base.py', words, flag='eval', base='configs/eval/base.py')
  for name in ('configs/rope.py', 'configs/passkey.py'):
    config = load(name, [f'--config.data.cache_dir={tmp_path / "cache"}']).data
    source = evaluation.choose_data(config, settings.data)
    tokenizer = data.make_tokenizer('bytes')
    documents = data.load(source, source.validation_split, tokenizer)
    assert {tokenizer.decode(documents[n]) for n in range(len(documents))} == texts


def test_what_a_scheme_cannot_do_is_reported_as_refused_with_the_reason(tmp_path, capsys):
  train_here(tmp_path / 'run', 'train.steps=3', config='configs/learned.py:smoke')
  evaluate(tmp_path / 'run', EXTEND, '--eval.multiples=(1, 2)')
  out = capsys.readouterr().out
  assert '64  linear' in out
  results = json.loads((tmp_path / 'run' / 'evaluation' / 'extend.json').read_text())
  refused = {(r['length'], r['recipe']): r['reason'] for r in results['refused']}
  assert set(refused) == {(64, 'none'), (32, 'ntk'), (64, 'ntk'), (32, 'yarn'), (64, 'yarn')}
  assert '32 positions, but the sequence has 64 tokens' in refused[64, 'none']
  assert 'makes no sense here' in refused[64, 'yarn'] and 'linear' in refused[64, 'yarn']


@pytest.mark.slow
def test_the_evaluation_is_of_the_newest_whole_checkpoint(rope, tmp_path, caplog):
  copy = shutil.copytree(rope, tmp_path / 'copy')
  (copy / 'checkpoints' / '6' / 'manifest.json').unlink()
  once = ('--eval=configs/eval/base.py:smoke',)
  evaluate(copy, *once)
  assert 'using step 3' in caplog.text
  evaluate(rope, *once)
  halfway, whole = (
    json.loads((path / 'evaluation' / 'base.json').read_text())['rows'][0]['loss']
    for path in (copy, rope)
  )
  assert halfway > whole + 0.1
  assert (copy / 'checkpoints' / '6').is_dir()  # reading changes nothing


def test_what_cannot_be_evaluated_is_refused_with_the_way_out(rope, tmp_path):
  with pytest.raises(ValueError, match=r"No run at '.*nowhere'. Train one"):
    evaluate(tmp_path / 'nowhere', EXTEND)
  with pytest.raises(ValueError, match=r'is not a run: it has no config.json. Give the --workdir'):
    evaluate(tmp_path, EXTEND)
  with pytest.raises(ValueError, match=r"No key 'multiple' .*Did you mean 'multiples'"):
    evaluate(rope, EXTEND, '--eval.multiple=(1,)')
  with pytest.raises(ValueError, match=r"No measure 'entropy'. Use --eval.measure=loss or atten"):
    evaluate(rope, EXTEND, '--eval.measure=entropy')
  with pytest.raises(ValueError, match=r"No config file '.*extent.py'. Did you mean '.*extend.py'"):
    evaluate(rope, '--eval=configs/eval/extent.py')
  with pytest.raises(ValueError, match=r'longest has \d+\. .* lower `multiples`'):
    evaluate(rope, EXTEND, '--eval.multiples=(100000,)')
  copy = shutil.copytree(rope, tmp_path / 'copy', ignore=shutil.ignore_patterns('checkpoints'))
  with pytest.raises(ValueError, match=r'No checkpoint in .*checkpoints. Train there first'):
    evaluate(copy, EXTEND)


# --- recipes of runs that were themselves extended ------------------------------------------------


def experiment(*settings):
  config = load('configs/rope.py:smoke', [f'--config.{setting}' for setting in settings])
  config.model.vocabulary = 256
  return build(config), config


def assert_same(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


def test_a_recipe_counts_its_factor_from_the_length_of_the_run():
  model, config = experiment()
  recipe = {'name': 'yarn', 'factor': 4.0}
  ours = evaluation.extended(model, config, recipe, 64)
  assert_same(ours, (yarn(*model.spectrum(), factor=4.0, trained_length=32),))


def test_none_is_the_spectrum_that_the_run_was_trained_with():
  model, config = experiment(
    'extension.name=yarn', 'extension.factor=4.0', 'extension.trained_length=8'
  )
  ours = evaluation.extended(model, config, {'name': 'none'}, 64)
  assert_same(ours, as_trained(model, config))
  assert_same(ours, (yarn(*model.spectrum(), factor=4.0, trained_length=8),))


def test_a_recipe_on_an_extended_run_goes_on_from_its_first_weights():
  model, config = experiment(
    'extension.name=linear', 'extension.factor=4.0', 'extension.trained_length=8'
  )
  ours = evaluation.extended(model, config, {'name': 'linear', 'factor': 2.0}, 64)
  assert_same(ours, (linear(*model.spectrum(), factor=8.0, trained_length=8),))


def test_a_run_continued_without_extension_was_trained_at_its_own_length():
  model, config = experiment('extension.trained_length=8')
  ours = evaluation.extended(model, config, {'name': 'yarn', 'factor': 2.0}, 64)
  assert_same(ours, (yarn(*model.spectrum(), factor=2.0, trained_length=32),))


@pytest.mark.parametrize(('asked', 'factor'), [(2.0, 4.0), (4.0, 4.0), (8.0, 8.0)])
def test_a_run_of_skipped_positions_knows_as_many_as_they_reach(asked, factor):
  """Rows of 32 that skip up to 128, which an extension by 4 made room for."""
  skips = ('sampling.name=pose', 'sampling.range=128', 'sampling.chunks=2')
  stretched = ('extension.name=yarn', 'extension.factor=4.0', 'extension.trained_length=32')
  for settings in ((*skips, *stretched), skips):
    model, config = experiment(*settings)
    ours = evaluation.extended(model, config, {'name': 'yarn', 'factor': asked}, 64)
    if settings == skips:  # at home in 128 positions without any
      exact = extend(model.spectrum(), name='yarn', factor=factor / 4, trained_length=128)
    else:
      exact = extend(model.spectrum(), name='yarn', factor=factor, trained_length=32)
    assert_same(ours, exact)


def test_after_an_extension_without_a_factor_it_is_lengths_that_count():
  """Another base, trained on 32 tokens from weights of 8: texts of 64 are 8 times as long."""
  model, config = experiment(
    'extension.name=rebase', 'extension.theta=1e6', 'extension.trained_theta=1e4',
    'extension.trained_length=8',
  )  # fmt: skip
  ours = evaluation.extended(model, config, {'name': 'linear', 'factor': 2.0}, 64)
  assert_same(ours, (linear(*model.spectrum(), factor=8.0, trained_length=8),))


def test_the_config_of_a_run_says_all_that_evaluation_needs(rope):
  config = run.load_config(rope)
  assert config.model.vocabulary == 256 and build(config).length == 32
