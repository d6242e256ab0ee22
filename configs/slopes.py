"""Linear biases with learned slopes (after Press et al. 2021, arXiv:2108.12409).

  python train.py --config=configs/slopes.py --workdir=runs/slopes
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'slopes', 'steepness': 8.0}
  return base.experiment(config, variant)
