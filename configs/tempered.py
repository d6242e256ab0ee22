"""No position but a temperature that grows with it (Llama 4's layers without rotation).

  python train.py --config=configs/tempered.py --workdir=runs/tempered
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'tempered', 'strength': 0.1, 'period': None}
  return base.experiment(config, variant)
