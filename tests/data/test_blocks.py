"""The block-wise order: every sample once an epoch, whatever the shards, lanes and workers; a node reads its share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edm_ray.data.blocks import BlockOrder
from edm_ray.data.order import rank_positions, shares

ORDERS = st.builds(
    BlockOrder,
    st.lists(st.integers(1, 40), min_size=1, max_size=30).map(tuple),
    st.integers(1, 48),
    st.booleans(),
    st.integers(1, 4),
)
SEEDS = st.integers(0, 2**40)
PROPERTY = settings(max_examples=80, deadline=None)


def epoch_of(order, epoch):
    return np.arange(epoch * order.samples, (epoch + 1) * order.samples, dtype=np.int64)


def flat(order, positions, seed):
    """One number a sample: row, or row + number of rows when mirrored."""
    rows, mirrored = order.locate(positions, seed)
    return rows + mirrored * sum(order.shard_rows)


@given(ORDERS, SEEDS, st.integers(0, 1000))
@PROPERTY
def test_every_epoch_holds_every_sample_once(order, seed, epoch):
    assert np.array_equal(np.sort(flat(order, epoch_of(order, epoch), seed)), np.arange(order.samples))


@given(ORDERS, SEEDS, st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 9), st.integers(1, 200))
@PROPERTY
def test_any_world_size_and_any_resume_point_give_the_same_batches(order, seed, seen, batch, world_size, steps_before):
    """The union over the ranks is the batch, sample for sample, with no replay of what came before."""
    whole = flat(order, np.arange(seen, seen + batch, dtype=np.int64), seed)
    parts = [rank_positions(seen, batch, rank, world_size, order.lanes) for rank in range(world_size)]
    for mine in parts:
        assert np.array_equal(flat(order, mine, seed), whole[mine - seen])
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(seen, seen + batch))
    sequence = flat(order, np.arange(max(0, seen - steps_before), seen + batch, dtype=np.int64), seed)
    assert np.array_equal(sequence[-batch:], whole)


@given(ORDERS, SEEDS, st.integers(0, 50))
@PROPERTY
def test_a_lane_reads_the_shards_it_is_said_to_read_and_no_others(order, seed, epoch):
    positions = epoch_of(order, epoch)
    shards = np.searchsorted(order.first_rows, order.locate(positions, seed)[0], side="right") - 1
    for lane in range(order.lanes):
        said = order.shards_of(epoch, lane, seed)
        assert set(said) == set(shards[positions % order.lanes == lane].tolist()) and len(said) == len(set(said))


@given(ORDERS, SEEDS)
@PROPERTY
def test_with_mirror_images_the_index_space_is_twice_as_large_and_each_row_comes_both_ways(order, seed):
    both = BlockOrder(order.shard_rows, order.lanes, True, order.block_shards)
    rows, mirrored = both.locate(epoch_of(both, 3), seed)
    assert both.samples == 2 * sum(order.shard_rows)
    assert len(set(zip(rows.tolist(), mirrored.tolist(), strict=True))) == both.samples and set(mirrored) == {0, 1}


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 6, 8, 12, 24])
def test_a_node_reads_its_share_of_the_bytes(nodes):
    """ImageNet at 64 x 64 in shards of 64 MiB, 24 lanes: at most lanes / shards more than its share on average."""
    order = BlockOrder((5400,) * 237, 24)
    for epoch in (0, 1, 7):
        read = order.amplification([1] * 237, epoch, 0, nodes)
        assert len(read) == nodes and 1.0 <= np.mean(read) <= 1 + 24 / 237 and max(read) < 1.25
    of_eight = order.amplification([1] * 237, 0, 0, 24, ranks_per_node=8)
    assert len(of_eight) == 3 and max(of_eight) < 1.25


def test_more_lanes_than_shards_read_more_and_the_function_says_so():
    assert np.mean(BlockOrder((100,) * 4, 24).amplification([1] * 4, 0, 0, 1)) > 6


@pytest.mark.parametrize("nodes", [5, 7, 16])
def test_any_node_count_reads_no_lane_twice(nodes):
    order = BlockOrder((100,) * 200, 24)
    read = order.amplification([1] * 200, 0, 0, nodes)
    assert np.mean(read) < 1.25


def test_what_is_needed_at_once_is_a_few_shards_a_lane():
    """In any stretch of a tenth of a window, a lane touches no more shards than a window spans."""
    order = BlockOrder((50,) * 120, 6, block_shards=2)
    positions = epoch_of(order, 0)
    for lane in range(6):
        rows = order.locate(positions[positions % 6 == lane], 1)[0]
        for first in range(0, len(rows) - 10, 10):
            assert len(set((rows[first : first + 10] // 50).tolist())) <= 4


def test_neighbours_in_a_shard_are_spread_and_epochs_differ():
    order = BlockOrder((200,) * 40, 4)
    orders = [flat(order, epoch_of(order, epoch), seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (orders[a] == orders[b]).mean() < 0.01
    lane = orders[0][::4]
    assert (np.abs(np.diff(lane)) == 1).mean() < 0.03


@pytest.mark.parametrize("micro", [None, 5])
def test_shares_are_the_parts_of_the_batches_from_any_point_on(micro):
    for rank in range(3):
        parts = list(shares(40, 100, 20, rank, 3, 12, micro))
        whole = np.concatenate([rank_positions(first, 20, rank, 3, 12) for first in (40, 60, 80)])
        assert np.array_equal(np.concatenate(parts), whole) and all(len(part) <= (micro or 20) for part in parts)
