"""Sandwich, a bias of sinusoids without parameters (Chi et al. 2022, arXiv:2212.10356).

  python train.py --config=configs/sandwich.py --workdir=runs/sandwich
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'sandwich', 'width': 128, 'theta': 10_000.0, 'compression': 8.0}
  return base.experiment(config, variant)
