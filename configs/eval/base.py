"""Every key of an evaluation, with its unit and its reason. Others state only what they change.

On text every length and every recipe scores the same targets: the first span x longest length of
each document. Cost: about `overlap` x `tokens` tokens through the model, per length and recipe. On
a task every recipe answers the same examples.
"""

from ml_collections import ConfigDict


def get_config(variant: str = '') -> ConfigDict:
  """The unextended model at the length it was trained at.

  Args:
    variant: '' for the evaluation itself, 'smoke' for the same code path in seconds.
  """
  config = ConfigDict()

  config.name = 'base'  # of the files in the run directory; another name keeps them apart

  config.measure = 'loss'  # or 'attention': mean distance, entropy and sink mass of all heads;
  # or 'generation': what the model writes

  config.multiples = (1,)  # lengths, as multiples of the length trained at
  config.trained = True  # measure that length, too: gains are against it

  # Context extensions: functions of posjax/extension/ and their keywords. A recipe that sets no
  # `factor` takes the one that fits each length: max(1, length / trained length). 'fitted' is what
  # `python -m posjax.fit` has found, `by` one of its methods; `label` is what a reader calls it.
  config.recipes = ({'name': 'none'},)

  # Data other than those that the run was trained on, as in configs/base.py; None takes its own, of
  # which data.task and data.size change what they name. With a task lengths are its sizes. All
  # texts of `glob` are read, none being of a training split; `split` is that of a TFDS data set.
  config.data = ConfigDict({'name': None, 'task': {}, 'size': None, 'glob': None})
  config.data.update({'data_dir': None, 'text_key': None, 'split': None})
  config.examples = 200  # with a task: of each size and depth; 200 tell 0.95 from 0.99
  config.depths = ()  # with a needle: where it lies, from 0 (first) to 1 (last); () draws it

  config.written = False  # with a task: the model writes its answers, token by token, from a cache;
  # else it is asked for each token after the true ones before. Exact match is the same

  config.prompts = ('Fellow citizens',)  # of generation: texts that it goes on from, side by side
  config.new = 200  # tokens to write after each
  # How tokens are drawn (posjax/generation.py): temperature 0 takes the likeliest.
  config.sampler = ConfigDict({'temperature': 0.8, 'top_k': None, 'top_p': 1.0})
  config.chunk = 256  # tokens of a prompt that are read at once; memory grows with it

  config.span = 2.0  # targets of each document, in longest lengths; with 1 the longest window would
  # have nowhere to slide. Documents with fewer are left out, and counted
  config.overlap = 2  # sliding windows that see each token: the stride is length / overlap. With 2,
  # the targets have half a window of context at least, and every second window serves both ways
  config.repeat = 8  # tokens that must stand before a target twice, for the loss by distance; fewer
  # are soon common phrases, many are rare
  config.sinks = 1  # of attention: the first tokens of a window, whose weight counts as sink mass
  config.tokens = 65536  # targets to score, per length and recipe; they decide how many documents
  config.batch_tokens = 8192  # tokens of a batch, at every length; memory grows with it

  config.samples = 1000  # of the bootstrap; more would steady the third digit of an interval
  config.seed = 0  # of the bootstrap; the same documents are drawn for all that is compared

  return experiment(config, variant)


def experiment(config: ConfigDict, variant: str) -> ConfigDict:
  """Returns the variant of `config` asked for. Raises ValueError for an unknown one."""
  if variant not in ('', 'smoke'):
    raise ValueError(f"No variant '{variant}' of this evaluation. Use --eval=FILE or FILE:smoke.")
  if variant == 'smoke':
    config.tokens = 1024
    config.batch_tokens = 256
    config.samples = 100
    config.examples = 8
    config.new = 8
  return config
