"""The position times one learned vector: a baseline without a paper.

  python train.py --config=configs/linear.py --workdir=runs/linear
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'linear', 'unit': None, 'deviation': 0.02}
  return base.experiment(config, variant)
