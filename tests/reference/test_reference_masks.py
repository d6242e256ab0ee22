"""Masks against transformers."""

import jax.numpy as jnp
import numpy as np

from posjax.attend import Mask, Rows, Tile


def visible(size, L):
  rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L))
  return Mask(window=size).visible(Tile(rows, rows))


def test_a_window_counts_the_querys_own_key_as_in_transformers(published):
  for case in published('masks-transformers').cases:
    L = len(case.window_IJ)
    np.testing.assert_array_equal(visible(case.size, L), case.window_IJ)
    assert (visible(case.size + 1, L) != case.window_IJ).any()  # the known mistake


def test_chunks_are_those_of_transformers_and_overlap_with_no_window(published):
  for case in published('masks-transformers').cases:
    L = len(case.chunk_IJ)
    rows = Rows(index_L=jnp.arange(L), pos_L=jnp.arange(L)).with_begin()
    got_IJ = Mask(chunk=case.size).visible(Tile(rows, rows))
    np.testing.assert_array_equal(got_IJ, case.chunk_IJ)
    assert case.size == 1 or (got_IJ != visible(case.size, L)).any()
