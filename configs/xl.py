"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860), its positions and its memory.

  python train.py --config=configs/xl.py --workdir=runs/xl

Rows of 256 tokens are read in segments of 128, each with a memory of 128. Longer rows, at
evaluation, are more segments: in four layers, what a token knows reaches back up to 4 x 128 tokens
before its segment.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {
    'name': 'xl', 'theta': 10_000.0, 'deviation': 0.02, 'untied': False, 'clamp': None,
  }  # fmt: skip
  config = base.experiment(config, variant)
  config.model.segment = config.model.memory = config.train.length // 2
  return config
