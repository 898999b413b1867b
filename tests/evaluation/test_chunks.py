"""Chunks: what enters a sum, and what never does. No Ray."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.chunks import POOL_START, Generator, chunks_for, chunks_of, gather, read_chunk, write_chunk
from edm_ray.storage.artifacts import is_stored, key_of, path_of

GENERATOR = Generator(model="m", extractor="e", labels="random", micro_batch=50, device="cpu")


@pytest.fixture
def stored(tmp_path):
    """Four chunks of three images; feature values name their seed."""
    chunks = chunks_of(GENERATOR, sampler(num_steps=4), "search", 4, 3)
    for chunk in chunks:
        write_chunk(str(tmp_path), chunk, chunk.seeds.numpy().astype(np.int32)[:, None].repeat(2, axis=1))
    return str(tmp_path), chunks


@pytest.mark.parametrize("pool", POOL_START)
def test_evaluations_of_any_size_share_their_chunks(pool):
    """Once 150 and 200 images, or 5,000 and 10,000, had no chunk in common."""
    start, settings = POOL_START[pool], sampler(num_steps=4)
    for first, num in ((0, 100), (0, 150), (150, 150), (0, 5000), (5000, 10000), (7, 1)):
        chunks = chunks_for(GENERATOR, settings, start + first, num)
        assert all((chunk.first - start) % 100 == 0 and chunk.size == 100 for chunk in chunks)
        seeds = [seed for chunk in chunks for seed in chunk.seeds.tolist()]
        assert set(range(start + first, start + first + num)) <= set(seeds) and len(seeds) < num + 200
    few, many = (chunks_for(GENERATOR, settings, start, num) for num in (150, 20_000))
    assert few == many[:2] and [key_of(chunk) for chunk in few] == [key_of(chunk) for chunk in many[:2]]


def test_a_chunk_counts_once_in_whatever_order_and_number_it_is_named(stored):
    store, chunks = stored
    expected = np.arange(12)
    for order in itertools.islice(itertools.permutations([*chunks, chunks[0], chunks[2]]), 0, 720, 37):
        features, seeds = gather(store, order)
        assert np.array_equal(seeds, expected) and np.array_equal(features[:, 0], expected)


def test_seeds_beyond_those_wanted_are_left_out(stored):
    store, chunks = stored
    features, seeds = gather(store, chunks, range(2, 10))
    assert seeds.tolist() == list(range(2, 10)) == features[:, 0].tolist()


def test_chunks_that_share_seeds_or_are_of_two_samplers_are_refused(stored):
    store, chunks = stored
    with pytest.raises(InputError, match="share seeds; an image counts once"):
        gather(store, [chunks[0], dataclasses.replace(chunks[1], first=2)])
    other = dataclasses.replace(chunks[1], settings=sampler(num_steps=5))
    with pytest.raises(InputError, match="of two samplers"):
        gather(store, [chunks[0], other])


@pytest.mark.parametrize("cut", [0, 7, 40, -1])
def test_a_truncated_chunk_is_refused_and_counts_as_missing(stored, cut, caplog):
    store, chunks = stored
    path = Path(path_of(store, chunks[0]))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IntegrityError, match="delete it and run again"):
        read_chunk(store, chunks[0])
    assert not is_stored(store, chunks[0]) and "it is made again" in caplog.text
    assert is_stored(store, chunks[1])


def test_a_flipped_bit_anywhere_in_a_chunk_never_gives_other_features(stored):
    store, chunks = stored
    path = Path(path_of(store, chunks[0]))
    whole = path.read_bytes()
    good = read_chunk(store, chunks[0])
    for index in range(0, len(whole), 3):
        path.write_bytes(whole[:index] + bytes([whole[index] ^ 4]) + whole[index + 1 :])
        with contextlib.suppress(IntegrityError):  # a byte of no meaning changes nothing
            assert np.array_equal(read_chunk(store, chunks[0]), good)


def test_a_chunk_of_other_settings_under_this_name_is_refused(stored):
    store, chunks = stored
    Path(path_of(store, chunks[0])).write_bytes(Path(path_of(store, chunks[1])).read_bytes())
    with pytest.raises(IntegrityError, match="other settings"):
        read_chunk(store, chunks[0])


@pytest.mark.parametrize(
    "change",
    [
        {"model": "n"},
        {"extractor": "f"},
        {"labels": "3"},
        {"micro_batch": 25},
        {"device": "cuda"},
        {"precision": "bf16"},
    ],
)
def test_whatever_decides_the_features_is_in_the_key(change):
    one, other = (
        key_of(chunks_of(generator, sampler(num_steps=4), "search", 1, 3)[0])
        for generator in (GENERATOR, dataclasses.replace(GENERATOR, **change))
    )
    assert one != other
