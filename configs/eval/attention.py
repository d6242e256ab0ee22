"""Where every head looks: mean distance, entropy and sink mass, up to eight times the length.

python eval.py --workdir=runs/quickstart --eval=configs/eval/attention.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = config.measure = 'attention'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8)
  config.recipes = ({'name': 'none'}, {'name': 'linear'}, {'name': 'yarn'})
  config.span = 1.0  # windows stand side by side: none has to slide
  config.tokens = 32768
  return base.experiment(config, variant)
