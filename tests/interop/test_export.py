"""What is exported reads back as the same model, with the same spectrum and weights."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import write
from e2e import train_here
from test_families import CASES, CLOSE
from test_imported_runs import made

from posjax import interop, loading
from posjax.decoder import init_params
from posjax.experiment import build
from posjax.extension import extend
from posjax.interop import __main__ as program
from posjax.interop import checkpoint, export, files


def exported(directory, out, **settings):
  """The model of a directory, written to another; both, loaded."""
  opened = checkpoint.open_directory(directory)
  model = interop.load(directory)
  export.write(
    out, model.config, model.decoder, model.params, source=opened.source, beside=directory,
    **settings,
  )  # fmt: skip
  return model, interop.load(out)


@pytest.mark.parametrize(('file', 'n'), CASES)
def test_every_family_comes_back_as_it_was(file, n, published, tmp_path):
  case = published(file).cases[n]
  directory = write(tmp_path / 'in', case.config, case.shapes)
  before, after = exported(directory, tmp_path / 'out')
  before.config.model.dtype = 'float32'
  assert after.config.model == before.config.model
  assert (after.config.position, after.config.layers) == (
    before.config.position, before.config.layers,
  )  # fmt: skip
  assert after.config.extension == before.config.extension
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  jax.tree.map(close, after.params, before.params)
  theirs, ours = (files.open_checkpoint(tmp_path / name) for name in ('in', 'out'))
  assert {name: x.shape for name, x in ours.items()} == {
    name: x.shape for name, x in theirs.items()
  }


FAMILY = {'rope_theta': 50.0}
EXTENSIONS = (
  {'name': 'linear', 'factor': 2.0},
  {'name': 'ntk', 'factor': 4.0},
  {'name': 'dynamic_ntk', 'gain': 2.0},
  {'name': 'yarn', 'factor': 4.0, 'fast': 8.0},
  {'name': 'yarn', 'factor': 4.0, 'attention_factor': 0.8, 'truncate': False},
  {'name': 'llama3', 'factor': 8.0},
  {'name': 'by_parts', 'factor': 4.0, 'fast': 5.0, 'slow': 0.5},
  {'name': 'rebase', 'theta': 1000.0, 'trained_theta': 50.0},
  {'name': 'longrope', 'factor': 4.0, 'short': (1.0, 1.5), 'long': (2.0, 4.0)},
  {'name': 'rescale', 'divisors': (1.0, 3.0), 'attention_factor': 1.2},
)


@pytest.mark.parametrize('new', [True, False], ids=['rope_parameters', 'rope_scaling'])
@pytest.mark.parametrize('extension', EXTENSIONS, ids=lambda e: e['name'])
def test_an_extension_becomes_the_rope_type_that_is_the_same(extension, new, tmp_path):
  changes = FAMILY if not new else {'rope_parameters': FAMILY | {'rope_type': 'default'}}
  directory = made(tmp_path / 'in', changes)
  before, after = exported(directory, tmp_path / 'out', extension=extension)
  for length in (20, 32, 33, 128):
    ours = extend(before.decoder.spectrum(), **{'trained_length': 32, 'length': length} | extension)
    theirs = after.spectrum(length)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
  assert ('rope_parameters' in json.loads((tmp_path / 'out' / 'config.json').read_text())) == new


@pytest.mark.parametrize(
  'extension',
  [
    {'name': 'dynamic_yarn'}, {'name': 'drop'}, {'name': 'log_n'},
    {'name': 'self_extend', 'group': 2, 'window': 4}, {'name': 'streaming', 'window': 4},
    {'name': 'rescale', 'divisors': (1.0, 3.0), 'temperature': 1.2},
    {'name': 'rescale', 'divisors': (1.0, 3.0), 'start': 2},
  ],
  ids=str,
)  # fmt: skip
def test_an_extension_that_transformers_has_no_words_for_is_refused(extension, tmp_path):
  directory = made(tmp_path / 'in', FAMILY)
  with pytest.raises(ValueError, match='has no rope type'):
    exported(directory, tmp_path / 'out', extension=extension)
  assert not (tmp_path / 'out').exists()


PHI3 = {
  'linear': ({'factor': 2.0}, r"rope_type = 'linear', which.*It can do: default, l"),
  'longrope': ({'factor': 4.0, 'short': (1.0, 2.0, 3.0, 4.0), 'long': (5.0,) * 4}, None),
}


@pytest.mark.parametrize('name', PHI3)
def test_a_family_with_rope_types_of_its_own_is_written_with_no_others(name, published, tmp_path):
  """Its config says the trained length twice, which must stay one."""
  settings, text = PHI3[name]
  case = published('checkpoint-phi3').cases[0]
  assert case.config['original_max_position_embeddings'] == 4096
  directory = write(tmp_path / 'in', case.config, case.shapes)
  write_it = lambda: exported(directory, tmp_path / 'out', extension={'name': name, **settings})
  if text is not None:
    with pytest.raises(ValueError, match=text):
      write_it()
    assert not (tmp_path / 'out').exists()
    return
  before, after = write_it()
  for length in (32, 33):
    ours = extend(
      before.decoder.spectrum(), name=name, trained_length=32, length=length, **settings
    )
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(close, ours, after.spectrum(length))


def test_positions_that_no_config_stretches_are_refused(published, tmp_path):
  case = published('checkpoint-gpt2').cases[0]
  directory = write(tmp_path / 'in', case.config, case.shapes)
  with pytest.raises(ValueError, match='would come back with other numbers'):
    exported(directory, tmp_path / 'out', extension={'name': 'linear', 'factor': 2.0})


@pytest.mark.slow
def test_a_run_of_our_own_is_written_as_the_family_that_has_it(six_steps, tmp_path, capsys):
  """Embeddings take up their scale, bytes become a tokenizer.json; the logits stay."""
  pytest.importorskip('tokenizers')
  program.main([f'--checkpoint={six_steps}', f'--out={tmp_path / "out"}'])
  assert capsys.readouterr().out == f'Exported: {tmp_path / "out"}\n'
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['architectures'] == ['LlamaForCausalLM']
  run, again = loading.load(six_steps), loading.load(tmp_path / 'x', f'hf:{tmp_path / "out"}')
  tokens_BL = np.arange(40)[None] * 3
  ours, theirs = (
    one.model.apply({'params': one.params}, tokens_BL, one.model.spectrum()) for one in (run, again)
  )
  np.testing.assert_allclose(ours, theirs, atol=CLOSE)
  text = 'The Congress, § 3: a café\n'
  np.testing.assert_array_equal(again.tokenizer.encode(text), run.tokenizer.encode(text))
  assert again.tokenizer.decode(run.tokenizer.encode(text)) == text
  assert (again.tokenizer.bos, again.tokenizer.vocabulary) == (0, 256)


def test_what_no_family_has_is_refused_with_each_reason(tmp_path):
  directory = made(tmp_path / 'in', FAMILY)
  model = interop.load(directory)
  with model.config.ignore_type():
    model.config.position = {'name': 't5'}
  decoder = build(model.config)
  params = init_params(decoder, jax.random.key(0))
  with pytest.raises(ValueError, match=r'No family has such a model(.|\n)*llama: In that family'):
    export.write(tmp_path / 'out', model.config, decoder, params)
  with pytest.raises(ValueError, match='is not empty'):
    export.write(directory, model.config, decoder, params)


@pytest.mark.slow
def test_training_that_went_on_is_written_with_the_extension_it_was_trained_with(tmp_path):
  pytest.importorskip('tokenizers')
  directory, run, out = made(tmp_path / 'hf', FAMILY), tmp_path / 'run', tmp_path / 'out'
  train_here(
    run, f'init_from=hf:{directory}', 'train.steps=3', 'train.length=64',
    'extension.name=yarn', 'extension.factor=2.0',
  )  # fmt: skip
  shutil.rmtree(directory)  # the run has all that it needs
  program.main([f'--checkpoint={run}', f'--out={out}', '--dtype=bfloat16'])
  loaded, model = loading.load(run), interop.load(out)
  assert model.config.extension.name == 'yarn'
  assert json.loads((out / 'config.json').read_text())['max_position_embeddings'] == 64
  close = lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
  jax.tree.map(close, model.params, loaded.params)
  assert (out / 'tokenizer.json').is_file()


def test_large_checkpoints_are_written_in_shards(tmp_path):
  pytest.importorskip('tokenizers')
  directory = made(tmp_path / 'in', FAMILY)
  before, after = exported(directory, tmp_path / 'out', shard_bytes=5000)
  shards = sorted(path.name for path in (tmp_path / 'out').glob('*.safetensors'))
  assert shards[0] == f'model-00001-of-{len(shards):05}.safetensors' and len(shards) > 3
  jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
