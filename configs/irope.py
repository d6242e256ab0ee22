"""Interleaved layers, iRoPE (Llama 4, Meta 2025): three with RoPE that see their chunk of the text,
then one without positions that sees everything, sharper the more it sees.

  python train.py --config=configs/irope.py --workdir=runs/irope
"""

from configs import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.position = {'name': 'rope', 'theta': 500_000.0}
  near = {'chunk': 64}  # Llama 4: 8192 tokens, of a training length of 256k
  far = {'position': {'name': 'tempered', 'strength': 0.1, 'period': 64}}
  config.layers = (near, near, near, far)
  return base.experiment(config, variant)
