"""Each half of the heads has a scheme of its own: RoPE, and ALiBi.

  python train.py --config=configs/rope_alibi_heads.py --workdir=runs/rope_alibi_heads
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {
    'name': 'heads',
    'parts': ({'name': 'rope', 'share': 1}, {'name': 'alibi', 'share': 1}),
  }
  return base.experiment(config, variant)
