"""RoPE in a window, and attention sinks: the first keys of a document stay in sight (StreamingLLM,
Xiao et al. 2023, arXiv:2309.17453).

  python train.py --config=configs/sinks.py --workdir=runs/sinks
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  config.model.window = 64
  config.model.sinks = 4
  return base.experiment(config, variant)
