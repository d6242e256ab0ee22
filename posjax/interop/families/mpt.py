"""MPT (MosaicML 2023): ALiBi, no biases anywhere."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table, embedding, linear, norm, times

ARCHITECTURES = ('MptForCausalLM', 'MPTForCausalLM')
MODEL_TYPE = 'mpt'


def read(keys):
  D, H = keys.whole('d_model'), keys.whole('n_heads')
  K = usual.head_width(keys, D, H)
  # transformers has these of one kind only, whatever the config asks for.
  keys.one_of('expansion_ratio', (4,), 4)
  keys.one_of('no_bias', (True,), True)
  keys.one_of('logit_scale', (None,), None)
  keys.one_of('norm_type', ('low_precision_layernorm', 'layernorm'), 'layernorm')
  for name in (  # nothing at evaluation; ALiBi stands in for learned positions
    'learned_pos_emb', 'init_device', 'init_config', 'embedding_fraction', 'verbose',
    'tokenizer_name',
  ):  # fmt: skip
    keys.take(name, None)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('n_layers'),
    'heads': H,
    'kv_heads': H,
    'head_width': K,
    'mlp': 'plain',
    'mlp_width': 4 * D,
    'activation': 'gelu',
    'norm': 'layer_unbiased',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'alibi'},
    length=keys.whole('max_seq_len', 2048),
    table=Table(weights=weights(model), changes=attention(keys, K)),
    prefix='transformer.',
  )


def attention(keys, K: int):
  """What attn_config asks for: a scale of the logits goes into the queries."""
  inside = keys.within('attn_config')
  inside.one_of('alibi', (True,), True)
  inside.one_of('alibi_bias_max', (8,), 8)
  inside.one_of('attn_type', ('multihead_attention',), 'multihead_attention')
  for name in ('qk_ln', 'prefix_lm'):
    inside.one_of(name, (False,), False)
  inside.one_of('clip_qkv', (None, 0), None)
  for name in ('attn_impl', 'attn_uses_sequence_id'):  # how it is computed; packed rows
    inside.take(name, None)
  scale = inside.number('softmax_scale', K**-0.5)
  inside.check_all_read()
  return () if scale == K**-0.5 else (times('attention/query_', lambda n: scale * K**0.5),)


def weights(model):
  layer, H, K = 'transformer.blocks.{n}.', model['heads'], model['head_width']
  return (
    *embedding('transformer.wte'),
    *norm(f'{layer}norm_1', 'attention_norm'),
    *usual.fused(f'{layer}attn.Wqkv', H, H, K),
    *linear(f'{layer}attn.out_proj', 'attention/output_XD'),
    *norm(f'{layer}norm_2', 'mlp_norm'),
    *linear(f'{layer}ffn.up_proj', 'mlp/up_DM'),
    *linear(f'{layer}ffn.down_proj', 'mlp/down_MD'),
    *norm('transformer.norm_f', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )
