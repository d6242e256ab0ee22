"""Finds a number in filler of 64 tokens, and is asked to in up to 512, at any depth.

  python train.py --config=configs/passkey.py --workdir=runs/passkey

Other tasks of retrieval by `--config.data.name`: task:needles, task:variables, task:common, ...
"""

from configs import base, copy


def get_config(variant: str = ''):
  config = copy.get_config()
  config.model.width = 128
  config.model.layers = 4
  config.model.head_width = 32
  config.model.mlp_width = 352
  config.data.name = 'task:passkey'
  config.train.length = 64
  config.train.steps = 500
  config.eval = 'configs/eval/passkey.py'
  return base.experiment(config, variant)
