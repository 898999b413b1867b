"""Which tiles the normalisation's kernels take: each is tried on the layers of CIFAR-10's network, alone and recorded.

The fastest go to DIR/tiles.json, and the parts after this one use them. `python -m benchmarks.gpu.tiles DIR/tiles.json`
writes them into `networks.normalise_kernel`.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench

LAYERS = {1024: {256: 13, 512: 5}, 256: {256: 22, 512: 5}, 64: {256: 15, 512: 4}}
"""Pixels -> channels -> how many such layers there are, about."""
SIZES = (
    (64, 8, 4), (64, 8, 8), (128, 8, 8), (128, 8, 16), (32, 8, 4), (32, 8, 8), (32, 16, 4), (32, 16, 8), (16, 8, 4),
    (64, 16, 4),
)  # fmt: skip
TILES = (*(size + (stages,) for size in SIZES for stages in (1, 3, 5)), (16, 32, 16, 1))
KERNELS = ("FORWARD", "BACKWARD")


def _use(pixels: int, tile: tuple[int, ...], kernels: tuple[str, ...] = KERNELS) -> None:
    from edm_ray.networks import normalise_kernel

    for name in kernels:
        getattr(normalise_kernel, name)[pixels] = normalise_kernel.Tile(*tile)


def _compile(case: tuple[int, int, tuple[int, ...]]) -> None:
    """Into Triton's cache, by a call for one image."""
    from benchmarks.gpu.kernels import calls

    pixels, channels, tile = case
    _use(pixels, tile)
    for work in calls(_shape(1, channels, pixels), torch.device("cuda")):
        work()


def _shape(batch: int, channels: int, pixels: int) -> tuple[int, int, int, int]:
    side = round(pixels**0.5)
    return batch, channels, side, side


def table(bench: Bench) -> None:
    if bench.device.type != "cuda":
        return
    from benchmarks.gpu.kernels import CALLS, calls, recorded

    cases = [(pixels, channels, tile) for pixels, layers in LAYERS.items() for channels in layers for tile in TILES]
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        pool.map(_compile, cases, chunksize=2)
    bench.row("tiles", compiled=len(cases), seconds_left=bench.left())
    spent: dict[tuple[str, int], dict[tuple[int, ...], float]] = {}
    for pixels, channels, tile in cases:
        _use(pixels, tile)
        try:
            works = calls(_shape(256, channels, pixels), bench.device)
            for name, work in zip(KERNELS, works, strict=True):
                seconds = min(bench.time(recorded(work), rounds=3, least_s=0.01)) / CALLS
                found = spent.setdefault((name, pixels), {})
                found[tile] = found.get(tile, 0.0) + LAYERS[pixels][channels] * seconds
        except Exception as error:  # a tile that the device has no room for
            bench.row("tiles", failed=str((pixels, channels, tile)), error=str(error)[:80])
            for name in KERNELS:
                spent.setdefault((name, pixels), {})[tile] = float("inf")
    chosen: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in KERNELS}
    for (name, pixels), found in spent.items():
        ranked = sorted(found, key=lambda tile, found=found: found[tile])
        chosen[name][pixels] = ranked[0]
        ms = {str(tile): round(1e3 * found[tile], 3) for tile in ranked}
        bench.row("tiles", kernel=name, pixels=pixels, best=str(ranked[0]), ms=ms)
        _use(pixels, ranked[0], (name,))
    (bench.out / "tiles.json").write_text(json.dumps(chosen))


def write(chosen: Path) -> None:
    """The constants of the kernels' file, as measured."""
    from edm_ray.networks import backend

    path = Path(backend.__file__).with_name("normalise_kernel.py")
    text = path.read_text()
    for name, tiles in json.loads(chosen.read_text()).items():
        rows = ", ".join(f"{p}: Tile{tuple(tiles[str(p)])}" for p in sorted(map(int, tiles)))
        text = re.sub(rf"^{name} = .*$", f"{name} = {{{rows}}}", text, flags=re.MULTILINE)
    path.write_text(text)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
