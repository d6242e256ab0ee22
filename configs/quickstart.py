"""A small RoPE decoder on real text, trained on 128 tokens and read at up to 1,024.

  python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Trains on the embedded corpus (bytes), then evaluates at 1, 2, 4 and 8 times its length: without
extension, with linear interpolation, NTK-aware and YaRN.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  config.model.width = 128
  config.model.layers = 4
  config.model.heads = 4
  config.model.kv_heads = 4
  config.model.mlp_width = 352
  config.train.length = 128
  config.train.batch = 32
  config.train.steps = 500
  config.eval = 'configs/eval/extend.py'
  return base.experiment(config, variant)
