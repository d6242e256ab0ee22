"""xPos (Sun et al. 2022, arXiv:2212.10554).

  python train.py --config=configs/xpos.py --workdir=runs/xpos
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'xpos', 'theta': 10_000.0, 'gamma': 0.4, 'scale_base': 512}
  return base.experiment(config, variant)
