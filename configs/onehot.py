"""One-hot positions through a fixed random matrix: a control without a paper.

  python train.py --config=configs/onehot.py --workdir=runs/onehot
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'onehot', 'amplitude': 1.0, 'seed': 0}
  return base.experiment(config, variant)
