"""Phi-1, 1.5 and 2 (Li et al. 2023, arXiv:2309.05463): one norm for both parts, many biases."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm

ARCHITECTURES = ('PhiForCausalLM',)
MODEL_TYPE = 'phi'


def read(keys):
  keys.one_of('qk_layernorm', (False,), False)
  model = usual.sizes(keys) | {
    'mlp': 'plain',
    'activation': keys.one_of('hidden_act', ACTIVATIONS, 'gelu_new'),
    'residual': 'parallel_shared',
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_eps', 1e-5)),
    'biases': ('qkv', 'output', 'mlp', 'head'),
  }
  rotary = rope.read(keys, model['head_width'], length=2048, share=0.5)
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(weights=weights(), ignored=r'\.rotary_emb\.inv_freq$'),
    prefix='model.',
  )


def weights():
  layer = 'model.layers.{n}.'
  return (
    *embedding('model.embed_tokens'),
    *norm(f'{layer}input_layernorm', 'attention_norm'),
    *linear(f'{layer}self_attn.q_proj', 'attention/query_DX'),
    *linear(f'{layer}self_attn.k_proj', 'attention/key_DX'),
    *linear(f'{layer}self_attn.v_proj', 'attention/value_DX'),
    *linear(f'{layer}self_attn.dense', 'attention/output_XD'),
    *linear(f'{layer}mlp.fc1', 'mlp/up_DM'),
    *linear(f'{layer}mlp.fc2', 'mlp/down_MD'),
    *norm('model.final_layernorm', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
