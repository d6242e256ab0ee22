"""RoPE on 128 tokens, then YaRN on 1,024 for 5 % of the steps (Peng et al. 2023, arXiv:2309.00071).

  python train.py --config=configs/phases.py --workdir=runs/phases

The quickstart's model in one run of two phases, with as many tokens a step in both. Evaluates at 1,
2, 4 and 8 times the last phase's length.
"""

from configs import quickstart


def get_config(variant: str = ''):
  config = quickstart.get_config(variant)
  long = {
    'length': 8 * config.train.length,
    'batch': max(1, config.train.batch // 8),
    'steps': max(3, config.train.steps // 20),
    'warmup': 1,
    'learning_rate': 3e-4,
  }
  config.phases = ({'train': long, 'extension': {'name': 'yarn', 'factor': 8.0}},)
  config.eval = config.eval.replace('extend', 'lengths')
  return config
