"""Interleaved layers, RNoPE with sliding windows (Yang et al. 2025, arXiv:2501.18795): three with
RoPE that see a window, then one without positions that sees everything.

  python train.py --config=configs/rnope.py --workdir=runs/rnope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 10_000.0}
  near = {'window': 64}
  config.layers = (near, near, near, {'position': {'name': 'none'}})
  return base.experiment(config, variant)
