"""What the families with latent attention and experts have in common."""

from typing import Any

from posjax.interop import rope, usual
from posjax.interop.family import Recipe, pattern
from posjax.interop.keys import ACTIVATIONS, Keys
from posjax.interop.table import Table, Weight, half_split, linear, norm


def read(
  keys: Keys, routing: dict[str, Any], *, first: int, length: int, interleaved: bool
) -> Recipe:
  """routing: model.experts, as far as the family's own keys tell. first: the usual number of first
  layers that have no experts."""
  keys.one_of('attention_bias', (False,), False)
  keys.one_of('moe_layer_freq', (1,), 1)
  for name in ('pretraining_tp', 'ep_size'):  # how it was trained
    keys.take(name, None)
  D, H = keys.whole('hidden_size'), keys.whole('num_attention_heads')
  N, R = keys.whole('qk_nope_head_dim', 128), keys.whole('qk_rope_head_dim', 64)
  keys.same('num_key_value_heads', H)
  keys.same('qk_head_dim', N + R)
  keys.same('head_dim', R)
  layers, dense = keys.whole('num_hidden_layers'), keys.number('first_k_dense_replace', first)
  experts = {
    'count': keys.whole('n_routed_experts'),
    'chosen': keys.whole('num_experts_per_tok'),
    'width': keys.whole('moe_intermediate_size'),
    'shared': keys.whole('n_shared_experts'),
    'scale': float(keys.number('routed_scaling_factor', 1.0)),
    'form': 'auto',
    **routing,
  }
  mixed = dense < layers
  biased = keys.flag('mlp_bias', False)
  if biased and mixed:
    raise keys.refuse('mlp_bias', biased, 'Experts have no biases.')
  latent = {
    'width': keys.whole('kv_lora_rank', 512),
    'query': keys.nullable('q_lora_rank', 1536),
    'slice': R,
    'value': keys.whole('v_head_dim', 128),
    'epsilon': 1e-6,  # whatever rms_norm_eps is
    'decode': 'auto',
  }
  model = {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': layers,
    'heads': H,
    'kv_heads': H,
    'head_width': N,
    'mlp': 'experts' if mixed else 'gated',
    'mlp_width': keys.whole('intermediate_size'),
    'activation': keys.one_of('hidden_act', ACTIVATIONS, 'silu'),
    'norm': 'rms',
    'norm_epsilon': float(keys.number('rms_norm_eps', 1e-6)),
    'biases': ('mlp',) if biased else (),
    'embedding_scale': 1.0,
    'tied': keys.flag('tie_word_embeddings', False),
    'latent': latent,
  }
  if mixed:
    model['experts'] = experts
  rotary = rope.read(keys, R, length=length, temperate=True)
  own = [{'mlp': 'gated'} if mixed and n < dense else {} for n in range(layers)]
  further = keys.take('num_nextn_predict_layers', 0) or keys.take('num_mtp_layers', 0)
  numbers = '|'.join(str(layers + n) for n in range(further)) or '$^'
  return Recipe(
    model=model,
    position=rotary.position,
    extension=rotary.extension,
    layers=pattern(own),
    length=rotary.length,
    table=Table(
      weights=weights(H, N, latent),
      changes=changes(N, R) if interleaved else (),
      # Layers that predict tokens further on, which no pass over a text reads.
      ignored=rf'\.rotary_emb\.inv_freq$|^model\.layers\.({numbers})\.',
      zeros=('mlp/experts/bias_E',),
    ),
    prefix='model.',
  )


def changes(N: int, R: int):
  return (
    half_split(N + R, R, r'attention/query_(up_CX|DX)$', begin=N),
    half_split(R, R, r'attention/slice_DR$'),
  )


def weights(H: int, N: int, latent: dict[str, Any]) -> tuple[Weight, ...]:
  layer = 'model.layers.{n}.'
  mlp, attention = f'{layer}mlp.', f'{layer}self_attn.'
  C, R, V = latent['width'], latent['slice'], latent['value']
  matrix = lambda theirs, *ours, **settings: linear(theirs, *ours, **settings)[:1]
  return usual.weights(
    attention=(
      *matrix(f'{attention}q_proj', 'attention/query_DX'),
      *matrix(f'{attention}q_a_proj', 'attention/query_DC'),
      *norm(f'{attention}q_a_layernorm', 'attention/query_norm'),
      *matrix(f'{attention}q_b_proj', 'attention/query_up_CX'),
      *matrix(
        f'{attention}kv_a_proj_with_mqa', 'attention/latent_DC', 'attention/slice_DR', sizes=(C, R)
      ),
      *norm(f'{attention}kv_a_layernorm', 'attention/latent_norm'),
      *matrix(
        f'{attention}kv_b_proj', 'attention/key_up_CX', 'attention/value_up_CX', sizes=(N, V),
        groups=H,
      ),
    ),
    mlp=(
      *linear(f'{mlp}gate_proj', 'mlp/gate_DM'),
      *linear(f'{mlp}up_proj', 'mlp/up_DM'),
      *matrix(f'{mlp}gate', 'mlp/experts/router_DE'),
      *matrix(f'{mlp}experts.{{e}}.gate_proj', 'mlp/experts/gate_EDM'),
      *matrix(f'{mlp}experts.{{e}}.up_proj', 'mlp/experts/up_EDM'),
      *matrix(f'{mlp}experts.{{e}}.down_proj', 'mlp/experts/down_EMD'),
      *matrix(f'{mlp}shared_experts.gate_proj', 'mlp/shared/gate_DM'),
      *matrix(f'{mlp}shared_experts.up_proj', 'mlp/shared/up_DM'),
      *matrix(f'{mlp}shared_experts.down_proj', 'mlp/shared/down_MD'),
    ),
  )  # fmt: skip
