"""The readers that `ingest.py` compares, each consumed as its documentation shows; one consumer a process."""

from __future__ import annotations

import io
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
Batches = Iterator[tuple[int, Any]]


def ours(uri: str, rank: int, world: int, count: int, cache: str) -> Batches:
    from edm_ray.data.eviction import open_cache
    from edm_ray.data.manifest import open_dataset
    from edm_ray.data.order import shares
    from edm_ray.data.reader import open_reader

    with open_reader(open_dataset(uri), cache=open_cache(cache)) as reader:
        reader.follow(shares(0, count * world, BATCH * world, rank, world, 840), 0)
        for positions in shares(0, count * world, BATCH * world, rank, world, 840):
            images, _ = reader.at(positions, 0)
            yield len(images), images


def fetching(uri: str, rank: int, world: int, count: int, cache: str) -> Batches:
    """What a cold start cannot be faster than: all shards, eight at a time, kept nowhere."""
    from concurrent.futures import ThreadPoolExecutor

    from edm_ray.data.manifest import open_dataset
    from edm_ray.storage import uris

    dataset = open_dataset(uri)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda shard: len(uris.read_bytes(uris.join(uri, shard.name))), dataset.shards))
    yield 0, None


def decoding(uri: str, rank: int, world: int, count: int, cache: str) -> Batches:
    """As `fetching`; checked and decoded, too."""
    from edm_ray.data.fetch import fetch
    from edm_ray.data.manifest import open_dataset

    dataset = open_dataset(uri)
    fetch(dataset, dataset.shards, lambda shard, images, labels: None)
    yield 0, None


def dataloader(path: str, rank: int, world: int, count: int, cache: str) -> Batches:
    import torch
    from PIL import Image

    class Zipped(torch.utils.data.Dataset):
        def __init__(self) -> None:
            self.names, self.zip = sorted(zipfile.ZipFile(path).namelist()), None

        def __len__(self) -> int:
            return len(self.names)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            self.zip = self.zip or zipfile.ZipFile(path)
            image = np.array(Image.open(io.BytesIO(self.zip.read(self.names[index]))))
            return torch.from_numpy(image).permute(2, 0, 1), 0

    data = Zipped()
    sampler = torch.utils.data.DistributedSampler(data, world, rank, shuffle=True)
    loader = torch.utils.data.DataLoader(data, BATCH, sampler=sampler, num_workers=1, persistent_workers=True)
    seen = 0
    while seen < count:
        for images, _ in loader:
            yield len(images), images
            if (seen := seen + len(images)) >= count:
                return


def webdataset(path: str, rank: int, world: int, count: int, cache: str) -> Batches:
    import webdataset as wds

    pipeline = wds.WebDataset(path, shardshuffle=True, nodesplitter=wds.split_by_worker, empty_check=False)
    batches = pipeline.shuffle(4096).decode("pil").to_tuple("png", "cls").map(lambda x: (np.array(x[0]), x[1]))
    seen = 0
    for images, _ in batches.batched(BATCH):
        yield len(images), images
        if (seen := seen + len(images)) >= count:
            return


def mosaic(path: str, rank: int, world: int, count: int, cache: str) -> Batches:
    import torch
    from streaming import StreamingDataset

    data = StreamingDataset(local=path, shuffle=True, batch_size=BATCH)
    seen = 0
    for sample in torch.utils.data.DataLoader(data, BATCH, num_workers=1):
        yield len(sample["image"]), sample["image"]
        if (seen := seen + len(sample["image"])) >= count:
            return


CONSUMERS: dict[str, Callable[[str, int, int, int, str], Batches]] = {
    "ours": ours,
    "fetching": fetching,
    "decoding": decoding,
    "dataloader": dataloader,
    "webdataset": webdataset,
    "mosaic": mosaic,
}


def measure(batches: Batches) -> dict[str, float]:
    """first_s, images_per_s after the first batch, images a second of CPU time, peak and anonymous memory."""
    began, seen = time.perf_counter(), 0
    first_s = start = cpu = 0.0
    for count, _ in batches:
        if not first_s:
            first_s, start, cpu = time.perf_counter() - began, time.perf_counter(), time.process_time()
            continue
        seen += count
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "first_s": first_s,
        "images_per_s": seen / (time.perf_counter() - start),
        "images_per_cpu_s": seen / max(time.process_time() - cpu, 1e-9),
        "peak_mib": int(status["VmHWM"].split()[0]) / 1024,
        "anonymous_mib": int(status["RssAnon"].split()[0]) / 1024,
    }


def consume(arguments: list[str]) -> None:
    """One consumer, in a process of its own."""
    import torch

    import edm_ray.data.reader  # noqa: F401 - imported before the clock starts

    torch.set_num_threads(1)
    kind, place, rank, world, count, cache = arguments
    print(json.dumps(measure(CONSUMERS[kind](place, int(rank), int(world), int(count), cache))))


def ray_data(place: str, world: int, count: int) -> list[dict[str, float]]:
    """Ray Data on the raw shards: files and a buffer of 4,096 rows shuffled, consumers are actors. Ray is up."""
    import ray

    ray.data.DataContext.get_current().enable_progress_bars = False

    @ray.remote(num_cpus=0)
    class Consumer:
        def consume(self, shard: Any) -> dict[str, float]:
            import torch

            def batches() -> Batches:
                for table in shard.iter_batches(
                    batch_size=BATCH, batch_format="pyarrow", local_shuffle_buffer_size=4096
                ):
                    pixels = np.frombuffer(b"".join(table["image"].to_pylist()), np.uint8).reshape(-1, 3, 32, 32)
                    yield len(pixels), torch.from_numpy(pixels.copy())

            return measure(batches())

    where: dict[str, Any] = {}
    if place.startswith("s3://"):
        import pyarrow.fs

        endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        where["filesystem"] = pyarrow.fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
        place = place.removeprefix("s3://")
    data = ray.data.read_parquet(place, file_extensions=["parquet"], shuffle="files", **where)
    consumers = [Consumer.remote() for _ in range(world)]
    ray.get([consumer.__ray_ready__.remote() for consumer in consumers])
    shards = data.streaming_split(world)
    return ray.get([consumer.consume.remote(shard) for consumer, shard in zip(consumers, shards)])


if __name__ == "__main__":
    consume(sys.argv[1:])
