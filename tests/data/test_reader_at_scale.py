"""What holds when the data set is large: memory stays, training goes through a cache smaller than the data."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.presets import tiny
from edm_ray.data import reader as reading
from edm_ray.data import stream as streaming
from edm_ray.data.eviction import open_cache
from edm_ray.data.reader import open_reader
from edm_ray.errors import InputError
from edm_ray.models import open_model
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run, model_uri
from edm_ray.training.skipped_shards import read_skipped, skipped_lines
from edm_ray.training.step import TrainingStep
from tests.data.readers import make_dataset, shard_path
from tests.formats import without_format

MIB = 1 << 20


def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def growth(dataset, images, cache, out):
    """Bytes that this process has come to hold at most while it reads so many images."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    with open_reader(dataset, cache=open_cache(cache), threads=2) as reader:
        for first in range(0, images, 256):
            reader.at(np.arange(first, first + 256, dtype=np.int64), 0)
    out.put(status("VmHWM") - before)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_data_set(tmp_path, monkeypatch):
    """Cold and warm: eight times the data (35 MiB more), about the same peak."""
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    fork, peaks = multiprocessing.get_context("fork"), {}
    for shards in (4, 32):
        dataset, images, _ = make_dataset(tmp_path / str(shards), rows=420 * shards, size=32, shards=shards)
        del images
        for state in ("cold", "warm"):
            out = fork.Queue()
            process = fork.Process(target=growth, args=(dataset, 420 * 32, tmp_path / "cache", out))
            process.start()
            peaks[shards, state] = out.get(timeout=60)
            process.join()
    for state in ("cold", "warm"):
        assert peaks[32, state] < peaks[4, state] + 12 * MIB, peaks


@pytest.fixture
def blocks(tmp_path):
    """(data set of 24 shards, configuration that reads it in blocks)"""
    dataset, _, _ = make_dataset(tmp_path / "d", rows=240, shards=24)
    settings = ["order=blocks", "lanes=4", "total_kimg=0.36", "tick_kimg=0.12", "checkpoint_kimg=0.12"]
    return dataset, configure(tiny(dataset.shape), None, settings)


def run(dataset, config, uri):
    claim_run(str(uri), config, dataset)
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(uri)))
    return open_model(model_uri(str(uri))).weights


def test_training_through_a_cache_of_half_the_data_resumes_bit_exactly(blocks, tmp_path, monkeypatch):
    dataset, config = blocks
    shard = 10 * (192 + 8) + 600
    monkeypatch.setattr(streaming, "IDLE_TAKES", 2)
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    calm = run(dataset, config, tmp_path / "calm")
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("EDM_RAY_CACHE_GIB", str(13 * shard / 2**30))
    steps, original = 0, TrainingStep.take

    def step(self, pixels):
        nonlocal steps
        steps += 1
        if steps == 13:  # in the second epoch
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(TrainingStep, "take", step)
    with pytest.raises(KeyboardInterrupt):
        run(dataset, config, tmp_path / "run")
    monkeypatch.setattr(TrainingStep, "take", original)
    assert run(dataset, config, tmp_path / "run") == calm
    assert sum(path.stat().st_size for path in (tmp_path / "small").glob("*.pixels")) <= 13 * shard + 1000


def test_the_two_orders_are_two_runs_and_what_to_do_with_damage_is_not_part_of_one(blocks):
    dataset, config = blocks
    fields = identity_fields(config, dataset.hash)
    assert fields["order"] == "blocks" and "on_damage" not in fields


def test_a_damaged_shard_ends_training_or_is_skipped_as_asked(blocks, tmp_path, monkeypatch):
    dataset, config = blocks
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    shard_path(dataset, 7).unlink()
    for order in ("blocks", "rows"):
        asked = configure(config, None, [f"order={order}", "total_kimg=0.24"])
        with pytest.raises(InputError, match="train-00007-of-00024"):
            run(dataset, asked, tmp_path / order)
        run(dataset, configure(asked, None, ["on_damage=skip"]), tmp_path / order)
        (skipped,) = read_skipped(str(tmp_path / order))
        assert skipped["rows"] == 10 and skipped["shard"] == dataset.shards[7].name
        assert "no such file" in skipped["reason"] and without_format(tmp_path / order) == []
        assert "skipped 1 damaged shards of 10 rows" in skipped_lines(str(tmp_path / order))[0]


def test_a_data_set_that_has_changed_is_not_the_run_s_any_more(blocks, tmp_path, monkeypatch):
    """Prepared anew from other pictures in the same place: refused, and the run stays as it is."""
    dataset, config = blocks
    monkeypatch.setenv("EDM_RAY_CACHE", str(tmp_path / "cache"))
    uri = str(tmp_path / "run")
    calm = run(dataset, config, uri)
    shutil.rmtree(dataset.uri)
    other, _, _ = make_dataset(tmp_path / "d", rows=240, shards=24, seed=1)
    with pytest.raises(InputError, match=r"run: holds another run; what differs: dataset: '.*' -> '.*'"):
        claim_run(uri, config, other)
    assert open_model(model_uri(uri)).weights == calm


def test_more_lanes_than_shards_are_refused_with_the_ways_out(tmp_path):
    dataset, _, _ = make_dataset(tmp_path / "d")
    with pytest.raises(InputError, match=r"6 lanes .* 5 shards .*set lanes to 5 or less"):
        open_reader(dataset, order="blocks", lanes=6, cache=open_cache(tmp_path / "c"))


def test_the_flags_name_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    for name in ("EDM_RAY_CACHE", "EDM_RAY_CACHE_GIB"):
        monkeypatch.setenv(name, "")
    make_dataset(tmp_path / "d")
    command = ["train", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "run"), "--preset", "tiny", "--no-ray"]
    assert main([*command, "--cache-dir", str(tmp_path / "here"), "--cache-gib", "0.000001"]) == 2
    assert main([*command, "--cache-dir", str(tmp_path / "here"), "--cache-gib", "1"]) == 0
    assert len(list((tmp_path / "here").glob("*.pixels"))) == 1
