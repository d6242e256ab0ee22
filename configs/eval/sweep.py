"""Over a hundred settings of extensions on one checkpoint, at eight times its length.

python eval.py --workdir=runs/quickstart --eval=configs/eval/sweep.py

One program serves them all: a setting costs what a pass over its targets costs.
"""

from ml_collections import ConfigDict

from configs.eval import base

FACTORS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0)
METHODS = (
  {'name': 'linear'},
  {'name': 'ntk'},
  {'name': 'by_parts'},
  {'name': 'ntk_by_parts'},
  {'name': 'llama3'},
  {'name': 'yarn'},
  {'name': 'yarn', 'fast': 16.0, 'slow': 0.5},
  {'name': 'yarn', 'attention_factor': 1.0},  # without its temperature
)


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'sweep'
  config.multiples = (4,) if variant == 'smoke' else (8,)
  config.trained = False  # one length, one program
  factors = (2.0, 4.0) if variant == 'smoke' else FACTORS
  config.recipes = (
    {'name': 'none'},
    *({**method, 'factor': factor} for method in METHODS for factor in factors),
  )
  config.tokens = 16384
  return base.experiment(config, variant)
