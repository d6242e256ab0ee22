"""An imported checkpoint wherever a run directory works: evaluation, fitting, training on."""

import json

import jax
import numpy as np
import pytest
from checkpoints import write
from e2e import train_here
from test_refusals import CONFIG, LAYER

import eval as evaluation
from posjax import interop, loading, run
from posjax.conversion import __main__ as conversion
from posjax.fit import __main__ as fit

tokenizers = pytest.importorskip('tokenizers')
SIZES = {'vocab_size': 260, 'max_position_embeddings': 32}
YARN = {'rope_parameters': {
  'rope_type': 'yarn', 'rope_theta': 50.0, 'factor': 2.0, 'original_max_position_embeddings': 16,
}}  # fmt: skip
DYNAMIC = {'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 50.0, 'factor': 2.0}}
SHAPES = {
  'model.embed_tokens.weight': [260, 8], 'model.norm.weight': [8], 'lm_head.weight': [260, 8],
  **{f'model.layers.{n}.{k}.weight': shape for n in (0, 1) for k, shape in LAYER.items()},
}  # fmt: skip
EXTEND = 'configs/eval/extend.py:smoke'


def made(directory, changes):
  """A Llama with a tokenizer of bytes."""
  write(directory, CONFIG | SIZES | changes, SHAPES)
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {letter: n + 1 for n, letter in enumerate(letters)} | {'<s>': 0}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token='<s>'))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(['<s>'])
  tokenizer.save(str(directory / 'tokenizer.json'))
  return directory


@pytest.fixture(scope='module')
def llama(tmp_path_factory):
  return made(tmp_path_factory.mktemp('hf') / 'llama', {})


def test_an_imported_checkpoint_is_evaluated_with_extensions(llama, tmp_path, capsys):
  out = tmp_path / 'out'
  evaluation.main([
    f'--checkpoint=hf:{llama}', f'--workdir={out}', f'--eval={EXTEND}', '--eval.multiples=(1, 2)'
  ])  # fmt: skip
  assert f'Report: {out}/report.html' in capsys.readouterr().out
  results = json.loads((out / 'evaluation' / 'extend.json').read_text())
  rows = {(r['length'], r['recipe']): r['loss'] for r in results['rows']}
  assert results['trained_length'] == 32
  assert len({rows[64, recipe] for recipe in ('none', 'linear', 'ntk', 'yarn')}) == 4
  assert {path.name for path in llama.iterdir()} == {
    'config.json', 'model.safetensors', 'tokenizer.json',
  }  # fmt: skip


def test_what_a_checkpoint_follows_the_length_with_is_what_none_means(tmp_path):
  directory = made(tmp_path / 'dynamic', DYNAMIC)
  loaded = loading.load(tmp_path / 'out', f'hf:{directory}')
  model, spectrum = interop.load(directory), {}
  for length in (32, 64):
    recipe = {'name': 'none'}
    spectrum[length] = evaluation.extended(loaded.model, loaded.config, recipe, length)
    np.testing.assert_array_equal(
      spectrum[length][0].frequency_F, model.spectrum(length)[0].frequency_F
    )
  assert (spectrum[64][0].frequency_F[1:] < spectrum[32][0].frequency_F[1:]).all()


@pytest.mark.slow
def test_an_imported_checkpoint_becomes_one_with_latent_attention(llama, tmp_path):
  out = tmp_path / 'latent'
  conversion.main([f'--workdir=hf:{llama}', f'--out={out}', '--rank=8', '--batches=1'])
  ours, theirs = loading.load(out), interop.load(llama)
  assert ours.model.latent.width == 8 and ours.tokenizer.vocabulary == 257
  logits_BLV = ours.model.apply({'params': ours.params}, np.arange(8)[None], ours.model.spectrum())
  assert logits_BLV.shape == theirs(np.arange(8)[None]).shape


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['generate', 'attention'])
def test_an_imported_checkpoint_writes_and_shows_where_it_looks(kind, llama, tmp_path):
  words = [f'--checkpoint=hf:{llama}', f'--workdir={tmp_path / "out"}']
  evaluation.main([*words, f'--eval=configs/eval/{kind}.py:smoke'])
  assert (tmp_path / 'out' / 'report.html').exists()


@pytest.mark.slow
def test_an_extension_is_fitted_to_an_imported_checkpoint_and_evaluated(llama, tmp_path):
  out, where = tmp_path / 'out', f'--checkpoint=hf:{llama}'
  fit.main([
    where, f'--workdir={out}', '--factor=2', '--method=gradient', '--windows=2', '--passes=5'
  ])  # fmt: skip
  evaluation.main([
    where, f'--workdir={out}', '--eval=configs/eval/fitted.py:smoke', '--eval.multiples=(2,)',
    "--eval.recipes=({'name': 'none'}, {'name': 'fitted', 'by': 'gradient'})",
  ])  # fmt: skip
  (path,) = (out / 'evaluation').glob('*.json')
  assert json.loads(path.read_text())['recipes'] == ['none', 'fitted by gradient']


def test_results_never_go_to_a_run_of_its_own(llama, six_steps):
  with pytest.raises(ValueError, match='holds a run of its own'):
    loading.load(six_steps, f'hf:{llama}')


def test_a_checkpoint_without_a_tokenizer_reads_no_text(tmp_path):
  write(tmp_path / 'bare', CONFIG | SIZES, SHAPES)
  with pytest.raises(ValueError, match='has no tokenizer that posjax reads'):
    loading.load(tmp_path / 'out', f'hf:{tmp_path / "bare"}')


@pytest.mark.slow
def test_training_goes_on_from_an_imported_checkpoint(tmp_path):
  """Without a step its parameters are the checkpoint's; its model, spectrum and tokenizer too."""
  directory, workdir = made(tmp_path / 'yarn', YARN), tmp_path / 'run'
  settings = f'init_from=hf:{directory}', 'train.learning_rate=0.0', 'train.steps=3'
  train_here(workdir, *settings)
  trained, model = loading.load(workdir), interop.load(directory)
  jax.tree.map(np.testing.assert_array_equal, trained.params, model.params)
  config = run.load_config(workdir)
  assert (config.model.width, config.model.vocabulary, config.model.tied) == (8, 260, False)
  assert (config.extension.name, config.extension.trained_length) == ('yarn', 16)
  tokens_BL = np.arange(40)[None]
  spectrum = evaluation.extended(trained.model, trained.config, {'name': 'none'}, 40)
  logits_BLV = trained.model.apply({'params': trained.params}, tokens_BL, spectrum)
  np.testing.assert_allclose(model(tokens_BL), logits_BLV, atol=1e-4)
  again = train_here(workdir, settings[0], 'train.learning_rate=0.0', 'train.steps=4')
  assert again[-1]['step'] == 4


@pytest.mark.slow
def test_an_extension_of_the_config_takes_the_place_of_the_checkpoints(tmp_path):
  directory, workdir = made(tmp_path / 'yarn', YARN), tmp_path / 'run'
  train_here(
    workdir, f'init_from=hf:{directory}', 'train.steps=3',
    'extension.name=linear', 'extension.factor=4.0',
  )  # fmt: skip
  config = run.load_config(workdir)
  assert (config.extension.name, config.extension.trained_length) == ('linear', 16)
