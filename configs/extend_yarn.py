"""Continues a RoPE run at four times its length, with YaRN (Peng et al. 2023, arXiv:2309.00071).

  python train.py --config=configs/extend_yarn.py --config.init_from=runs/quickstart \
      --workdir=runs/quickstart-yarn

Starts from the parameters of the quickstart and spends a tenth of its steps.
"""

from configs import quickstart


def get_config(variant: str = ''):
  config = quickstart.get_config(variant)
  config.extension.name = 'yarn'
  config.extension.factor = 4.0
  config.train.length *= 4
  config.train.batch //= 4
  config.train.steps = max(3, config.train.steps // 10)
  config.train.warmup = max(1, config.train.steps // 10)
  config.train.learning_rate /= 10
  config.checkpoint.every = config.train.steps
  return config
