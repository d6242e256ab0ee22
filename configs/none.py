"""No positions (NoPE; Kazemnejad et al. 2023, arXiv:2305.19466): order from the causal mask alone.

  python train.py --config=configs/none.py --workdir=runs/none
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'none'}
  return base.experiment(config, variant)
