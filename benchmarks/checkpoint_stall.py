"""What training waits for when checkpoints go to slow storage.

    python -m benchmarks.checkpoint_stall [--checkpoints 6] [--channels 96]

One process. Writes below checkpoints/ are slowed so that an upload takes 0, 0.5, 1 and 2 times as long as the time from
one checkpoint to the next. The stall is what `metrics.jsonl` says; the last checkpoint, which the run ends with, is not
counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import record
from edm_ray.cli import main as edm_ray
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.data.manifest import open_dataset
from edm_ray.storage import uris
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import claim_run

STEPS, BATCH = 12, 16


def slowed(upload_s: float, checkpoint_bytes: float) -> Any:
    """`uris.write_bytes`, at the speed at which a whole checkpoint takes ``upload_s``."""
    original = uris.write_bytes

    def write(path: str, content: bytes) -> None:
        if "/checkpoints/" in path:
            time.sleep(upload_s * len(content) / checkpoint_bytes)
        original(path, content)

    return write


def one_run(data: str, run: Path, checkpoints: int, channels: int) -> dict[str, Any]:
    dataset = open_dataset(data)
    settings = [f"batch_size={BATCH}", f"tick_kimg={STEPS * BATCH / 1000}", f"checkpoint_kimg={STEPS * BATCH / 1000}"]
    settings += [f"total_kimg={STEPS * BATCH * (checkpoints + 1) / 1000}"]
    settings += [f"denoiser.network.model_channels={channels}", "lanes=4"]
    config = configure(preset("digits", dataset.shape), None, settings)
    claim_run(str(run), config, dataset)
    began = time.monotonic()
    train(TrainingJob(config=config, dataset=dataset, run_uri=str(run)))
    seconds, rows = time.monotonic() - began, read_metrics(str(run))
    # A tick's row is written before its checkpoint is asked for, so a stall is in the next row.
    stalls = [row["checkpoint_stall_s"] for row in rows[1:]]
    size = sum(path.stat().st_size for path in sorted((run / "checkpoints").iterdir())[-1].iterdir())
    interval = statistics.median(STEPS * BATCH / row["images_per_s"] - row["checkpoint_stall_s"] for row in rows[1:])
    return {
        "stalls": stalls,
        "median": statistics.median(stalls),
        "most": max(stalls),
        "interval": interval,
        "bytes": size,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=6)
    parser.add_argument("--channels", type=int, default=96)
    args = parser.parse_args()
    original = uris.write_bytes
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        edm_ray(["prepare", "digits", str(root / "data")])
        data = str(root / "data" / "train")
        base = one_run(data, root / "unslowed", args.checkpoints, args.channels)
        print(f"checkpoints of {base['bytes'] / 2**20:.0f} MiB every {base['interval']:.1f} s of steps")
        print("| upload / time between checkpoints | stall a checkpoint, median | most |\n|---|---|---|")
        print(f"| local disk | {base['median']:.3f} s | {base['most']:.3f} s |", flush=True)
        numbers = {"checkpoint": ("MiB", [base["bytes"] / 2**20]), "stall, local disk": ("s", base["stalls"])}
        for factor in (0.5, 1.0, 2.0):
            uris.write_bytes = slowed(factor * base["interval"], base["bytes"])
            row = one_run(data, root / f"slowed-{factor}", args.checkpoints, args.channels)
            uris.write_bytes = original
            numbers[f"stall, upload takes {factor:g} of the time between checkpoints"] = ("s", row["stalls"])
            share = factor * base["interval"] / row["interval"]
            print(f"| {factor:g} ({share:.1f} of its own) | {row['median']:.3f} s | {row['most']:.3f} s |", flush=True)
    record("checkpoint_stall", numbers, vars(args))


if __name__ == "__main__":
    main()
