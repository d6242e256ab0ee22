"""How far beyond its trained size a task is solved: exact match up to four times the size.

python eval.py --workdir=runs/copy --eval=configs/eval/generalize.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'generalize'
  config.multiples = (0.5, 1, 1.25, 1.5, 2, 3, 4)
  if variant == 'smoke':
    config.multiples = (1, 4)
  return base.experiment(config, variant)
