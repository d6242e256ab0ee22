"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): norms at both ends, capped logits, windows."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, plus, times

ARCHITECTURES = ('Gemma2ForCausalLM',)
MODEL_TYPE = 'gemma2'
NORMS = {
  'attention_norm': 'input_layernorm',
  'attention_output_norm': 'post_attention_layernorm',
  'mlp_norm': 'pre_feedforward_layernorm',
  'mlp_output_norm': 'post_feedforward_layernorm',
}


def read(keys):
  model = shared(keys)
  cap = keys.nullable('attn_logit_softcapping', 50.0)
  model |= {
    'attention_cap': cap and float(cap),
    'logit_cap': keys.nullable('final_logit_softcapping', 30.0),
  }
  layers, window = model['layers'], keys.nullable('sliding_window', 4096)
  kinds = ['full_attention' if n % 2 else 'sliding_attention' for n in range(layers)]
  own = usual.windows(keys, keys.take('layer_types', kinds), layers, window)
  keys.take('cache_implementation', None)
  rotary = rope.read(keys, model['head_width'], length=8192)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(own),
    length=rotary.length,
    table=Table(
      weights=usual.weights(norms=NORMS),
      changes=(plus(r'norm/scale_D$', 1.0), *scale(keys, model, 'attention/query_(DX|bias_X)$')),
    ),
    prefix='model.',
  )


def shared(keys):
  """What Gemma 2 and 3 have in common."""
  usual.own_head_width(keys, 256)
  keys.one_of('use_bidirectional_attention', (False,), False)
  biased = keys.flag('attention_bias', False)
  model = usual.sizes(keys, tied=True)
  activation = 'hidden_activation' if 'hidden_activation' in keys else 'hidden_act'
  keys.take('hidden_act', None)  # which the newer key takes the place of
  return model | {
    'norm': 'rms',
    'norm_at': 'both',
    'norm_epsilon': float(keys.number('rms_norm_eps', 1e-6)),
    'mlp': 'gated',
    'activation': keys.one_of(activation, ACTIVATIONS, 'gelu_pytorch_tanh'),
    'biases': usual.biases(qkv=biased, output=biased),
    'embedding_scale': model['width'] ** 0.5,
  }


def scale(keys, model, pattern: str):
  """Logits are divided by the square root of a number of their own: in the queries."""
  factor = (model['head_width'] / keys.number('query_pre_attn_scalar', 256)) ** 0.5
  return () if factor == 1 else (times(pattern, lambda n: factor),)
