"""Attention with linear biases (Press et al. 2021, arXiv:2108.12409).

  python train.py --config=configs/alibi.py --workdir=runs/alibi
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'alibi', 'steepness': 8.0, 'scale': 1.0, 'rounded': False}
  return base.experiment(config, variant)
