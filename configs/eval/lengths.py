"""How far a model reads as it was trained: no extension, up to eight times the trained length.

python eval.py --workdir=runs/rope --eval=configs/eval/lengths.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'lengths'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8)
  return base.experiment(config, variant)
