"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860): norms of sums, an adaptive softmax."""

from posjax.interop import usual
from posjax.interop.family import Recipe
from posjax.interop.table import Table, Weight, embedding, headed, linear, norm

ARCHITECTURES = ('TransfoXLLMHeadModel',)
MODEL_TYPE = 'transfo-xl'


def read(keys):
  D, H = keys.whole('d_model'), keys.whole('n_head')
  keys.same('d_embed', D)
  keys.one_of('div_val', (1,), 4)  # else each cluster's embeddings have a width of their own
  keys.one_of('attn_type', (0,), 0)
  keys.one_of('pre_lnorm', (False,), False)  # with which there is no norm before the head
  # A first segment would see so many vectors of zeros, which are no tokens.
  keys.one_of('mem_len', (0,), 1600)
  keys.one_of('same_length', (False,), True)  # each query as many keys: those, too
  for name in (  # of training, of other widths, or what is so in any case
    'adaptive', 'dropatt', 'ext_len', 'init', 'init_range', 'proj_init_std', 'sample_softmax',
    'proj_share_all_but_first', 'tie_projs', 'tie_weight', 'trainer_compatible',
  ):  # fmt: skip
    keys.take(name, None)
  clamp, untied = keys.number('clamp_len', 1000), keys.flag('untie_r', True)
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('n_layer'),
    'heads': H,
    'kv_heads': H,
    'head_width': keys.whole('d_head'),
    'mlp': 'plain',
    'mlp_width': keys.whole('d_inner'),
    'activation': 'relu',
    'norm': 'layer',
    'norm_at': 'sum',
    'norm_epsilon': float(keys.number('layer_norm_epsilon', 1e-5)),
    'biases': ('mlp', 'head'),
    'cutoffs': cutoffs(keys),
    'tied': keys.flag('tie_word_embeddings', True),
  }
  return Recipe(
    model=model,
    position={'name': 'xl', 'untied': untied, 'clamp': clamp if clamp > 0 else None},
    length=keys.whole('tgt_len', 128),
    table=Table(
      weights=weights(model, untied),
      changes=(headed('position/distance_DHK$', H),),
      # Waves; and what all layers share, once more for each.
      ignored=r'\.pos_emb\.inv_freq$' + ('' if untied else r'|\.dec_attn\.r_[rw]_bias$'),
    ),
    prefix='transformer.',
  )


def cutoffs(keys) -> tuple[int, ...]:
  """Without any, it still gives logarithms of probabilities."""
  found = keys.take('cutoffs', [20_000, 40_000, 200_000])
  whole = isinstance(found, list) and all(isinstance(n, int) for n in found)
  edges = [0, *found, keys.whole('vocab_size')] if whole else []
  if not whole or edges != sorted(set(edges)):
    raise keys.refuse('cutoffs', found, 'It must list ids that rise.')
  return tuple(found)


def weights(model, untied: bool) -> tuple[Weight, ...]:
  layer, H, K = 'transformer.layers.{n}.', model['heads'], model['head_width']
  attention, mlp = f'{layer}dec_attn.', f'{layer}pos_ff.'
  place = attention if untied else 'transformer.'
  return (
    *embedding('transformer.word_emb.emb_layers.0'),
    Weight(f'{place}r_w_bias', ('position/u_HK',), rows_first=False),
    Weight(f'{place}r_r_bias', ('position/v_HK',), rows_first=False),
    Weight(f'{attention}r_net.weight', ('position/distance_DHK',)),
    *usual.fused(f'{attention}qkv_net', H, H, K),
    *linear(f'{attention}o_net', 'attention/output_XD'),
    *norm(f'{attention}layer_norm', 'attention_sum_norm'),
    *linear(f'{mlp}CoreNet.0', 'mlp/up_DM'),
    *linear(f'{mlp}CoreNet.3', 'mlp/down_MD'),
    *norm(f'{mlp}layer_norm', 'mlp_sum_norm'),
    *linear('crit.out_layers.0', 'head_DV'),
    Weight('crit.cluster_weight', ('cluster_DC',)),
    Weight('crit.cluster_bias', ('cluster_bias_C',)),
  )
