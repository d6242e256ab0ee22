"""CodeGen (Nijkamp et al. 2022, arXiv:2203.13474): GPT-J's layers, fused in four groups."""

import dataclasses

from posjax.interop.families import gptj
from posjax.interop.table import linear

ARCHITECTURES = ('CodeGenForCausalLM',)
MODEL_TYPE = 'codegen'
GROUPS = 4  # cores that it was trained on, whatever their number is now


def read(keys):
  keys.take('tokenizer_class', None)
  recipe = gptj.read(keys)
  model, layer = recipe.model, 'transformer.h.{n}.attn.'
  rows = model['heads'] // GROUPS * model['head_width']
  if model['heads'] % GROUPS:
    raise keys.refuse('n_head', model['heads'], f'Its heads come in {GROUPS} equal groups.')
  fused = linear(
    f'{layer}qkv_proj', 'attention/query_DX', 'attention/value_DX', 'attention/key_DX',
    sizes=(rows,) * 3, groups=GROUPS,
  )  # fmt: skip
  apart = {'attention/query_DX', 'attention/key_DX', 'attention/value_DX'}
  others = tuple(w for w in recipe.table.weights if not apart & set(w.ours))
  table = dataclasses.replace(
    recipe.table, weights=(*others, *fused), ignored=r'\.attn\.(causal_mask|embed_positions)$'
  )
  return dataclasses.replace(recipe, table=table)
