"""OLMo 2 (OLMo Team 2025, arXiv:2501.00656): norms at the output of each part, and of all heads."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table

ARCHITECTURES = ('Olmo2ForCausalLM',)
MODEL_TYPE = 'olmo2'
NORMS = {
  'attention_output_norm': 'post_attention_layernorm',
  'mlp_output_norm': 'post_feedforward_layernorm',
}


def read(keys):
  biased = keys.flag('attention_bias', False)
  model = usual.sizes(keys) | usual.gated(keys, 1e-5, norm_at='output', qk_norm='whole')
  model['biases'] = usual.biases(qkv=biased, output=biased)
  rotary = rope.read(keys, model['head_width'], length=2048)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=usual.weights(norms=NORMS)),
    prefix='model.',
  )
