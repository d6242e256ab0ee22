"""PaTH attention (Yang et al. 2025, arXiv:2505.16381).

  python train.py --config=configs/path.py --workdir=runs/path
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'path', 'rank': 32, 'taps': 3, 'deviation': 0.02}
  return base.experiment(config, variant)
