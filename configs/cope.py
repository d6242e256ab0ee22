"""Contextual position encoding, CoPE (Golovneva et al. 2024, arXiv:2405.18719).

  python train.py --config=configs/cope.py --workdir=runs/cope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'cope', 'positions': 64}
  return base.experiment(config, variant)
