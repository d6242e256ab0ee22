"""Two schemes together: a learned vector per position, and ALiBi.

  python train.py --config=configs/learned_alibi.py --workdir=runs/learned_alibi
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'together', 'parts': ({'name': 'learned'}, {'name': 'alibi'})}
  return base.experiment(config, variant)
