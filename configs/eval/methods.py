"""Every way of extending rotary schemes without training, up to eight times the length.

python eval.py --workdir=runs/quickstart --eval=configs/eval/methods.py

Windows and groups are for 128 trained tokens and up to 1,024: half of the length as trained, and
groups of 16, so that (128 - 64) 16 + 64 tokens have no new distance. Methods that follow the length
come in both modes: as if every key had been turned for it, and as keys stay in a cache.
"""

from ml_collections import ConfigDict

from configs.eval import base


def get_config(variant: str = '') -> ConfigDict:
  config = base.get_config()
  config.name = 'methods'
  config.multiples = (1, 4) if variant == 'smoke' else (1, 2, 4, 8)
  config.recipes = (
    {'name': 'none'},
    {'name': 'linear'},
    {'name': 'ntk'},
    {'name': 'by_parts'},
    {'name': 'ntk_by_parts'},
    {'name': 'yarn'},
    {'name': 'llama3'},
    *(
      {'name': name, 'mode': mode}
      for name in ('dynamic_ntk', 'dynamic_yarn')
      for mode in ('exact', 'as_deployed')
    ),
    {'name': 'log_n'},
    {'name': 'rerope', 'window': 64},
    {'name': 'rerope', 'window': 64, 'group': 16.0},
    {'name': 'self_extend', 'window': 64, 'group': 16},
    {'name': 'dual_chunk'},
    {'name': 'streaming', 'window': 124, 'sinks': 4},
  )
  config.tokens = 32768
  if variant == 'smoke':  # of 32 trained tokens
    few = ('none', 'yarn', 'dynamic_ntk', 'dual_chunk')
    config.recipes = tuple(recipe for recipe in config.recipes if recipe['name'] in few)
  return base.experiment(config, variant)
