"""Polar coordinate position embedding (Gopalakrishnan et al. 2025, arXiv:2509.10534).

  python train.py --config=configs/pope.py --workdir=runs/pope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'pope', 'theta': 10_000.0, 'phase': 0.0}
  return base.experiment(config, variant)
