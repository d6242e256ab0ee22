"""What a run has learned: the attention of every layer and head of its checkpoint, on text.

Letters: N layers, B documents, L tokens, I/J queries/keys, H heads, R distances 0 .. L - 1.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from posjax import composition, data, layers, loading, sampling
from posjax.atlas import measure
from posjax.atlas.portrait import PLAIN, Portrait, portray, recipes_of
from posjax.attend.rows import HIDDEN
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.evaluation import choose
from posjax.experiment import as_trained, label
from posjax.positions.base import merged

DOCUMENTS = 8  # over which attention is averaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
  """A run's newest whole checkpoint, and its validation documents."""

  name: str
  config: ConfigDict
  model: Decoder
  params: Any
  documents: data.Documents

  def recipes(self, spectrum) -> dict[str, Any]:
    """As trained, and extended; a run that was trained extended stays as it is."""
    if self.config.extension.name != 'none':
      return {PLAIN: spectrum}
    return recipes_of(spectrum, self.config.train.length)

  def own(self, layer: int):
    """What the layer's scheme has learned there alone."""
    stack, repetition, n = layers.place(self.model, layer)
    return jax.tree.map(lambda leaf: leaf[repetition], layers.own(self.params, stack, n))

  def position(self, layer: int):
    """All that the layer's scheme has learned."""
    _, _, n = layers.place(self.model, layer)
    return merged(layers.shared(self.model, self.params, n), self.own(layer))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
  """Attention of a run on the first tokens of validation documents.

  name: the run's; setting: schemes and text, in words; length: trained tokens.
  p_NHIJ: weights over the trained length, on one document.
  over_distance: {recipe: weight_NHR}, means over all documents and queries, out to the reach.
  """

  name: str
  setting: str
  length: int
  p_NHIJ: np.ndarray
  over_distance: Mapping[str, np.ndarray]


def load(workdir: str | Path) -> Trained:
  """Raises ValueError if `workdir` holds no run, or no whole checkpoint."""
  loaded = loading.load(workdir)
  data_config, tokenizer = loaded.config.data, loaded.tokenizer
  documents = data.load(data_config, data_config.validation_split, tokenizer)
  if isinstance(documents, data.Examples):
    raise ValueError(
      f"The run in '{workdir}' was trained on '{data_config.name}', and the atlas draws what is "
      'attended to on text. Name the --workdir of a run on text.'
    )
  return Trained(
    name=loaded.workdir.resolve().name,
    config=loaded.config,
    model=loaded.model,
    params=loaded.params,
    documents=documents,
  )


def portraits(trained: Trained) -> list[Portrait]:
  """A scheme's numbers with what was learned: of each layer, but once for all that are alike."""
  config, model = trained.config, trained.model
  spectra, pattern = as_trained(model, config), config.layers or ({},)
  alike = {}  # by what tells them apart
  for layer in range(model.layers):
    _, _, n = layers.place(model, layer)
    alone = layer if jax.tree.leaves(trained.own(layer)) else None
    alike.setdefault((model.pattern[n].scheme, model.pattern[n].extended, alone), (layer, n))
  return [
    portray(
      composition.label(pattern[n].get('position', config.position)),
      model.pattern[n].scheme,
      trained.position(layer),
      trained.recipes(spectra[n]),
      {},
      model.dims,
      config.train.length,
      f'{trained.name}, layer {layer + 1} of {model.layers}' if len(alike) > 1 else trained.name,
    )
    for layer, n in alike.values()
  ]


def attention(trained: Trained) -> Attention:
  """Runs the model on text, once for each recipe. Memory grows with heads x reach^2."""
  model, length = trained.model, trained.config.train.length
  sampler = sampling.make(**trained.config.sampling).evaluation
  longest = max(len(trained.documents[i]) for i in range(len(trained.documents)))
  maps, over_distance = [], {}
  for recipe, spectra in trained.recipes(as_trained(model, trained.config)).items():
    size = min(measure.reach(length, model.capacity(spectra)), longest)
    pos_L = None  # 0, 1, 2, ...
    if sampler != sampling.PLAIN:
      size = min(size, sampler.reach(length))
      pos_L = sampler(jax.random.key(trained.config.seed), jnp.arange(size))
    token_BL, _ = choose(trained.documents, targets=size - 1, tokens=DOCUMENTS * (size - 1))
    spectra = measure.on_device(spectra)
    pos_BL = None if pos_L is None else jnp.broadcast_to(pos_L, token_BL.shape)
    stacks = projected(model, trained.params, spectra, token_BL, pos_BL)
    weight_NHR = []
    for layer in range(model.layers):
      stack, repetition, n = layers.place(model, layer)
      weight_BHR = []
      for document in zip(*(x[repetition] for x in stacks[stack][n]), strict=True):
        null_RH = layers.null_logits(trained.params, stack, n)
        p_HIJ = weights_of(
          model.pattern[n], trained.position(layer), spectra[n], *document, pos_L,
          None if null_RH is None else null_RH[repetition],
        )  # fmt: skip
        if recipe == PLAIN and not weight_BHR:
          maps.append(p_HIJ[:, :length, :length])
        weight_BHR.append(measure.along_diagonals(p_HIJ))
      weight_NHR.append(np.mean(weight_BHR, axis=0))
    over_distance[recipe] = np.stack(weight_NHR)
  B, L = token_BL.shape
  return Attention(
    name=trained.name,
    setting=f'{label(trained.config)}, the first {L:,} tokens of {B} validation documents',
    length=length,
    p_NHIJ=np.stack(maps),
    over_distance=over_distance,
  )


projected = jax.jit(layers.projected, static_argnames='model')


def weights_of(
  layer: Layer, params, spectrum, x_LD, q_LHK, k_LGK, pos_L, null_H=None
) -> np.ndarray:
  """p_HIJ of one layer on one document, under whatever the spectrum says of far keys."""
  layer = layer.under(spectrum, q_LHK.shape[-1] ** -0.5)
  s_HIJ = measure.score_map(
    layer.scheme, params, spectrum, x_LD, q_LHK, k_LGK, layer.mask, pos_L, layer.cap
  )
  if layer.segment is not None:  # a query sees its segment, and the memory before it
    place_L = np.arange(len(x_LD))
    oldest_I = place_L // layer.segment * layer.segment - layer.memory
    s_HIJ = jnp.where(place_L >= oldest_I[:, None], s_HIJ, HIDDEN)
  return measure.weights(s_HIJ, null_H)
