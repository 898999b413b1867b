"""Images a second into training: this reader, Ray Data, a DataLoader over PNGs in a zip, WebDataset, streaming.

    python benchmarks/ingest.py [--rounds 3] [--images 50000] [--skip ray] [--out ingest.json]

50,000 pictures of 32x32x3 (noise), shuffled, one consumer and two, each a process with one thread; cold (nothing
cached) and warm; from local disk and from S3 (moto on loopback, which shares the CPUs). Rounds are interleaved; medians
with least and most are printed as a Markdown table. CPU time is the consumer's own, so it is not shown for those that
leave work to other processes. "First batch" counts from opening the data set, imports apart. Then
memory: the reader on a data set ten times as large. webdataset and mosaicml-streaming run where they are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
SLOW_IMAGES = 4096
"""Those that decode PNGs are timed over so many images."""
Batches = Iterator[tuple[int, Any]]


def ours(uri: str, rank: int, world: int, count: int, cache: str) -> Batches:
    from edm_ray.data.manifest import open_dataset
    from edm_ray.data.order import shares
    from edm_ray.data.reader import open_reader

    with open_reader(open_dataset(uri), cache_dir=cache) as reader:
        for positions in shares(0, count * world, BATCH * world, rank, world, 840):
            images, _ = reader.at(positions, 0)
            yield len(images), images


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


def run(kind: str, place: str, world: int, count: int, cache: str) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--consume", kind, place]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(count), cache],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=600)
        if process.returncode:
            raise SystemExit(f"{kind}: {errors[-2000:]}")
        found.append(json.loads(out.splitlines()[-1]))
    return found


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

    data = ray.data.read_parquet(place, file_extensions=["parquet"], shuffle="files")
    consumers = [Consumer.remote() for _ in range(world)]
    ray.get([consumer.__ray_ready__.remote() for consumer in consumers])
    shards = data.streaming_split(world)
    return ray.get([consumer.consume.remote(shard) for consumer, shard in zip(consumers, shards)])


def prepare(folder: Path, images: int) -> dict[str, str]:
    """The same pictures in every form; paths by name."""
    from edm_ray.data.format import encode_png
    from edm_ray.data.write import write_dataset

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (images, 3, 32, 32), np.uint8), np.arange(images) % 10
    names = [str(digit) for digit in range(10)]
    write_dataset(str(folder / "raw"), pixels, labels, names, name="n", split="train", num_shards=16, encoding="raw")
    pictures = [encode_png(picture) for picture in pixels[: min(images, 20_000)]]
    with zipfile.ZipFile(folder / "png.zip", "w", zipfile.ZIP_STORED) as archive:
        for number, picture in enumerate(pictures):
            archive.writestr(f"{number % 10}/{number:08d}.png", picture)
    if importlib.util.find_spec("webdataset"):
        import webdataset as wds

        with wds.ShardWriter(str(folder / "wds-%04d.tar"), maxcount=5000) as writer:
            for number, picture in enumerate(pictures):
                writer.write({"__key__": f"{number:08d}", "png": picture, "cls": number % 10})
    if importlib.util.find_spec("streaming"):
        from streaming import MDSWriter

        with MDSWriter(out=str(folder / "mds"), columns={"image": "ndarray:uint8", "label": "int"}) as writer:
            for picture in pixels[:20_000]:
                writer.write({"image": picture, "label": 0})
    return {"raw": str(folder / "raw"), "zip": str(folder / "png.zip")}


def start_s3(folder: Path) -> subprocess.Popen[bytes]:
    """moto in a process of its own, the raw shards uploaded."""
    import socket

    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for path in (folder / "raw").iterdir():
        client.upload_file(str(path), "bucket", f"raw/{path.name}")
    return server


def cases(paths: dict[str, str], folder: Path, images: int, skip: list[str]) -> dict[str, Callable[[int], list[dict]]]:
    """Name -> consumers -> what each measured. Cold ones come before warm ones, which find their cache."""

    def reader(place: str, cold: bool) -> Callable[[int], list[dict]]:
        def call(world: int) -> list[dict]:
            cache = folder / f"cache-{'s3' if place.startswith('s3') else 'local'}"
            if cold:
                shutil.rmtree(cache, ignore_errors=True)
            return run("ours", place, world, 2 * images, str(cache))

        return call

    found = {
        "edm_ray, local, cold": reader(paths["raw"], True),
        "edm_ray, local, warm": reader(paths["raw"], False),
        "edm_ray, S3, cold": reader("s3://bucket/raw", True),
        "edm_ray, S3, warm": reader("s3://bucket/raw", False),
        "DataLoader, PNGs in a zip": lambda world: run("dataloader", paths["zip"], world, SLOW_IMAGES, ""),
    }
    if "ray" not in skip:
        found["Ray Data, raw Parquet, local"] = lambda world: ray_data(paths["raw"], world, images)
    if importlib.util.find_spec("webdataset"):
        place = str(folder / "wds-{0000..0003}.tar")
        found["webdataset"] = lambda world: run("webdataset", place, world, SLOW_IMAGES, "")
    if importlib.util.find_spec("streaming"):
        found["mosaicml-streaming"] = lambda world: run("mosaic", str(folder / "mds"), world, SLOW_IMAGES, "")
    return found


def memory(folder: Path, images: int) -> list[tuple[int, dict[str, float]]]:
    """Peak memory of a warm consumer that reads the same number of images from a small and from a tenfold data set."""
    from edm_ray.data.write import write_dataset

    found = []
    for factor in (1, 10):
        place, cache = folder / f"memory-{factor}", str(folder / "memory-cache")
        pixels = np.random.default_rng(factor).integers(0, 256, (factor * images, 3, 32, 32), np.uint8)
        labels = np.zeros(len(pixels), np.int64)
        shards = 16 * factor
        write_dataset(str(place), pixels, labels, [], name="n", split="train", num_shards=shards, encoding="raw")
        del pixels
        run("ours", str(place), 1, BATCH * 2, cache)
        found.append((factor * images, run("ours", str(place), 1, 10 * images, cache)[0]))
        shutil.rmtree(place)
    return found


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def main() -> None:
    if sys.argv[1:2] == ["--consume"]:
        consume(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--skip", nargs="*", default=[], choices=["ray", "memory"])
    parser.add_argument("--out")
    args = parser.parse_args()
    results: dict[str, list[list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory(prefix="ingest-") as name:
        folder = Path(name)
        paths = prepare(folder, args.images)
        server = start_s3(folder)
        if "ray" not in args.skip:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            import ray

            ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
        try:
            for number in range(args.rounds):
                for world in (1, 2):
                    for label, call in cases(paths, folder, args.images, args.skip).items():
                        results.setdefault(f"{label}|{world}", []).append(call(world))
                print(
                    f"round {number + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True
                )
        finally:
            server.terminate()
            server.wait()
            if "ray" not in args.skip:
                ray.shutdown()
        tenfold = [] if "memory" in args.skip else memory(folder, args.images)
    print("| case | consumers | images/s each | images/s of CPU time | first batch, s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for key, rounds in results.items():
        label, world = key.split("|")
        flat = [consumer for one in rounds for consumer in one]
        columns = [("images_per_s", 0), ("images_per_cpu_s", 0), ("first_s", 2), ("peak_mib", 0)]
        cells = [spread([consumer[column] for consumer in flat], digits) for column, digits in columns]
        if not label.startswith("edm_ray"):
            cells[1] = "-"
        print(f"| {label} | {world} | " + " | ".join(cells) + " |")
    for images, found in tenfold:
        print(
            f"memory, {images:,} images: peak {found['peak_mib']:.0f} MiB, anonymous {found['anonymous_mib']:.0f} MiB, "
            f"{found['images_per_s']:,.0f} images/s, first batch {found['first_s']:.2f} s"
        )
    for package in ("webdataset", "streaming"):
        if not importlib.util.find_spec(package):
            print(f"{package}: not installed, left out")
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
