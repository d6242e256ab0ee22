"""The budget that `benchmarks.compare` gives to every scheme; by itself, without positions.

  python train.py --config=configs/compare.py --workdir=runs/compare-none
  python -m benchmarks.compare --configs=configs/rope.py,configs/alibi.py --workdir=runs/compare

Trains on 128 tokens of the embedded corpus (bytes), then reads up to 2,048.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.model.width = 128
  config.model.layers = 4
  config.model.heads = 4
  config.model.kv_heads = 4
  config.model.mlp_width = 352
  config.train.length = 128
  config.train.batch = 32
  config.train.steps = 400
  config.eval = 'configs/eval/compare.py'
  return base.experiment(config, variant)
