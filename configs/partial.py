"""Partial rotary position embedding (Black et al. 2022, arXiv:2204.06745, sec. 2.1.1).

  python train.py --config=configs/partial.py --workdir=runs/partial
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'partial', 'share': 0.5, 'theta': 10_000.0}
  return base.experiment(config, variant)
