"""KERPLE, a learned logarithmic penalty (Chi et al. 2022, arXiv:2205.09921).

  python train.py --config=configs/kerple.py --workdir=runs/kerple
  python train.py --config=configs/kerple.py --config.position.kernel=power --workdir=runs/power
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'kerple', 'kernel': 'log'}
  return base.experiment(config, variant)
