"""Copies strings of up to 15 symbols, and is asked for up to 60: length generalisation.

  python train.py --config=configs/copy.py --workdir=runs/copy
  python train.py --config=configs/copy.py --config.data.name=task:addition --workdir=runs/addition

Other tasks (posjax/data/tasks/) and schemes by `--config.data.name` and `--config.position`.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  config.model.width = 64
  config.model.layers = 2
  config.model.heads = 4
  config.model.kv_heads = 4
  config.model.head_width = 16
  config.model.mlp_width = 176
  config.data.name = 'task:copy'
  config.train.length = 32
  config.train.batch = 64
  config.train.steps = 1500
  config.eval = 'configs/eval/generalize.py'
  config = base.experiment(config, variant)
  if variant == 'smoke':
    config.train.batch = 32  # of four answers six steps would learn nothing
  return config
