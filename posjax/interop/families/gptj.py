"""GPT-J (Wang & Komatsuzaki 2021): one norm for attention and MLP, interleaved partial RoPE."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.keys import ACTIVATIONS
from posjax.interop.table import Table, embedding, half_split, linear, norm

ARCHITECTURES = ('GPTJForCausalLM',)
MODEL_TYPE = 'gptj'


def read(keys):
  D, H, length = keys.whole('n_embd'), keys.whole('n_head'), keys.whole('n_positions')
  keys.take('n_ctx', None)  # which nobody reads
  K = usual.head_width(keys, D, H)
  keys.same('rotary', True)
  keys.same('scale_attn_weights', True)
  turned = keys.whole('rotary_dim')
  if turned % 2 or turned > K:
    raise keys.refuse('rotary_dim', turned, f'Heads have {K} dimensions, which turn in pairs.')
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('n_layer'),
    'heads': H,
    'kv_heads': H,
    'head_width': K,
    'mlp': 'plain',
    'mlp_width': keys.whole('n_inner', 4 * D),
    'activation': keys.one_of('activation_function', ACTIVATIONS, 'gelu_new'),
    'residual': 'parallel_shared',
    'norm': 'layer',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': ('mlp', 'head'),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', False),
  }
  return Recipe(
    model=model,
    position={'name': 'partial', 'share': turned / K, 'theta': 10_000.0},
    length=length,
    table=Table(
      weights=weights(),
      changes=(half_split(K, turned),),
      ignored=r'\.attn\.((masked_)?bias|embed_positions)$',
    ),
    prefix='transformer.',
  )


def weights():
  layer = 'transformer.h.{n}.'
  return (
    *embedding('transformer.wte'),
    *norm(f'{layer}ln_1', 'attention_norm'),
    *linear(f'{layer}attn.q_proj', 'attention/query_DX'),
    *linear(f'{layer}attn.k_proj', 'attention/key_DX'),
    *linear(f'{layer}attn.v_proj', 'attention/value_DX'),
    *linear(f'{layer}attn.out_proj', 'attention/output_XD'),
    *linear(f'{layer}mlp.fc_in', 'mlp/up_DM'),
    *linear(f'{layer}mlp.fc_out', 'mlp/down_MD'),
    *norm('transformer.ln_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
