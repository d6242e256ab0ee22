"""Is a needle found, at any depth and up to eight times the trained length: four recipes.

  python train.py --config=configs/passkey.py --workdir=runs/passkey
  python eval.py --workdir=runs/passkey --eval=configs/eval/passkey.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'passkey'
  config.multiples = (1, 2, 4, 8)
  config.recipes = ({'name': 'none'}, {'name': 'linear'}, {'name': 'ntk'}, {'name': 'yarn'})
  config.depths = (0.0, 0.25, 0.5, 0.75, 1.0)
  config.examples = 40  # of each depth: 200 of each length and recipe
  if variant == 'smoke':
    config.multiples, config.depths = (1, 2), (0.0, 1.0)
  return base.experiment(config, variant)
