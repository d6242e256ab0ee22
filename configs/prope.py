"""p-RoPE, without the slowest waves (Barbero et al. 2024, arXiv:2410.06205).

  python train.py --config=configs/prope.py --workdir=runs/prope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'prope', 'share': 0.75, 'theta': 10_000.0}
  return base.experiment(config, variant)
