"""DeepSeek-V3 and R1 (DeepSeek-AI 2024, arXiv:2412.19437): experts by sigmoid and routing bias."""

import dataclasses

from posjax.interop import latents
from posjax.interop.table import Weight

ARCHITECTURES = ('DeepseekV3ForCausalLM',)
MODEL_TYPE = 'deepseek_v3'


def read(keys):
  keys.one_of('scoring_func', ('sigmoid',), 'sigmoid')
  keys.one_of('topk_method', ('noaux_tc',), 'noaux_tc')
  routing = {
    'scores': 'sigmoid',
    'groups': keys.whole('n_group', 8),
    'groups_chosen': keys.whole('topk_group', 4),
    'group_best': 2,
    'normalise': keys.flag('norm_topk_prob', True),
    'scale': float(keys.number('routed_scaling_factor', 2.5)),
  }
  interleaved = keys.flag('rope_interleave', True)
  recipe = latents.read(keys, routing, first=3, length=4096, interleaved=interleaved)
  bias = Weight('model.layers.{n}.mlp.gate.e_score_correction_bias', ('mlp/experts/bias_E',))
  table = dataclasses.replace(recipe.table, weights=(*recipe.table.weights, bias), zeros=())
  return dataclasses.replace(recipe, table=table)
