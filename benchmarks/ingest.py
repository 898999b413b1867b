"""Images a second into training: this reader, Ray Data, a DataLoader over PNGs in a zip, WebDataset, streaming.

    python -m benchmarks.ingest --folder DIR --prepare      # the data in every form; needs no quiet machine
    python -m benchmarks.ingest --folder DIR [--rounds 3] [--skip ray memory]

50,000 pictures of 32x32x3 (noise), shuffled, one consumer and two, each a process with one thread, as training reads
(`Reader.follow`); cold (nothing cached, and the files dropped from the page cache) and warm; from local disk and from
S3 (moto on loopback, which shares the CPUs). Rounds are interleaved; medians with least and most are printed as a
Markdown table. CPU time is the consumer's own process, so it is not shown for those that leave work to other processes.
"First batch" counts from opening the data set, imports apart. Those that decode PNGs are timed over 4,096 pictures of
the 50,000. Then memory: the reader on a data set ten times as large. webdataset and mosaicml-streaming run where they
are installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.ingest_contenders import ray_data
from benchmarks.results import record, spread

SLOW_IMAGES = 4096
"""Those that decode PNGs are timed over so many images."""


def drop_from_page_cache(place: Path) -> None:
    for path in [place] if place.is_file() else place.rglob("*"):
        if path.is_file():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
                os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(kind: str, place: str, world: int, count: int, cache: str) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.ingest_contenders", kind, place]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(count), cache],
            env=environment,
            cwd=Path(__file__).parents[1],
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


def prepare(folder: Path, images: int) -> None:
    """The same pictures in every form, and the data sets of the test of memory."""
    from edm_ray.data.format import encode_png
    from edm_ray.data.write import write_dataset

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (images, 3, 32, 32), np.uint8), np.arange(images) % 10
    names = [str(digit) for digit in range(10)]
    write_dataset(str(folder / "raw"), pixels, labels, names, name="n", split="train", num_shards=16, encoding="raw")
    pictures = [encode_png(picture) for picture in pixels]
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
            for picture in pixels:
                writer.write({"image": picture, "label": 0})
    for factor in (1, 10):
        part = np.random.default_rng(factor).integers(0, 256, (factor * images, 3, 32, 32), np.uint8)
        write_dataset(
            str(folder / f"memory-{factor}"),
            *(part, np.zeros(len(part), np.int64), []),
            name="n",
            split="train",
            num_shards=16 * factor,
            encoding="raw",
        )
        del part


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


def cases(folder: Path, images: int, skip: list[str]) -> dict[str, Callable[[int], list[dict]]]:
    """Name -> consumers -> what each measured. Cold ones come before warm ones, which find their cache."""

    raw = str(folder / "raw")

    def floor(kind: str, place: str) -> Callable[[int], list[dict]]:
        def call(world: int) -> list[dict]:
            drop_from_page_cache(folder / "raw")
            return run(kind, place, 1, 0, "") if world == 1 else []

        return call

    def reader(place: str, cold: bool) -> Callable[[int], list[dict]]:
        def call(world: int) -> list[dict]:
            cache = folder / f"cache-{'s3' if place.startswith('s3') else 'local'}"
            if cold:
                shutil.rmtree(cache, ignore_errors=True)
                drop_from_page_cache(folder / "raw")
            return run("ours", place, world, 2 * images, str(cache))

        return call

    found = {
        "shards fetched, local": floor("fetching", raw),
        "shards fetched and decoded, local": floor("decoding", raw),
        "shards fetched, S3": floor("fetching", "s3://bucket/raw"),
        "shards fetched and decoded, S3": floor("decoding", "s3://bucket/raw"),
        "edm_ray, local, cold": reader(raw, True),
        "edm_ray, local, warm": reader(raw, False),
        "edm_ray, S3, cold": reader("s3://bucket/raw", True),
        "edm_ray, S3, warm": reader("s3://bucket/raw", False),
        "DataLoader, PNGs in a zip": lambda world: run("dataloader", str(folder / "png.zip"), world, SLOW_IMAGES, ""),
    }
    if "ray" not in skip:
        found["Ray Data, raw Parquet, local"] = lambda world: ray_data(raw, world, images)
        found["Ray Data, raw Parquet, S3"] = lambda world: ray_data("s3://bucket/raw", world, images)
    if importlib.util.find_spec("webdataset"):
        last = len(list(folder.glob("wds-*.tar"))) - 1
        place = str(folder / f"wds-{{0000..{last:04d}}}.tar")
        found["webdataset"] = lambda world: run("webdataset", place, world, SLOW_IMAGES, "")
    if importlib.util.find_spec("streaming"):
        found["mosaicml-streaming"] = lambda world: run("mosaic", str(folder / "mds"), world, SLOW_IMAGES, "")
    return found


def memory(folder: Path, images: int) -> list[tuple[str, dict[str, float]]]:
    """Peak memory of a consumer that reads the same number of images from a small and from a tenfold data set, first
    decoding it, then from the cache."""
    found = []
    for factor in (1, 10):
        cache = folder / "memory-cache"
        shutil.rmtree(cache, ignore_errors=True)
        for state in ("cold", "warm"):
            numbers = run("ours", str(folder / f"memory-{factor}"), 1, 10 * images, str(cache))[0]
            found.append((f"{factor * images:,} images, {state}", numbers))
        shutil.rmtree(cache)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--skip", nargs="*", default=[], choices=["ray", "memory"])
    args = parser.parse_args()
    folder = args.folder.resolve()
    if args.prepare:
        folder.mkdir(parents=True)
        prepare(folder, args.images)
        return
    results: dict[str, list[list[dict[str, float]]]] = {}
    loads = []
    server = start_s3(folder)
    ends = ExitStack()
    if "ray" not in args.skip:
        from edm_ray.distributed.session import session

        os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "4")
        ends.enter_context(session())
    try:
        for number in range(args.rounds):
            for world in (1, 2):
                for label, call in cases(folder, args.images, args.skip).items():
                    loads.append(os.getloadavg()[0])
                    results.setdefault(f"{label}|{world}", []).append(found := call(world))
                    # At once: what is measured is not lost when a later case hangs.
                    print(f"{label}, {world}: {json.dumps(found)}, load {loads[-1]:.0f}", file=sys.stderr, flush=True)
            print(f"round {number + 1} of {args.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
    finally:
        server.terminate()
        server.wait()
        ends.close()
    tenfold = [] if "memory" in args.skip else memory(folder, args.images)
    print(f"{os.cpu_count()} CPUs, load {min(loads):.1f} to {max(loads):.1f}, {args.rounds} rounds")
    print("| case | consumers | images/s each | images/s of CPU time | first batch, s | peak MiB |")
    print("|---|---|---|---|---|---|")
    for key, rounds in results.items():
        label, world = key.split("|")
        flat = [consumer for one in rounds for consumer in one]
        if not flat:
            continue
        columns = [("images_per_s", 0), ("images_per_cpu_s", 0), ("first_s", 2), ("peak_mib", 0)]
        cells = [spread([consumer[column] for consumer in flat], digits) for column, digits in columns]
        if not label.startswith("edm_ray"):
            cells[1] = "-"
        if label.startswith("shards"):
            cells[0] = "-"
        print(f"| {label} | {world} | " + " | ".join(cells) + " |")
    for label, found in tenfold:
        print(
            f"memory, {label}: peak {found['peak_mib']:.0f} MiB, anonymous {found['anonymous_mib']:.0f} MiB, "
            f"{found['images_per_s']:,.0f} images/s, first batch {found['first_s']:.2f} s"
        )
    for package in ("webdataset", "streaming"):
        if not importlib.util.find_spec(package):
            print(f"{package}: not installed, left out")
    units = {"images_per_s": "images/s each", "first_s": "s to the first batch", "peak_mib": "MiB"}
    numbers = {
        f"{key.replace('|', ', consumers: ')}: {unit}": (unit, [one[column] for part in rounds for one in part])
        for key, rounds in results.items()
        for column, unit in units.items()
        if any(rounds)
    }
    numbers |= {f"memory, {label}": ("MiB", [found["peak_mib"]]) for label, found in tenfold}
    record("ingest", numbers, {"images": args.images, "rounds": args.rounds, "skip": args.skip})


if __name__ == "__main__":
    main()
