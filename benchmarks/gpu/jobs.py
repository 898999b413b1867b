"""Whole commands on the GPU, by way of Ray: colour pictures to a trained network and its samples, the digits' sweep."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu.bench import Bench
from edm_ray.training.metrics import read_metrics

COMMAND = "import sys; from edm_ray.cli import main; sys.exit(main(sys.argv[1:]))"
ROOT = Path(__file__).parents[2]


def command(bench: Bench, words: str, name: str, result: str | None = None) -> float:
    """Seconds that `edm-ray WORDS` took. Output goes to NAME.log, its result to RESULT. A failure shows the log."""
    began, log = time.monotonic(), bench.out / f"{name}.log"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    words += "" if result is None else " --json"
    with log.open("ab") as file, Path(bench.out / result if result else os.devnull).open("wb") as answer:
        file.write(f"$ edm-ray {words}\n".encode())
        file.flush()
        code = subprocess.call(
            [sys.executable, "-c", COMMAND, *words.split()], stdout=answer if result else file, stderr=file,
            env=environment, cwd=ROOT, timeout=max(30.0, bench.left()),
        )  # fmt: skip
    if code:
        print(log.read_text()[-1500:])
        raise RuntimeError(f"edm-ray {words.split()[0]} ended with {code}")
    return time.monotonic() - began


def work_in(bench: Bench) -> Path:
    """Not below --out: what is in there comes back from the machine."""
    return Path(os.environ.get("EDM_RAY_GPU_WORK", "/tmp/edm-ray-gpu"))


TOY = "denoiser.network.model_channels=16 denoiser.network.num_blocks=1 denoiser.network.attn_resolutions=[] "


def _recipe(bench: Bench, name: str, kimg: float) -> str:
    """CIFAR-10's, on crops of photographs, for so many thousand images."""
    kimg, tick = (0.064, 0.008) if bench.toy else (kimg, 4)
    sizes = TOY + "batch_size=4" if bench.toy else "batch_size=256 precision=bf16 optimizer.ramp_kimg=50"
    work = work_in(bench)
    return (
        f"train --data {work}/photos --out {work}/{name} --preset cifar10-cond-vp-f --device {bench.device.type} "
        f"--set {sizes} total_kimg={kimg} tick_kimg={tick} checkpoint_kimg={kimg / 2:g} ema.halflife_kimg={kimg / 10:g}"
    )


def _photographs(bench: Bench) -> None:
    work = work_in(bench)
    if not (work / "photos").exists():
        command(
            bench, f"prepare photographs {work}/photos --num {64 if bench.toy else 20000} --resolution 32", "colour"
        )


def _train(bench: Bench, words: str, name: str, table: str) -> None:
    seconds = command(bench, words, "colour")
    rows = read_metrics(f"{work_in(bench)}/{name}")
    shutil.copy(work_in(bench) / name / "metrics.jsonl", bench.out / f"colour-{name}.jsonl")
    rates = [row["images_per_s"] for row in rows[2:]]
    waits = statistics.median(row["data_wait"] for row in rows[2:])
    bench.row(
        table, side=name, images=rows[-1]["nimg"], seconds=seconds, images_per_s=statistics.median(rates),
        least=min(rates), most=max(rates), data_wait=waits, loss=rows[-1]["loss"], first_loss=rows[0]["loss"],
    )  # fmt: skip


def colour(bench: Bench) -> None:
    """CIFAR-10's recipe on crops of photographs with Ray Train (NCCL), for some minutes."""
    _photographs(bench)
    snapshots = "--snapshot-kimg 0.032" if bench.toy else "--snapshot-kimg 64"
    _train(bench, f"{_recipe(bench, 'run', 192)} --workers 1 {snapshots}", "run", "colour")
    words = f"generate --model {work_in(bench)}/run/model --out {bench.out}/colour.png --num 64"
    seconds = command(bench, f"{words} --device {bench.device.type}", "colour")
    bench.row("colour", side="grid of 64", seconds=seconds)


def overhead(bench: Bench) -> None:
    """Ray Train with one worker, and the same steps in a plain process."""
    _photographs(bench)
    for name, workers in (("ray", 1), ("plain", 0)):
        _train(bench, f"{_recipe(bench, name, 32)} --workers {workers}", name, "overhead")


def colour_fid(bench: Bench) -> None:
    """Of the model of `colour`, with features trained here: its snapshots, a sweep by budget, and 50,000 images."""
    work, device = work_in(bench), bench.device.type
    small, sampler = bench.toy, "solver=dpmpp_2m num_steps=8"
    reference, model, on = f"{work}/reference", f"{work}/run/model", f"--device {device}"
    words = f"reference --data {work}/photos --out {reference} --extractor self {on}"
    bench.row("colour FID", what="reference", seconds=command(bench, words, "colour-fid"))
    common = f"--reference {reference} --labels balanced {on}" + (
        "" if small else " --precision bf16 --micro-batch 500"
    )
    words = (
        f"evaluate --follow {work}/run --out {work}/followed --num {100 if small else 2000} {common} --set {sampler}"
    )
    bench.row("colour FID", what="snapshots", seconds=command(bench, words, "colour-fid", "colour-snapshots.json"))
    size = "--chunk-size 50 --initial-chunks 1 --max-chunks 2 --num-global 0 --num-model 0 --confirm-chunks 2"
    large = "--chunk-size 500 --initial-chunks 2 --max-chunks 4 --num-global 2 --num-model 0 --confirm-chunks 6"
    size, images = (size, 1000) if small else (large, 24000)
    words = f"sweep --model {model} --out {work}/sweep --nfe 5,8 --budget-images {images} {size} {common}"
    with utilisation(bench) as shares:
        seconds = command(bench, words, "colour-fid")
    if shares:
        busy = shares[len(shares) // 4 : -len(shares) // 8 or None]  # its start and its end are the command's
        bench.row("colour FID", what="device busy while it sweeps", percent=statistics.mean(busy), samples=len(busy))
    bench.row("colour FID", what="sweep", seconds=seconds)
    shutil.copy(work / "sweep" / "best-samplers.yaml", bench.out / "colour-samplers.yaml")
    words = f"evaluate --model {model} --out {work}/whole --num {100 if small else 50000} {common} --set {sampler}"
    bench.row("colour FID", what="50,000 images, 8 evaluations each", seconds=command(bench, words, "colour-fid"))
    shutil.copy(work / "whole" / "evaluation.json", bench.out / "colour-evaluation.json")


@contextmanager
def utilisation(bench: Bench) -> Iterator[list[float]]:
    """Percent of each half second in which the device ran something, as its driver counts it; nothing on a CPU."""
    shares: list[float] = []
    if bench.device.type != "cuda":
        yield shares
        return
    query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "500"]
    process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
    try:
        yield shares
    finally:
        process.terminate()
        told, _ = process.communicate()
        shares.extend(float(line) for line in told.split() if line.strip().isdigit())


def digits(bench: Bench) -> None:
    """`make demo` on the GPU: train, samples, FID, sweep."""
    quick = " --quick" if bench.toy else ""
    demo = work_in(bench) / "demo"
    seconds = command(bench, f"demo --out {demo} --device {bench.device.type}{quick}", "demo")
    bench.row("demo", seconds=seconds)
    for name in ("sweep/best-sampler.yaml", "evaluation/evaluation.json"):
        shutil.copy(demo / name, bench.out / f"demo-{Path(name).name}")
