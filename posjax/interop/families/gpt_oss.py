"""gpt-oss (OpenAI 2025, arXiv:2508.10925): heads that may look at nothing, every second layer in a
window, experts with biases and a gate within limits."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.table import Table, Weight, linear

ARCHITECTURES = ('GptOssForCausalLM',)
MODEL_TYPE = 'gpt_oss'
ROPE = {  # where a config says nothing
  'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0, 'truncate': False,
  'original_max_position_embeddings': 4096,
}  # fmt: skip
SLOPES = {1.702: 'gelu_sigmoid', 1.0: 'silu'}  # of the sigmoid that gates
KINDS = ('sliding_attention', 'full_attention')


def write(model):
  if model.experts is None:
    raise ValueError('Its MLPs are experts.')
  windows = [layer.mask.window for layer in model.pattern]
  windows = [windows[n % len(windows)] for n in range(model.layers)]
  slopes = {name: slope for slope, name in SLOPES.items()}
  return usual.write(model) | {
    'hidden_act': 'silu',
    'intermediate_size': model.experts.width,
    'num_local_experts': model.experts.count,
    'num_experts_per_tok': model.experts.chosen,
    'swiglu_alpha': slopes.get(model.activation or 'silu'),
    'swiglu_limit': model.gate_limit,
    'attention_bias': 'qkv' in model.biases,
    'sliding_window': next(filter(None, windows), None),
    'layer_types': [KINDS[window is None] for window in windows],
  }


def read(keys):
  usual.own_head_width(keys, 64)
  keys.content.setdefault('num_key_value_heads', 8)
  keys.one_of('hidden_act', ('silu',), 'silu')
  attention = keys.flag('attention_bias', True)
  model = usual.sizes(keys) | usual.gated(keys, 1e-5)
  model |= {
    'mlp': 'experts',
    'activation': keys.one_of('swiglu_alpha', SLOPES, 1.702),
    'gate_limit': float(keys.number('swiglu_limit', 7.0)),
    'gate_offset': 1.0,
    'null_logit': True,
    'biases': usual.biases(qkv=attention, output=attention, router=True, experts=True),
    'experts': {
      'count': keys.whole('num_local_experts', 128),
      'chosen': keys.whole('num_experts_per_tok', 4),
      'width': model['mlp_width'],
      'shared': 0,
      'scores': 'softmax',  # of the chosen alone, which is that of all, normalised
      'normalise': True,
    },
  }
  keys.same('experts_per_token', model['experts']['chosen'])
  keys.take('initial_context_length', None)  # which nobody reads
  keys.within('quantization_config').one_of('quant_method', (None, 'mxfp4'), None)
  rotary = rotation(keys, model['head_width'])
  window, layers = keys.nullable('sliding_window', 128), model['layers']
  kinds = keys.take('layer_types', [KINDS[n % 2] for n in range(layers)])
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(usual.windows(keys, kinds, layers, window)),
    length=rotary.length,
    table=Table(
      weights=weights(model['mlp_width']),
      ignored=r'\.rotary_emb\.inv_freq$',
      zeros=('mlp/experts/bias_E',),
    ),
    prefix='model.',
  )


def rotation(keys, K: int):
  """YaRN where the config says nothing; a `rope_scaling` of null says that there is none."""
  spelled = {'rope_parameters', 'rope_scaling'} & keys.content.keys()
  if keys.content.get('rope_parameters') is None and 'rope_scaling' not in spelled:
    keys.content['rope_parameters'] = dict(ROPE)
  return rope.read(keys, K, theta=150_000.0, length=131_072)


def weights(M: int) -> tuple[Weight, ...]:
  layer = 'model.layers.{n}.'
  mlp, attention = f'{layer}mlp.', f'{layer}self_attn.'
  of = lambda *names: tuple(f'mlp/experts/{name}' for name in names)
  all_of_them = {'rows_first': False, 'stacked': True}
  in_turn = {'sizes': (1, 1), 'groups': M, **all_of_them}  # gate, up, gate, up, ...
  experts = (
    *linear(f'{mlp}router', *of('router_DE')),
    Weight(f'{mlp}experts.gate_up_proj', of('gate_EDM', 'up_EDM'), **in_turn),
    Weight(f'{mlp}experts.gate_up_proj_bias', of('gate_bias_EM', 'up_bias_EM'), **in_turn),
    Weight(f'{mlp}experts.down_proj', of('down_EMD'), **all_of_them),
    Weight(f'{mlp}experts.down_proj_bias', of('down_bias_ED'), **all_of_them),
  )
  sinks = Weight(f'{attention}sinks', ('attention/null_H',))
  return (*usual.weights(mlp=experts), sinks)
