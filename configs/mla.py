"""Multi-head latent attention with a decoupled rotary slice (DeepSeek-AI 2024, arXiv:2405.04434).

  python train.py --config=configs/mla.py --workdir=runs/mla
  python -m benchmarks.blocks --workdir=runs/blocks    # against heads with keys of their own

The quickstart with a latent of 48 in place of 4 heads' keys and values of 32: a token leaves
48 + 16 numbers in a layer's cache, a quarter of 256.
"""

from configs import base, quickstart


def get_config(variant: str = ''):
  config = quickstart.get_config()
  config.model.latent.width = 48
  config.model.latent.slice = 16
  config.model.mlp_width = 363  # as many parameters as the quickstart, to within a unit
  return base.experiment(config, variant)
