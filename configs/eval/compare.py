"""How far schemes read as they were trained: no extension, up to sixteen times the trained length.

python eval.py --workdir=runs/rope --eval=configs/eval/compare.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'compare'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8, 16)
  return base.experiment(config, variant)
