from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_ray.data.order import rank_positions, sample_indices


@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_of_the_rows(rows, seed, epoch):
    positions = np.arange(epoch * rows, (epoch + 1) * rows, dtype=np.int64)
    assert np.array_equal(np.sort(sample_indices(positions, rows, seed)), np.arange(rows))


@given(st.integers(1, 500), st.integers(0, 10**12), st.integers(1, 16), st.integers(16, 64))
@settings(max_examples=100, deadline=None)
def test_the_union_over_ranks_is_the_batch_for_any_world_size(batch, start, world_size, lanes):
    parts = [rank_positions(start, batch, rank, world_size, lanes) for rank in range(world_size)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(start, start + batch))


def test_shares_are_equal_where_the_world_size_divides_the_lanes():
    for world_size in (1, 2, 3, 4, 5, 6, 7, 8):
        shares = [len(rank_positions(840 * 3, 840, rank, world_size, 840)) for rank in range(world_size)]
        assert len(set(shares)) == 1


def test_a_position_can_be_asked_for_alone():
    """Resuming needs no replay: any single position gives what the whole sequence gives there."""
    everything = sample_indices(np.arange(5000, dtype=np.int64), 777, 3)
    for position in (0, 776, 777, 4321):
        assert sample_indices(np.array([position], np.int64), 777, 3)[0] == everything[position]


def test_epochs_and_seeds_give_unlike_orders():
    rows = 1000
    epochs = sample_indices(np.arange(3 * rows, dtype=np.int64), rows, 0).reshape(3, rows)
    other = sample_indices(np.arange(rows, dtype=np.int64), rows, 1)
    for a, b in ((epochs[0], epochs[1]), (epochs[1], epochs[2]), (epochs[0], other), (epochs[0], np.arange(rows))):
        assert (a == b).mean() < 0.01
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15


def test_rows_are_spread_evenly_over_an_epoch():
    """Mean place of each row over 400 epochs is the middle, within 5 standard errors."""
    rows, epochs = 64, 400
    order = sample_indices(np.arange(rows * epochs, dtype=np.int64), rows, 9).reshape(epochs, rows)
    places = np.argsort(order, axis=1).mean(axis=0)
    error = np.sqrt((rows**2 - 1) / 12 / epochs)
    assert np.abs(places - (rows - 1) / 2).max() < 5 * error
