"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv:2404.14219): fused matrices, LongRoPE."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table, linear

ARCHITECTURES = ('Phi3ForCausalLM',)
MODEL_TYPE = 'phi3'


def read(keys):
  model = usual.sizes(keys) | usual.gated(keys, 1e-5)
  model['window'] = keys.nullable('sliding_window', None)
  for name in ('interpolate_factor', 'full_attn_mod'):  # of a longer form that nobody has released
    keys.one_of(name, (1,), 1)
  keys.one_of('lm_head_bias', (False,), False)
  K, M, layer = model['head_width'], model['mlp_width'], 'model.layers.{n}.'
  rotary = rope.read(
    keys, K, length=4096, original=4096, share=1.0, renamed={'su': 'longrope', 'yarn': 'longrope'},
    kinds=('default', 'longrope'),  # transformers loads no others
  )  # fmt: skip
  weights = usual.weights(
    attention=usual.fused(f'{layer}self_attn.qkv_proj', model['heads'], model['kv_heads'], K),
    mlp=linear(f'{layer}mlp.gate_up_proj', 'mlp/gate_DM', 'mlp/up_DM', sizes=(M, M)),
  )
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=weights),
    prefix='model.',
  )
