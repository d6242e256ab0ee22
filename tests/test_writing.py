"""A run writes text and answers from a cache: what is shown, stored and refused."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_contract import make
from test_decoding import build

import eval as evaluation
from posjax import report
from posjax.attention import Layer
from posjax.data.tasks import rows
from posjax.data.tasks.base import Answer, join
from posjax.evaluation.generation import follows, written_hits
from posjax.loss import token_hits


@pytest.fixture(scope='module')
def run(six_steps, tmp_path_factory):
  return shutil.copytree(six_steps, tmp_path_factory.mktemp('writing') / 'run')


def evaluate(workdir, *words, file='generate'):
  evaluation.main([f'--workdir={workdir}', f'--eval=configs/eval/{file}.py:smoke', *words])
  return json.loads((workdir / 'evaluation' / f'{file}.json').read_text())


def test_a_run_goes_on_from_prompts_under_every_recipe(run, capsys):
  results = evaluate(run, "--eval.prompts=('The Senate and', 'Fellow citizen')")
  out = capsys.readouterr().out
  assert '[dynamic_yarn, as deployed] The' in out and out.endswith('report.html\n')
  recipes = ['none', 'dynamic_yarn, exact', 'dynamic_yarn, as deployed']
  assert [one['recipe'] for one in results['texts']] == [r for r in recipes for _ in range(2)]
  assert all(1 <= one['tokens'] <= 8 for one in results['texts'])  # NUL ends a text
  assert all(speed['read'] > 0 and speed['write'] > 0 for speed in results['speeds'])
  # 2 layers, 4 heads of 8, keys and values, float32; two rows of up to 15 + 7 tokens
  assert results['size'] == 22
  assert results['speeds'][0]['cache'] == 2 * 2 * 4 * 8 * 2 * 4 * 22
  assert not results['refused']
  assert 'Fellow citizen |' in report.table(results)
  assert 'dynamic_yarn, exact' in (run / 'report.html').read_text()


@pytest.mark.slow
def test_a_spectrum_that_follows_the_length_refuses_prompts_of_several(run):
  results = evaluate(run, "--eval.prompts=('The', 'Fellow citizens of')")
  assert {one['recipe'] for one in results['texts']} == {'none'}
  assert len(results['refused']) == 2
  assert all('ne at a time' in refused['reason'] for refused in results['refused'])


@pytest.mark.parametrize(
  'words, message',
  [
    (['--eval.new=0'], r'leave nothing to write.*--eval\.new >= 1'),
    (['--eval.prompts=()'], r'0 prompts'),
    (['--eval.sampler.temperature=-1.0'], r'temperature of -1\.0'),
    (['--eval.measure=poems'], r"No measure 'poems'.*generation"),
  ],
)
def test_what_cannot_be_written_is_refused(run, words, message):
  with pytest.raises(ValueError, match=message):
    evaluate(run, *words)


def test_only_dynamic_recipes_follow_the_text():
  assert follows({'name': 'dynamic_yarn'}) and follows({'name': 'longrope', 'mode': 'exact'})
  assert not follows({'name': 'dynamic_yarn', 'mode': 'as_deployed'})
  assert not follows({'name': 'yarn', 'factor': 2.0})


@pytest.mark.parametrize('questions', [1, 2])
def test_an_answer_is_written_right_where_each_of_its_tokens_is_the_likeliest(questions, rng):
  """Answers of two tokens among two symbols, which are right by chance; after all that is given, or
  between."""
  model, params = build(Layer(scheme=make('rope')))
  spectrum = jax.tree.map(jnp.float32, model.spectrum())
  params['head_DV'] = params['head_DV'].at[:, 2:].set(0)  # so that one of the two is likeliest
  symbols = lambda count: rng.integers(0, 2, count)
  parts = lambda: [part for _ in range(questions) for part in given()]
  given = lambda: (symbols(rng.integers(1, 6)), Answer(symbols(2)))
  batch = rows([join(*parts()) for _ in range(64)], 14)
  on_device = {name: jnp.asarray(x) for name, x in batch.items()}
  asked = functools.partial(token_hits, model, params, spectrum, chunk=None)
  forced_BL = np.asarray(jax.jit(asked)(on_device))
  written_BL = written_hits(model, params, chunk=4)(spectrum, batch)
  right = lambda hit_BL: np.where(batch['targets'] >= 0, hit_BL, 1).all(axis=1)
  assert 0 < right(forced_BL).sum() < len(forced_BL) / 2
  np.testing.assert_array_equal(right(written_BL), right(forced_BL))
