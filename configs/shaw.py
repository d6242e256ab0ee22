"""Relative vectors for keys and values (Shaw et al. 2018, arXiv:1803.02155).

  python train.py --config=configs/shaw.py --workdir=runs/shaw
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'shaw', 'farthest': 16}
  return base.experiment(config, variant)
