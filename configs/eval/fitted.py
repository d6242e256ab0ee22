"""Fitted extensions beside closed forms, at eight times the length; fit them first:

python -m posjax.fit --workdir=runs/quickstart --factor=8 --method=gradient
python -m posjax.fit --workdir=runs/quickstart --factor=8 --method=evolution
python -m posjax.fit --workdir=runs/quickstart --factor=8 --method=grid
python eval.py --workdir=runs/quickstart --eval=configs/eval/fitted.py
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'fitted'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8)
  config.recipes = (
    {'name': 'none'},
    {'name': 'linear', 'factor': 4.0 if variant == 'smoke' else 8.0},
    {'name': 'ntk', 'factor': 4.0 if variant == 'smoke' else 8.0},
    {'name': 'yarn', 'factor': 4.0 if variant == 'smoke' else 8.0},
    {'name': 'fitted', 'by': 'grid'},
    {'name': 'fitted', 'by': 'evolution'},
    {'name': 'fitted', 'by': 'gradient'},
  )
  config.tokens = 32768
  return base.experiment(config, variant)
