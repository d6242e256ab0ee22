"""A learned vector per position (Gehring et al. 2017, arXiv:1705.03122; GPT-2).

  python train.py --config=configs/learned.py --workdir=runs/learned

Past its table it has no positions: evaluation reports lengths above `train.length` as refused.
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'learned', 'length': None, 'deviation': 0.02}
  return base.experiment(config, variant)
