"""FIRE, a learned function of relative distance (Li et al. 2023, arXiv:2310.04418).

  python train.py --config=configs/fire.py --workdir=runs/fire

`threshold` belongs to the training length, a quarter of it: change both together.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'fire', 'width': 32, 'threshold': 64.0}
  return base.experiment(config, variant)
