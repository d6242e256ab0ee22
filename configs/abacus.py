"""Abacus places within numbers, and RoPE for all tokens (McLeish et al. 2024, arXiv:2405.17399).

  python train.py --config=configs/abacus.py --workdir=runs/abacus
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  abacus = {'name': 'abacus', 'first_digit': 48, 'longest': 128, 'shift': 99, 'deviation': 0.02}
  config.position = {'name': 'together', 'parts': (abacus, {'name': 'rope', 'theta': 10_000.0})}
  return base.experiment(config, variant)
