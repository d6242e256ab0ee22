"""Llama 4, text (Meta 2025): RoPE in chunks, layers without that are sharper the more they see, and
an expert beside the shared one, whose input is weighed."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.table import Table, Weight, half_split, linear

ARCHITECTURES = ('Llama4ForCausalLM',)
MODEL_TYPE = 'llama4_text'
KINDS = ('full_attention', 'chunked_attention')


def write(model):
  pattern = [model.pattern[n % len(model.pattern)] for n in range(model.layers)]
  turns = [layer.scheme.spectrum(model.dims).amplitude is not None for layer in pattern]
  sharp = next((layer.scheme for layer in pattern if hasattr(layer.scheme, 'strength')), None)
  theirs = usual.write(model) | {
    'intermediate_size_mlp': model.mlp_width,
    'attention_chunk_size': next((x.mask.chunk for x in pattern if x.mask.chunk), None),
    'layer_types': [KINDS[layer.mask.chunk is not None] for layer in pattern],
    'no_rope_layers': [int(turned) for turned in turns],
    'use_qk_norm': any(layer.qk_norm_after is not None for layer in pattern),
    'moe_layers': [n for n, x in enumerate(pattern) if (x.mlp or model.mlp) == 'experts'],
    'attention_bias': 'qkv' in model.biases,
    'attn_temperature_tuning': sharp is not None,
  }
  if sharp is not None:
    period = round(1 / sharp.spectrum(model.dims).rate)
    theirs |= {'attn_scale': sharp.strength, 'floor_scale': period}
  if model.experts is not None:
    theirs |= {
      'intermediate_size': model.experts.width,
      'num_local_experts': model.experts.count,
      'num_experts_per_tok': model.experts.chosen,
    }
  return theirs


def read(keys):
  usual.own_head_width(keys, 128)
  keys.content.setdefault('num_key_value_heads', 8)
  biased = keys.flag('attention_bias', False)
  model = usual.sizes(keys) | usual.gated(keys, 1e-5)
  M, N = model['mlp_width'], model['layers']
  model |= {
    'mlp_width': keys.whole('intermediate_size_mlp', 16_384),
    'biases': usual.biases(qkv=biased, output=biased),
    'qk_norm_after': model['norm_epsilon'] if keys.flag('use_qk_norm', True) else None,
  }
  mixed = experts(keys, N)
  routing = {
    'count': keys.whole('num_local_experts', 16),
    'chosen': keys.whole('num_experts_per_tok', 1),
    'width': M,
    'shared': 1,
    'scores': 'sigmoid',
    'normalise': False,
    'weighs': 'input',
  }
  if any(mixed):
    model |= {'mlp': 'experts', 'experts': routing}
  for name in ('router_jitter_noise', 'for_llm_compressor', 'cache_implementation'):
    keys.take(name, None)  # of training, of tools
  rotary = rope.read(keys, model['head_width'], theta=500_000.0, length=131_072)
  own = [
    layer if some or not any(mixed) else layer | {'mlp': 'gated'}
    for layer, some in zip(layers(keys, model), mixed, strict=True)
  ]
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(own),
    length=rotary.length,
    table=Table(
      weights=weights(M),
      changes=(half_split(model['head_width'], model['head_width']),),
      ignored=r'\.rotary_emb\.inv_freq$',
      zeros=('mlp/experts/bias_E',),
    ),
    prefix='model.',
  )


def experts(keys, N: int) -> list[bool]:
  """Which layers have some."""
  step = keys.whole('interleave_moe_layer_step', 1)
  some = keys.take('moe_layers', list(range(step - 1, N, step)))
  if not isinstance(some, list) or not all(isinstance(n, int) for n in some):
    raise keys.refuse('moe_layers', some, 'It must list numbers of layers.')
  return [n in some for n in range(N)]


def layers(keys, model) -> list[dict]:
  """no_rope_layers: 1 where a layer has RoPE, 0 where it has none; and which see a chunk."""
  N, every = model['layers'], keys.whole('no_rope_layer_interval', 4)
  turns = keys.take('no_rope_layers', None) or [int((n + 1) % every != 0) for n in range(N)]
  if not isinstance(turns, list) or len(turns) < N or any(x not in (0, 1) for x in turns):
    raise keys.refuse('no_rope_layers', turns, f'It must be 0 or 1 for each of {N} layers.')
  kinds = keys.take('layer_types', [KINDS[turned] for turned in turns[:N]])
  if not isinstance(kinds, list) or len(kinds) != N or any(kind not in KINDS for kind in kinds):
    raise keys.refuse('layer_types', kinds, f'It must be one of {KINDS} for each of {N} layers.')
  chunk = keys.nullable('attention_chunk_size', 8192)
  if chunk is None and KINDS[1] in kinds:
    raise keys.refuse('attention_chunk_size', chunk, 'Its layers see chunks.')
  still = {'position': temperature(keys), 'extended': False, 'qk_norm_after': None}
  seen = [{'chunk': chunk} if kind == KINDS[1] else {} for kind in kinds]
  return [own if turned else own | still for own, turned in zip(seen, turns[:N], strict=True)]


def temperature(keys) -> dict:
  """What layers without RoPE know of positions."""
  on = keys.one_of('attn_temperature_tuning', {True: True, False: False, 4: True}, True)
  strength, period = keys.number('attn_scale', 0.1), keys.whole('floor_scale', 8192)
  if not on or strength == 0:
    return {'name': 'none'}
  if strength < 0:
    raise keys.refuse('attn_scale', strength, 'It must be 0 or more.')
  return {'name': 'tempered', 'strength': float(strength), 'period': period}


def weights(M: int) -> tuple[Weight, ...]:
  mlp = 'model.layers.{n}.feed_forward.'
  matrix = lambda theirs, ours: linear(f'{mlp}{theirs}', ours)[:1]
  of = lambda *names: tuple(f'mlp/experts/{name}' for name in names)
  stacked = {'rows_first': False, 'stacked': True}
  return (
    *usual.weights(mlp=()),
    *matrix('gate_proj', 'mlp/gate_DM'),
    *matrix('up_proj', 'mlp/up_DM'),
    *matrix('down_proj', 'mlp/down_MD'),
    *matrix('router', 'mlp/experts/router_DE'),
    Weight(f'{mlp}experts.gate_up_proj', of('gate_EDM', 'up_EDM'), sizes=(M, M), **stacked),
    Weight(f'{mlp}experts.down_proj', of('down_EMD'), **stacked),
    *matrix('shared_expert.gate_proj', 'mlp/shared/gate_DM'),
    *matrix('shared_expert.up_proj', 'mlp/shared/up_DM'),
    *matrix('shared_expert.down_proj', 'mlp/shared/down_MD'),
  )
