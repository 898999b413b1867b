"""Training and sampling on a GPU, against what the card can do.

    python -m benchmarks.gpu --minutes 9 --out DIR          python -m benchmarks.gpu --device cpu --toy --out DIR

Parts run in the order of their worth, each writes DIR/rows.json again as it goes, and none starts that the minutes left
do not allow. --parts names some of them.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu import jobs, kernels, peers, rates, sampling, tiles, training
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import ceilings


def short(bench: Bench) -> None:
    """The product's form, and PyTorch's own beside it."""
    training.measure(bench, "recorded", "bf16", 128)
    sampling.measure(bench, "recorded", "bf16", 8, 256)
    training.measure(bench, "recorded", "bf16", 512)
    sampling.measure(bench, "recorded", "bf16", 8, 1024)
    sampling.measure(bench, "recorded", "bf16", 8, 50)
    training.measure(bench, "eager", "bf16", 128)


PARTS: dict[str, tuple[float, Callable[[Bench], None]]] = {
    "tiles": (60, tiles.table),
    "kernels": (20, kernels.table),
    "short": (20, short),
    "breakdown": (10, training.breakdown),
    "sampling-breakdown": (8, sampling.breakdown),
    "training": (20, training.table),
    "sampling": (15, sampling.table),
    "choices": (10, training.choices),
    "training-batches": (15, training.batches),
    "sampling-batches": (20, sampling.batches),
    "colour": (60, jobs.colour),
    "overhead": (50, jobs.overhead),
    "colour-fid": (60, jobs.colour_fid),
    "demo": (50, jobs.digits),
    "inception": (15, rates.inception),
    "peers": (30, peers.diffusers),
    "compiled": (90, training.compiled),
}
"""Name -> (seconds that must be left for it to start, what it does)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--toy", action="store_true", help="tiny sizes; the numbers mean nothing")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu --toy shows that the script works")
    bench = Bench(args.out, args.device, args.toy, args.minutes)
    print(bench.about(), flush=True)
    ceilings(bench)
    for name in args.parts:
        needed, part = PARTS[name]
        if bench.left() < needed and not args.toy:
            bench.row("left out", part=name, seconds_left=bench.left())
            continue
        began = time.monotonic()
        bench.attempt(name, functools.partial(part, bench))
        bench.row("took", part=name, seconds=time.monotonic() - began)


if __name__ == "__main__":
    main()
