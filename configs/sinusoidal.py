"""Sinusoids added to the input (Vaswani et al. 2017, arXiv:1706.03762).

  python train.py --config=configs/sinusoidal.py --workdir=runs/sinusoidal
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {
    'name': 'sinusoidal', 'theta': 10_000.0, 'amplitude': 1.0, 'halves': False, 'begin': 0,
  }  # fmt: skip
  return base.experiment(config, variant)
