"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745): parallel residual, partial RoPE."""

from posjax.interop import rope, usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, linear, norm

ARCHITECTURES = ('GPTNeoXForCausalLM',)
MODEL_TYPE = 'gpt_neox'


def read(keys):
  attention = keys.flag('attention_bias', True)
  parallel = keys.flag('use_parallel_residual', True)
  model = usual.sizes(keys, kv_heads=False) | {
    'mlp': 'plain',
    'activation': keys.one_of('hidden_act', ACTIVATIONS, 'gelu'),
    'residual': 'parallel' if parallel else 'sequential',
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_eps', 1e-5)),
    'biases': usual.biases(qkv=attention, output=attention, mlp=True),
  }
  rotary = rope.read(
    keys, model['head_width'], length=2048, share=0.25, share_key='rotary_pct',
    theta_key='rotary_emb_base',
  )  # fmt: skip
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    length=rotary.length,
    table=Table(
      weights=weights(model),
      ignored=r'\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$',
    ),
    prefix='gpt_neox.',
  )


def weights(model):
  layer, H, K = 'gpt_neox.layers.{n}.', model['heads'], model['head_width']
  return (
    *embedding('gpt_neox.embed_in'),
    *norm(f'{layer}input_layernorm', 'attention_norm'),
    *usual.fused(f'{layer}attention.query_key_value', H, H, K, groups=H),
    *linear(f'{layer}attention.dense', 'attention/output_XD'),
    *norm(f'{layer}post_attention_layernorm', 'mlp_norm'),
    *linear(f'{layer}mlp.dense_h_to_4h', 'mlp/up_DM'),
    *linear(f'{layer}mlp.dense_4h_to_h', 'mlp/down_MD'),
    *norm('gpt_neox.final_layer_norm', 'final_norm'),
    *linear('embed_out', 'head_DV'),
  )
