"""The adaptive softmax: ids in clusters, of which the first is met at every token.

Axes: V vocabulary, C clusters beyond the first.
"""

import jax
import jax.numpy as jnp


def log_probabilities(logits_BLV, clusters_BLC, cutoffs: tuple[int, ...]):
  """log p of each id (Grave et al. 2017, arXiv:1609.04309): of the first cluster's ids, which share
  a softmax with the other clusters, and of theirs, as log p of the cluster and of the id within it.

  cutoffs: first ids of the other clusters, C of them.
  """
  first, *rest = jnp.split(logits_BLV, cutoffs, axis=-1)
  first = jax.nn.log_softmax(jnp.concatenate([first, clusters_BLC], axis=-1), axis=-1)
  first, clusters_BLC = jnp.split(first, cutoffs[:1], axis=-1) if rest else (first, None)
  within = [
    clusters_BLC[..., n : n + 1] + jax.nn.log_softmax(logits, axis=-1)
    for n, logits in enumerate(rest)
  ]
  return jnp.concatenate([first, *within], axis=-1)


def check(cutoffs: tuple[int, ...], vocabulary: int, cap: float | None) -> None:
  """Raises ValueError for clusters that do not follow each other within the vocabulary, or whose
  logarithms would be capped."""
  edges = [0, *cutoffs, vocabulary]
  if edges != sorted(set(edges)):
    raise ValueError(
      f'model.cutoffs = {cutoffs} do not cut {vocabulary} ids into clusters. Use ids that rise, '
      'above 0 and below model.vocabulary.'
    )
  if cap is not None:
    raise ValueError(
      'An adaptive softmax gives logarithms of probabilities, which no model.logit_cap is made '
      'for. Use it or model.cutoffs.'
    )
