"""Two thetas: five layers that see a window, then one with slower waves that sees everything
(Gemma 3, arXiv:2503.19786, sec. 2). Context extensions change the slower waves only.

  python train.py --config=configs/two_thetas.py --workdir=runs/two_thetas
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 1_000_000.0}
  near = {'position': {'name': 'rope', 'theta': 10_000.0}, 'window': 64, 'extended': False}
  config.layers = (near, near, near, near, near, {})
  config.model.layers = 6
  return base.experiment(config, variant)
