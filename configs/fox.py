"""Forgetting attention, FoX (Lin et al. 2025, arXiv:2503.02130).

  python train.py --config=configs/fox.py --workdir=runs/fox
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'fox', 'deviation': 0.02}
  return base.experiment(config, variant)
