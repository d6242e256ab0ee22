"""Two schemes together: RoPE, and the forgetting gate (Lin et al. 2025, arXiv:2503.02130, sec. 4).

  python train.py --config=configs/rope_fox.py --workdir=runs/rope_fox
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'together', 'parts': ({'name': 'rope'}, {'name': 'fox'})}
  return base.experiment(config, variant)
