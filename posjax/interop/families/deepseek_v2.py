"""DeepSeek-V2 (DeepSeek-AI 2024, arXiv:2405.04434): latent attention, experts after a softmax."""

from posjax.interop import latents

ARCHITECTURES = ('DeepseekV2ForCausalLM',)
MODEL_TYPE = 'deepseek_v2'


def read(keys):
  keys.one_of('scoring_func', ('softmax',), 'softmax')
  # transformers never normalises, whatever the config asks for; DeepSeek's own code does.
  keys.one_of('norm_topk_prob', (False,), False)
  method = keys.one_of('topk_method', ('greedy', 'group_limited_greedy'), 'greedy')
  groups, chosen = keys.whole('n_group', 1), keys.whole('topk_group', 1)
  routing = {'scores': 'softmax', 'group_best': 1, 'normalise': False}
  if method == 'greedy':
    routing |= {'groups': 1, 'groups_chosen': 1}
  else:
    routing |= {'groups': groups, 'groups_chosen': chosen}
  return latents.read(keys, routing, first=0, length=2048, interleaved=True)
