"""What extending the context without training brings: four recipes, up to eight times the length.

python eval.py --workdir=runs/rope --eval=configs/eval/extend.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'extend'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8)
  config.recipes = ({'name': 'none'}, {'name': 'linear'}, {'name': 'ntk'}, {'name': 'yarn'})
  config.tokens = 32768  # half of what `lengths` scores: four recipes cost four times as much
  return base.experiment(config, variant)
