"""SmolLM3 (Hugging Face 2025): every fourth layer knows no positions."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.table import Table

ARCHITECTURES = ('SmolLM3ForCausalLM',)
MODEL_TYPE = 'smollm3'


def read(keys):
  model = usual.sizes(keys, tied=True) | usual.gated(keys, 1e-6)
  attention = keys.flag('attention_bias', False)
  model['biases'] = usual.biases(qkv=attention, output=attention, mlp=keys.flag('mlp_bias', False))
  keys.take('pretraining_tp', None)
  rotary = rope.read(keys, model['head_width'], theta=2_000_000.0, length=32768)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(layers(keys, model['layers'])),
    length=rotary.length,
    table=Table(weights=usual.weights()),
    prefix='model.',
  )


def layers(keys, N: int) -> list[dict]:
  """no_rope_layers: 1 where a layer has RoPE, 0 where it has none."""
  every = keys.whole('no_rope_layer_interval', 4)
  turns = keys.take('no_rope_layers', [int((n + 1) % every != 0) for n in range(N)])
  if not isinstance(turns, list) or len(turns) < N or any(x not in (0, 1) for x in turns):
    raise keys.refuse('no_rope_layers', turns, f'It must be 0 or 1 for each of {N} layers.')
  on, window = keys.flag('use_sliding_window', False), keys.whole('sliding_window', None)
  usual_kinds = [
    'sliding_attention' if on and window is not None and not turned else 'full_attention'
    for turned in turns[:N]
  ]
  seen = usual.windows(keys, keys.take('layer_types', usual_kinds), N, window)
  return [
    own if turned else own | {'position': {'name': 'none'}}
    for own, turned in zip(seen, turns[:N], strict=True)
  ]
