"""RoPE, then PoSE (Zhu et al. 2023, arXiv:2309.10400): YaRN to 1,024 tokens, on rows of 128.

  python train.py --config=configs/pose.py --workdir=runs/pose

As configs/phases.py, but the second phase never sees a row of 1,024 tokens, only its positions.
Evaluates at 1, 2, 4 and 8 times the length of the rows.
"""

from configs import quickstart


def get_config(variant: str = ''):
  config = quickstart.get_config(variant)
  skipping = {
    'steps': max(3, config.train.steps // 20),
    'warmup': 1,
    'learning_rate': 3e-4,
  }
  config.phases = (
    {
      'train': skipping,
      'sampling': {'name': 'pose', 'range': 8 * config.train.length, 'chunks': 2},
      'extension': {'name': 'yarn', 'factor': 8.0},
    },
  )
  config.eval = config.eval.replace('extend', 'lengths')
  return config
