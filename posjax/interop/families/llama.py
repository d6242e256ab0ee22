"""Llama 1 to 3 and what has its config: SmolLM2, Yi, DeepSeek-LLM, ..."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table

ARCHITECTURES = ('LlamaForCausalLM',)
MODEL_TYPE = 'llama'
GGUF = 'llama'
GGUF_INTERLEAVED = True  # llama.cpp turns pairs (2f, 2f + 1) of this family


def write(model):
  biased = 'qkv' in model.biases
  return usual.write(model) | {'attention_bias': biased, 'mlp_bias': 'mlp' in model.biases}


def read(keys):
  model = usual.sizes(keys) | usual.gated(keys, 1e-6)
  attention = keys.flag('attention_bias', False)
  model['biases'] = usual.biases(qkv=attention, output=attention, mlp=keys.flag('mlp_bias', False))
  keys.take('pretraining_tp', None)  # how its matrices were cut to be trained
  keys.one_of('rope_interleaved', (False,), False)
  rotary = rope.read(keys, model['head_width'], length=2048)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=usual.weights(), ignored=r'\.rotary_emb\.inv_freq$'),
    prefix='model.',
  )
