"""The layers of a decoder from outside: what each has learned, and what its attention was given.

Layers are counted through the depth. The model keeps them in stacks: 'blocks', the repetitions of
its pattern, and 'rest', those left over.

Letters: R repetitions of the pattern, B rows, L tokens.
"""

import jax

from posjax.decoder import Decoder


def place(model: Decoder, layer: int) -> tuple[str, int, int]:
  """Where a layer is in the model: its stack, the repetition of the pattern, its place there."""
  repetition, n = divmod(layer, len(model.pattern))
  if repetition < model.layers // len(model.pattern):
    return 'blocks', repetition, n
  return 'rest', 0, n


def weights(model: Decoder, params, layer: int):
  """The parameters of one layer, as its `Block` has them."""
  stack, repetition, n = place(model, layer)
  return jax.tree.map(lambda x: x[repetition], params[stack][f'layer_{n}'])


def own(params, stack: str, n: int):
  """What the schemes at place n of the pattern have learned there alone: arrays [R, ...]."""
  return params[stack][f'layer_{n}'].get('position', {})


def null_logits(params, stack: str, n: int):
  """null_RH of the layers at place n of the pattern; None where they have none."""
  return params[stack][f'layer_{n}']['attention'].get('null_H')


def shared(model: Decoder, params, n: int):
  """What the scheme at place n of the pattern has learned for all its layers."""
  which = model.schemes.index(model.pattern[n].scheme)
  return params.get(f'position_{which}' if which else 'position', {})


def projected(
  model: Decoder,
  params,
  spectrum,
  tokens_BL,
  positions_BL=None,
  segments_BL=None,
  contiguous=False,
):
  """{stack: [(x, q, k) at each place of the pattern]}, [R, B, L, ...], before the scheme acts on
  them. Arguments as of `Decoder.hidden`."""
  _, kept = model.apply(
    {'params': params},
    tokens_BL,
    spectrum,
    positions_BL,
    segments_BL,
    contiguous=contiguous,
    method='hidden',
    mutable=['intermediates'],
  )
  return {
    stack: [layers[f'layer_{n}']['attention']['projected'][0] for n in range(len(layers))]
    for stack, layers in kept['intermediates'].items()
  }
