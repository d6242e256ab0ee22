"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

  python train.py --config=configs/rope.py --workdir=runs/rope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  return base.experiment(config, variant)
