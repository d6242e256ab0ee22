"""Fine-grained experts, one of them shared, balanced by a routing bias (DeepSeek-V3, Liu et al.
2024, arXiv:2412.19437, sec. 2.1.2); the first layer is dense.

  python train.py --config=configs/moe.py --workdir=runs/moe

The quickstart with 3 of 16 routed experts and a shared one where it has an MLP of as many weights.
Measured: 1.136 nats at 128 tokens, of the quickstart 1.150 (jax 0.10.2, two CPU cores, one seed).
"""

from configs import base, quickstart


def get_config(variant: str = ''):
  config = quickstart.get_config()
  config.layers = ({'mlp': 'gated'}, {}, {}, {})
  config.model.mlp = 'experts'
  config.model.experts.width = 88  # of (3 + 1) experts: the quickstart's 352
  return base.experiment(config, variant)
