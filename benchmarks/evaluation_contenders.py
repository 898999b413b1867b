"""One run of one contender, in a process of its own: images in memory -> FID against a reference known beforehand.

    python -m benchmarks.evaluation_contenders NAME FOLDER EXTRACTOR

FOLDER holds images.npy (uint8 [N, 3, 32, 32]) and what `prepare` made of the reference. Prints one line of JSON: wall
and CPU seconds from images to FID (imports and loading the extractor before, the same for all), peak memory of all its
processes, bytes written, FID. EXTRACTOR: "projection" (cheap, 2,048 features) or a file of Inception weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.chunks import Chunk, Generator, read_rows, write_chunk
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.fid import FidReference
from edm_ray.evaluation.influence import Rows
from edm_ray.evaluation.measure import Plan, measure_rows
from edm_ray.evaluation.moments import GroupSums, Moments
from edm_ray.evaluation.reference import Reference
from edm_ray.seeding import normal, stream_key

CHUNK = 100
# "edm_ray" works out eleven FIDs, for the error bar; the others have none, like "edm_ray, one FID".
NAMES = ("edm_ray", "edm_ray, one FID", "torch-fidelity", "pytorch-fid", "clean-fid")


class Projection(torch.nn.Module):
    """float or uint8 [B, 3, H, W] in 0..255 -> relu of a fixed random map of its 8x8 average: [B, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        weight = normal(stream_key("benchmark projection"), torch.arange(192), 2048) / 192**0.5
        self.register_buffer("weight", weight.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(x.float() / 127.5 - 1.0, 8)
        return torch.relu(small.flatten(1) @ self.weight)


def our_extractor(extractor: str) -> Extractor:
    if extractor != "projection":
        return load_extractor("inception", extractor)
    network = Projection()
    return Extractor("projection", network, 2048, 14, 100, "0" * 64, lambda images: images)


def fidelity_arguments(extractor: str) -> dict:
    """Registers the projection with torch-fidelity where it is asked for."""
    ensure_torchvision()
    if extractor != "projection":
        return {"feature_extractor": "inception-v3-compat", "feature_extractor_weights_path": extractor}
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    if "projection" in FEATURE_EXTRACTORS_REGISTRY:
        return {"feature_extractor": "projection"}

    class Registered(FeatureExtractorBase):
        def __init__(self, name, features_list, **kwargs):
            super().__init__(name, features_list)
            self.network = Projection()

        @staticmethod
        def get_provided_features_list():
            return ("2048",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "2048"

        def forward(self, x):
            return (self.network(x),)

    register_feature_extractor("projection", Registered)
    return {"feature_extractor": "projection"}


class Memory:
    """The most memory that this process and those it started have at once (proportional set sizes, several times a
    second; pages that are shared count once)."""

    def __init__(self) -> None:
        self.peak, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.over.wait(0.2):
            self.peak = max(self.peak, sum(_resident(pid) for pid in _family(os.getpid())))

    def stop(self) -> int:
        self.over.set()
        self.thread.join()
        return self.peak


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *[one for child in children for one in _family(int(child))]]


def _resident(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:  # it has ended
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)


def prepare(folder: Path, count: int, extractor: str) -> None:
    """Images to be measured, and the reference in the form that each contender keeps."""
    rng = np.random.default_rng(0)
    for name, scale in (("reference", 60.0), ("images", 66.0)):
        coarse = rng.normal(size=(count, 3, 8, 8)).repeat(4, 2).repeat(4, 3)
        pixels = 128 + scale * coarse + 10 * rng.normal(size=(count, 3, 32, 32))
        np.save(folder / f"{name}.npy", pixels.clip(0, 255).astype(np.uint8))
    ours = our_extractor(extractor)
    features = ours.extract(torch.from_numpy(np.load(folder / "reference.npy")))
    (folder / "moments").write_bytes(Moments.of(features, ours.identity, ours.scale_bits).to_bytes())
    values = features / 2.0**ours.scale_bits
    np.savez(folder / "statistics.npz", mu=values.mean(0), sigma=np.cov(values, rowvar=False))
    key = fidelity_arguments(extractor)["feature_extractor"]
    cached = {"mu": values.mean(0).astype(np.float32), "sigma": np.cov(values, rowvar=False)}
    (folder / "cache").mkdir()
    torch.save(cached, folder / "cache" / f"reference-{key}-stat-fid-2048.pt")


def write_pngs(folder: Path, images: np.ndarray) -> str:
    pngs = folder / "pngs"
    pngs.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(pngs / f"{i:06d}.png")
    return str(pngs)


def run_ours(folder: Path, images: np.ndarray, extractor: Extractor, name: str) -> float:
    """What a sampler and a metrics task do, one after the other: features to the chunk store, then moments of them."""
    store, chunks = str(folder / "store"), []
    made = Generator(model="m", extractor=extractor.identity, labels="random", micro_batch=50, device="cpu")
    for first in range(0, len(images), CHUNK):
        features = extractor.extract(torch.from_numpy(images[first : first + CHUNK]))
        chunk = Chunk(generator=made, settings=sampler(), first=first, size=len(features))
        chunks.append(chunk)
        write_chunk(store, chunk, features)
    moments = Moments.from_bytes((folder / "moments").read_bytes(), "moments")

    def parts() -> Iterator[Rows]:
        return ((part.features, part.seeds) for part in read_rows(store, chunks))

    if name == "edm_ray":
        known = Reference(moments=moments, dataset="d", dataset_hash="h", extractor_name="x", weights_sha256="w")
        return measure_rows(parts, Plan(metrics=("fid",), reference=known)).fid.fid
    sums = GroupSums(1, extractor.identity, extractor.scale_bits)
    for features, seeds in parts():
        sums.add(features, seeds)
    return FidReference(moments).distance(sums.groups()[0])


def run_fidelity(folder: Path, images: np.ndarray, arguments: dict) -> float:
    """Its command line, in this process because our projection must be registered there."""
    from torch_fidelity.fidelity import main as command

    known = ["--input2", str(folder), "--input2-cache-name", "reference", "--cache-root", str(folder / "cache")]
    batch = 100 if arguments["feature_extractor"] == "projection" else 25
    flags = ["--fid", "--cpu", "--json", "--silent", "--batch-size", str(batch)]
    named = [part for key, value in arguments.items() for part in (f"--{key.replace('_', '-')}", value)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        before, sys.argv = sys.argv, ["fidelity", "--input1", write_pngs(folder, images), *known, *flags, *named]
        command()
        sys.argv = before
    return json.loads(said.getvalue())["frechet_inception_distance"]


def run_pytorch_fid(folder: Path, images: np.ndarray) -> float:
    from pytorch_fid.fid_score import calculate_activation_statistics, calculate_frechet_distance

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = Projection()

        def forward(self, x):
            return [self.network(x * 255.0)[:, :, None, None]]

    pngs = write_pngs(folder, images)
    files = sorted(Path(pngs).glob("*.png"))
    mu, sigma = calculate_activation_statistics(files, Model(), 100, 2048, "cpu", 2)
    with np.load(folder / "statistics.npz") as known:
        return float(calculate_frechet_distance(mu, sigma, known["mu"], known["sigma"]))


def run_clean_fid(folder: Path, images: np.ndarray) -> float:
    from cleanfid import fid

    network = Projection()
    features = fid.get_folder_features(
        write_pngs(folder, images),
        model=lambda batch: network(batch),
        num_workers=2,
        batch_size=100,
        device=torch.device("cpu"),
        mode="clean",
        verbose=False,
    )
    with np.load(folder / "statistics.npz") as known:
        mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
        return float(fid.frechet_distance(mu, sigma, known["mu"], known["sigma"]))


def bytes_under(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cpu_seconds() -> float:
    """Of this process and of those it started and waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def main(name: str, folder: Path, extractor: str) -> None:
    torch.set_num_threads(1)
    images, before = np.load(folder / "images.npy", mmap_mode="r"), bytes_under(folder)
    if name.startswith("edm_ray"):
        ours = our_extractor(extractor)
        action = lambda: run_ours(folder, images, ours, name)  # noqa: E731
    elif name == "torch-fidelity":
        arguments = fidelity_arguments(extractor)
        action = lambda: run_fidelity(folder, images, arguments)  # noqa: E731
    else:
        ensure_torchvision()
        __import__({"pytorch-fid": "pytorch_fid.fid_score", "clean-fid": "cleanfid.fid"}[name])
        run = {"pytorch-fid": run_pytorch_fid, "clean-fid": run_clean_fid}[name]
        action = lambda: run(folder, images)  # noqa: E731
    memory = Memory()
    started, cpu = time.perf_counter(), cpu_seconds()
    fid = action()
    wall, used = time.perf_counter() - started, cpu_seconds() - cpu
    print(
        json.dumps(
            {
                "wall": wall,
                "cpu": used,
                "peak": memory.stop(),
                "bytes": bytes_under(folder) - before,
                "fid": fid,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
