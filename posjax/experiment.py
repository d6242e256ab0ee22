"""What an experiment's config says of its model: the decoder, its layers, what it trains with."""

from jax.sharding import Mesh
from ml_collections import ConfigDict

from posjax import composition, sampling
from posjax.attend import Mask
from posjax.attention import Layer
from posjax.decoder import Decoder
from posjax.extension import Spectrum, extend
from posjax.latent import Latent
from posjax.moe import Routing


def build(config: ConfigDict, mesh: Mesh | None = None) -> Decoder:
  """The model of an experiment (configs/base.py, complete: with a vocabulary).

  Its tables have the length that its weights were first trained at, also where training goes on at
  another one. mesh: of the devices that it runs on, which experts must know.

  Raises ValueError for an unknown scheme, hyperparameter or value.
  """
  settings = dict(config.model)
  mask = {key: settings.pop(key) for key in ('window', 'sinks', 'chunk')}
  cut = {key: settings.pop(key) for key in ('segment', 'memory')}
  alike = {
    'position': config.position, 'extended': True, 'mlp': settings['mlp'],
    'cap': settings.pop('attention_cap'), **mask, **cut,
    **{key: settings.pop(key) for key in ('null_logit', 'qk_norm_after')},
  }  # fmt: skip
  settings['experts'] = Routing(**settings['experts'])
  latent = settings.pop('latent')
  settings['latent'] = None if latent.width is None else Latent(**latent)
  pattern = tuple(make_layer(alike, one) for one in config.layers or ({},))
  return Decoder(
    pattern=pattern,
    length=trained_length(config),
    mesh=mesh if any(layer.mlp == 'experts' for layer in pattern) else None,
    **settings,
  )


def trained_length(config: ConfigDict) -> int:
  """Tokens that the weights were first trained at; of sampled positions, the range."""
  if config.extension.trained_length is not None:
    return config.extension.trained_length
  return sampling.make(**config.sampling).reach(config.train.length)


def label(config: ConfigDict) -> str:
  """What a reader calls an experiment's schemes; those of a pattern's layers with slashes."""
  layers = config.layers or ({},)
  names = [composition.label(layer.get('position', config.position)) for layer in layers]
  return ' / '.join(dict.fromkeys(names))


def make_layer(alike: dict, own: dict) -> Layer:
  """A layer of a config's pattern: what it sets itself, and for the rest what all layers have.

  Raises ValueError for an unknown key.
  """
  own = dict(own)
  for key in own.keys() - alike.keys():
    raise ValueError(f"A layer has no '{key}'. It takes: {', '.join(alike)}.")
  settings = alike | own
  scheme = composition.make(settings.pop('position'))
  mask = Mask(**{key: settings.pop(key) for key in ('window', 'sinks', 'chunk')})
  return Layer(scheme=scheme, mask=mask, **settings)


def as_trained(
  model: Decoder, config: ConfigDict, length: int | None = None
) -> tuple[Spectrum, ...]:
  """The spectra the run trains with: the schemes' own, after the config's extension.

  length: tokens of a text, where the extension follows it; None: those of a training row, or of the
    range that its positions are drawn from.
  """
  reach = sampling.make(**config.sampling).reach(config.train.length)
  return extend(model.spectrum(), **{'length': length or reach} | dict(config.extension))
