"""Costs are counted by hand on a model small enough to do so."""

import jax
import numpy as np
import optax
import pytest

from posjax import positions
from posjax.attend import Mask
from posjax.attention import Layer
from posjax.cost import cache_bytes_per_token, count_parameters, flops_per_token, peak_flops
from posjax.decoder import Decoder
from posjax.moe import Routing
from posjax.training import init_state

# width 6, 2 layers, 4 query and 2 key/value heads of 4, vocabulary 11, gated MLP of 10
SIZES = {
  'length': 8, 'vocabulary': 11, 'width': 6, 'layers': 2, 'heads': 4, 'kv_heads': 2,
  'head_width': 4, 'mlp_width': 10,
}  # fmt: skip
BLOCK = 6 * 16 + 6 * 8 + 6 * 8 + 16 * 6 + 3 * 6 * 10  # query, key, value, output; three of the MLP


def abstract(scheme='none', window=None, **changes):
  layer = Layer(scheme=positions.make(scheme), mask=Mask(window=window))
  model = Decoder(pattern=(layer,), **SIZES | changes)
  init = lambda key: init_state(model, optax.identity(), key).params
  return model, jax.eval_shape(init, jax.random.key(0))


def test_a_token_costs_two_flops_a_weight_and_four_a_visible_key_and_number_of_a_head():
  model, params = abstract()
  # Over a row of 8 tokens the queries see 1, 2, .., 8 keys: 4.5 on average.
  forward = 2 * (2 * BLOCK + 6 * 11) + 2 * 4 * (4 * 4 * 4.5)
  assert flops_per_token(model, params, 8) == 3 * forward


def test_a_window_is_all_that_a_query_pays_for():
  model, params = abstract(window=3)
  keys = (1 + 2 + 3 * 6) / 8
  forward = 2 * (2 * BLOCK + 6 * 11) + 2 * 4 * (4 * 4 * keys)
  assert flops_per_token(model, params, 8) == pytest.approx(3 * forward, rel=1e-12)


def test_a_window_longer_than_the_row_costs_no_more_than_none():
  model, params = abstract(window=100)
  assert flops_per_token(model, params, 8) == flops_per_token(*abstract(), 8)


def test_a_tied_head_costs_what_a_head_of_its_own_does():
  assert flops_per_token(*abstract(tied=True), 8) == flops_per_token(*abstract(), 8)


def test_a_plain_mlp_has_two_matrices_and_multi_query_attention_one_key_head():
  model, params = abstract(mlp='plain', kv_heads=1)
  block = 6 * 16 + 6 * 4 + 6 * 4 + 16 * 6 + 2 * 6 * 10
  forward = 2 * (2 * block + 6 * 11) + 2 * 4 * (4 * 4 * 4.5)
  assert flops_per_token(model, params, 8) == 3 * forward


def test_a_token_pays_for_the_experts_it_chooses_the_shared_ones_and_the_router():
  routing = Routing(count=8, chosen=2, shared=3, width=5)
  model, params = abstract(mlp='experts', experts=routing)
  block = BLOCK - 3 * 6 * 10 + 6 * 8 + (2 + 3) * 3 * 6 * 5
  forward = 2 * (2 * block + 6 * 11) + 2 * 4 * (4 * 4 * 4.5)
  assert flops_per_token(model, params, 8) == 3 * forward
  held = 6 * 8 + 8 + (8 + 3) * 3 * 6 * 5  # router, bias, and every expert
  assert count_parameters(params)['blocks/mlp'] == 2 * held


def test_norms_and_positions_cost_nothing():
  for scheme, norm in (('t5', 'rms'), ('learned', 'rms'), ('none', 'layer')):
    assert flops_per_token(*abstract(scheme, norm=norm), 8) == flops_per_token(*abstract(), 8)


@pytest.mark.parametrize('scheme', positions.names())
def test_groups_hold_every_parameter_once(scheme):
  _, params = abstract(scheme)
  groups = count_parameters(params)
  assert sum(groups.values()) == sum(np.prod(x.shape) for x in jax.tree.leaves(params))


def test_parameters_are_counted_by_block():
  groups = count_parameters(abstract('t5')[1])
  attention, norms = 6 * 16 + 6 * 8 + 6 * 8 + 16 * 6, 2 * 6
  assert groups == {
    'blocks/attention': 2 * attention,
    'blocks/attention_norm': norms,
    'blocks/mlp': 2 * 3 * 6 * 10,
    'blocks/mlp_norm': norms,
    'embedding_VD': 66,
    'head_DV': 66,
    'final_norm': 6,
    'position': 32 * 4,
  }


@pytest.mark.parametrize(
  ('scheme', 'changes', 'numbers'),
  [  # of a layer: keys and values of each key/value head, and what a score needs beside them
    ('none', {}, 2 * 4 + 2 * 4),
    ('rope', {}, 2 * 4 + 2 * 4),
    ('t5', {}, 2 * 4 + 2 * 4),
    ('none', {'kv_heads': 1}, 4 + 4),
    ('none', {'window': 3}, 2 * 4 + 2 * 4),
    ('pope', {}, 2 * 8 + 2 * 4),  # keys of twice the width
    ('fox', {}, 2 * 4 + 2 * 4 + 4),  # the sum of log gates, of each of four query heads
  ],
)
def test_decoding_keeps_keys_values_and_features_of_each_token_in_every_layer(
  scheme, changes, numbers
):
  assert cache_bytes_per_token(abstract(scheme, dtype='float32', **changes)[0]) == 2 * 4 * numbers


def test_a_cache_has_the_type_of_the_activations_and_gates_add_up_in_float32():
  assert cache_bytes_per_token(abstract('fox', dtype='bfloat16')[0]) == 2 * (2 * 16 + 4 * 4)


@pytest.mark.parametrize(
  ('kind', 'tera'),
  [
    ('NVIDIA H100 80GB HBM3', 989),
    ('NVIDIA H100 PCIe', 756),
    ('NVIDIA H200', 989),
    ('NVIDIA GH200 480GB', 989),
    ('NVIDIA A100-SXM4-80GB', 312),
    ('NVIDIA B200', 2250),
    ('TPU v4', 275),
    ('TPU v5 lite', 197),
    ('TPU v5e', 197),
    ('TPU v5', 459),
    ('TPU v5p', 459),
    ('TPU v6 lite', 918),
    ('cpu', None),
    ('NVIDIA GeForce RTX 3090', None),
  ],
)
def test_the_peak_is_known_by_the_names_that_jax_gives_devices(kind, tera):
  assert peak_flops(kind) == (tera and tera * 1e12)
