"""What most decoders of transformers have in common: keys of a config, names of weights."""

from collections.abc import Mapping, Sequence
from typing import Any

from posjax.decoder import Decoder
from posjax.interop.keys import ACTIVATIONS, Keys
from posjax.interop.table import Weight, embedding, linear, norm
from posjax.mlp import USUAL


def sizes(keys: Keys, *, kv_heads: bool = True, tied: bool = False) -> dict[str, Any]:
  """Sizes of a model whose keys are called hidden_size, num_hidden_layers and so on, pre-norm."""
  D, H = keys.whole('hidden_size'), keys.whole('num_attention_heads')
  G = keys.whole('num_key_value_heads', H) if kv_heads else H
  return {
    'vocabulary': keys.whole('vocab_size'),
    'width': D,
    'layers': keys.whole('num_hidden_layers'),
    'heads': H,
    'kv_heads': G,
    'head_width': head_width(keys, D, H),
    'mlp_width': keys.whole('intermediate_size'),
    'tied': keys.flag('tie_word_embeddings', tied),
    'embedding_scale': 1.0,
  }


def own_head_width(keys: Keys, width: int) -> None:
  """For a family whose heads have a width of their own where the config says nothing."""
  if 'head_dim' not in keys:
    keys.content['head_dim'] = width


def head_width(keys: Keys, D: int, H: int) -> int:
  K = keys.whole('head_dim', None)
  if K is None and D % H:
    raise keys.refuse('num_attention_heads', H, f'It does not divide a width of {D}.')
  return K or D // H


def write(model: Decoder) -> dict[str, Any]:
  """The keys that `sizes` and `gated` read."""
  names = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
  return {
    'vocab_size': model.vocabulary,
    'hidden_size': model.width,
    'num_hidden_layers': model.layers,
    'num_attention_heads': model.heads,
    'num_key_value_heads': model.kv_heads,
    'head_dim': model.head_width,
    'intermediate_size': model.mlp_width,
    'hidden_act': names[model.activation or USUAL[model.mlp]],
    'rms_norm_eps': model.norm_epsilon or 1e-6,
  }


def gated(keys: Keys, epsilon: float, **changes) -> dict[str, Any]:
  """RMS norms and gated MLPs."""
  return {
    'norm': 'rms',
    'norm_epsilon': float(keys.number('rms_norm_eps', epsilon)),
    'mlp': 'gated',
    'activation': keys.one_of('hidden_act', ACTIVATIONS, 'silu'),
    **changes,
  }


def windows(keys: Keys, kinds: Sequence[str] | Any, layers: int, window: int | None) -> list[dict]:
  """What each layer sets of its own, by a config's layer_types."""
  if not isinstance(kinds, list) or len(kinds) != layers:
    raise keys.refuse('layer_types', kinds, f'It must name the kind of each of {layers} layers.')
  for kind in kinds:
    if kind not in ('full_attention', 'sliding_attention'):
      raise keys.refuse('layer_types', kind, 'It can do: full_attention, sliding_attention.')
  if 'sliding_attention' in kinds and window is None:
    raise keys.refuse('sliding_window', window, 'Its layer_types ask for a window.')
  return [{'window': window} if kind == 'sliding_attention' else {} for kind in kinds]


def qwen_layers(keys: Keys, layers: int) -> list[dict]:
  """Windows in the last layers, where use_sliding_window says so."""
  on = keys.flag('use_sliding_window', False)
  window = keys.nullable('sliding_window', 4096)
  window, first = window if on else None, keys.number('max_window_layers', 28)
  usual = [
    'sliding_attention' if window is not None and n >= first else 'full_attention'
    for n in range(layers)
  ]
  return windows(keys, keys.take('layer_types', usual), layers, window)


def weights(
  prefix: str = 'model.',
  *,
  attention: Sequence[Weight] | None = None,
  mlp: Sequence[Weight] | None = None,
  norms: Mapping[str, str] | None = None,
) -> tuple[Weight, ...]:
  """Names as Llama's: embed_tokens, layers.{n}.self_attn.q_proj, ..., norm, lm_head.

  attention, mlp: those of a family that has others. norms: ours of a layer, and theirs.
  """
  layer = f'{prefix}layers.{{n}}.'
  norms = norms or {
    'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm',
  }  # fmt: skip
  own = [weight for ours, theirs in norms.items() for weight in norm(layer + theirs, ours)]
  if attention is None:
    attention = (
      *linear(f'{layer}self_attn.q_proj', 'attention/query_DX'),
      *linear(f'{layer}self_attn.k_proj', 'attention/key_DX'),
      *linear(f'{layer}self_attn.v_proj', 'attention/value_DX'),
      *norm(f'{layer}self_attn.q_norm', 'attention/query_norm'),
      *norm(f'{layer}self_attn.k_norm', 'attention/key_norm'),
    )
  if mlp is None:
    mlp = (
      *linear(f'{layer}mlp.gate_proj', 'mlp/gate_DM'),
      *linear(f'{layer}mlp.up_proj', 'mlp/up_DM'),
    )
  return (
    *embedding(f'{prefix}embed_tokens'),
    *own,
    *attention,
    *linear(f'{layer}self_attn.o_proj', 'attention/output_XD'),
    *mlp,
    *linear(f'{layer}mlp.down_proj', 'mlp/down_MD'),
    *norm(f'{prefix}norm', 'final_norm'),
    *linear('lm_head', 'head_DV'),
  )


def fused(theirs: str, heads: int, kv_heads: int, head_width: int, **settings):
  """Queries, keys and values in one matrix, in `groups` groups of whole heads."""
  groups = settings.get('groups', 1)
  sizes = tuple(count // groups * head_width for count in (heads, kv_heads, kv_heads))
  names = ('attention/query_DX', 'attention/key_DX', 'attention/value_DX')
  return linear(theirs, *names, sizes=sizes, **settings)


def biases(**given: bool) -> tuple[str, ...]:
  """Names of the places that have them: biases(qkv=True, mlp=False) is ('qkv',)."""
  return tuple(name for name, there in given.items() if there)
