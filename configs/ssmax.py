"""RoPE and Scalable-Softmax (Nakanishi 2025, arXiv:2501.19399).

  python train.py --config=configs/ssmax.py --workdir=runs/ssmax
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {
    'name': 'together',
    'parts': ({'name': 'rope', 'theta': 10_000.0}, {'name': 'ssmax', 'strength': 0.43}),
  }
  return base.experiment(config, variant)
