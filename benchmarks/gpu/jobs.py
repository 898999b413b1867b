"""Whole commands on the GPU, by way of Ray: colour pictures to a trained network and its samples, the digits' sweep."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.bench import Bench
from edm_ray.training.metrics import read_metrics

COMMAND = "import sys; from edm_ray.cli import main; sys.exit(main(sys.argv[1:]))"
ROOT = Path(__file__).parents[2]


def command(bench: Bench, words: str, name: str) -> float:
    """Seconds that `edm-ray WORDS` took; its output goes to NAME.log. Ends with the log's last lines where it fails."""
    began, log = time.monotonic(), bench.out / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    with log.open("ab") as file:
        file.write(f"$ edm-ray {words}\n".encode())
        file.flush()
        code = subprocess.call(
            [sys.executable, "-c", COMMAND, *words.split()], stdout=file, stderr=file, env=environment, cwd=ROOT,
            timeout=max(30.0, bench.left()),
        )  # fmt: skip
    if code:
        print(log.read_text()[-1500:])
        raise RuntimeError(f"edm-ray {words.split()[0]} ended with {code}")
    return time.monotonic() - began


def work_in(bench: Bench) -> Path:
    """Not below --out: what is in there comes back from the machine."""
    return Path(os.environ.get("EDM_RAY_GPU_WORK", "/tmp/edm-ray-gpu"))


def colour(bench: Bench) -> None:
    """CIFAR-10's recipe on 32x32 crops of photographs: Ray Train (NCCL), then the same steps in a plain process."""
    work = work_in(bench)
    shutil.rmtree(work, ignore_errors=True)
    device = bench.device.type
    command(bench, f"prepare photographs {work}/photos --num {64 if bench.toy else 20000} --resolution 32", "colour")
    length = 0.016 if bench.toy else 60
    toy = "denoiser.network.model_channels=16 denoiser.network.num_blocks=1 denoiser.network.attn_resolutions=[] "
    sizes = toy + "batch_size=4" if bench.toy else "batch_size=256 precision=bf16 optimizer.ramp_kimg=50"
    recipe = (
        f"--data {work}/photos --preset cifar10-uncond-vp-f --device {device} --set {sizes} total_kimg={length} "
        f"tick_kimg={length / 12:g} checkpoint_kimg={length} ema.halflife_kimg=20"
    )
    for name, workers in (("plain", 0), ("ray", 1)):
        seconds = command(bench, f"train --out {work}/{name} --workers {workers} {recipe}", "colour")
        rows = read_metrics(f"{work}/{name}")
        rates = [row["images_per_s"] for row in rows[2:]]
        waits = statistics.median(row["data_wait"] for row in rows[2:])
        bench.row(
            "colour", side=name, images=rows[-1]["nimg"], seconds=seconds, images_per_s=statistics.median(rates),
            least=min(rates), most=max(rates), data_wait=waits, loss=rows[-1]["loss"], first_loss=rows[0]["loss"],
        )  # fmt: skip
        shutil.copy(work / name / "metrics.jsonl", bench.out / f"colour-{name}.jsonl")
    grid = f"generate --model {work}/ray/model --out {bench.out}/colour.png --num 64 --device {device}"
    bench.row("colour", side="grid of 64", seconds=command(bench, grid, "colour"))


def digits(bench: Bench) -> None:
    """`make demo` on the GPU: train, samples, FID, sweep."""
    quick = " --quick" if bench.toy else ""
    demo = work_in(bench) / "demo"
    seconds = command(bench, f"demo --out {demo} --device {bench.device.type}{quick}", "demo")
    bench.row("demo", seconds=seconds)
    for name in ("sweep/best-sampler.yaml", "evaluation/evaluation.json"):
        shutil.copy(demo / name, bench.out / f"demo-{Path(name).name}")
