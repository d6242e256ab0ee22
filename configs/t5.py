"""T5's bucketed relative bias (Raffel et al. 2019, arXiv:1910.10683).

  python train.py --config=configs/t5.py --workdir=runs/t5
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 't5', 'buckets': 32, 'farthest': 128, 'deviation': 0.02}
  return base.experiment(config, variant)
