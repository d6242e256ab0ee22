"""What a model writes, and how fast: with no extension and with two that follow the length.

  python eval.py --workdir=runs/quickstart --eval=configs/eval/generate.py
  python eval.py --workdir=runs/quickstart --eval=configs/eval/generate.py \\
    --eval.prompts="('The Congress', 'The treaties')" --eval.sampler.temperature=0

A dynamic extension is shown in both of its modes: with every key turned anew for the length of the
text so far, and with keys as they were cached. For both, prompts must be as long as each other.
"""

from configs.eval import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.name = 'generate'
  config.measure = 'generation'
  config.recipes = (
    {'name': 'none'},
    {'name': 'dynamic_yarn', 'label': 'dynamic_yarn, exact'},
    {'name': 'dynamic_yarn', 'mode': 'as_deployed', 'label': 'dynamic_yarn, as deployed'},
  )
  return base.experiment(config, variant)
