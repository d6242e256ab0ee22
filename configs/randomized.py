"""Randomized positions (Ruoss et al. 2023, arXiv:2305.16843) over RoPE: each step trains on sorted
positions drawn from eight times its length.

  python train.py --config=configs/randomized.py --workdir=runs/randomized
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  config.sampling = {'name': 'randomized', 'range': 2048}
  return base.experiment(config, variant)
