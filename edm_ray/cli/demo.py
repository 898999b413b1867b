"""Do the whole job on 1,797 real handwritten digits, from pictures to the best sampler. The same command resumes.

Each step is the command of the same name, printed as you would type it."""

from __future__ import annotations

import json
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from edm_ray import cli
from edm_ray.cli.console import duration, say
from edm_ray.cli.device import check_device
from edm_ray.errors import InputError

FULL = {
    "train": "",
    "num": "500",  # as many as there are held-out digits: FIDs are compared at equal n
    "sweep": "--nfe 8,35 --chunk-size 100 --initial-chunks 3 --max-chunks 12 --num-global 6 --num-model 2 "
    "--confirm-chunks 20 --budget-images 24000",
}
QUICK = {
    "train": " --set total_kimg=1.28 tick_kimg=0.64 checkpoint_kimg=0.64",
    "num": "200",
    "sweep": "--nfe 4,7 --chunk-size 50 --initial-chunks 1 --max-chunks 2 --num-global 0 --num-model 0 "
    "--confirm-chunks 2 --budget-images 3000",
}


@dataclass(frozen=True)
class Args:
    out: str = "demo"
    """Folder for all results."""
    device: str = "cpu"
    """cpu or cuda. With cuda, one worker trains and one samples."""
    quick: bool = False
    """A few seconds of training and a tiny sweep: shows that your installation works, not what the method can do."""


def run(args: Args) -> None:
    from edm_ray.distributed.session import session

    out, started = args.out, time.monotonic()
    if any(character.isspace() for character in out):
        raise InputError(f"--out {out!r}: give a path without spaces")
    _introduce(args)
    # The demo uses two workers on any machine, so a local Ray is told of two CPUs.
    os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "2")
    model, reference, held_out = f"{out}/run/model", f"{out}/reference", f"{out}/data/heldout"
    size = QUICK if args.quick else FULL
    check_device(args.device, here=True)
    device = "" if args.device == "cpu" else f" --device {args.device}"
    workers = f"--workers {1 if device else 2}{device}"
    with session():
        say("\n[1/5] write the digits as sharded Parquet")
        _run(f"prepare digits {out}/data")
        say("\n[2/5] train a class-conditional denoiser with Ray Train")
        if Path(model, "manifest.json").exists():
            say(f"  the model is there already: {model}")
        else:
            _run(f"train --data {out}/data/train --out {out}/run --preset digits {workers}{size['train']}")
        say("\n[3/5] sample with Algorithm 2")
        _run(f"generate --model {model} --out {out}/samples.png --num 100 --set s_churn=5{device}")
        say("\n[4/5] FID of samples beside FID of held-out real digits")
        _run(f"reference --data {out}/data/train --out {reference} --extractor digits{device}")
        _run(
            f"evaluate --model {model} --reference {reference} --out {out}/evaluation --labels balanced "
            f"{workers} --real {held_out} --num {size['num']}"
        )
        say("\n[5/5] search the best sampler for 8 and for 35 network evaluations with Ray Tune")
        _run(
            f"sweep --model {model} --reference {reference} --out {out}/sweep "
            f"--labels balanced {workers} --concurrent 4 {size['sweep']}"
        )
    _conclude(out, time.monotonic() - started)


def _introduce(args: Args) -> None:
    say("edm_ray demo: 1,797 real handwritten digits (8x8), from pictures to the best sampler for them")
    say("  1 prepare   digits -> sharded Parquet                       seconds")
    say("  2 train     EDM U-Net, Ray Train, 2 workers                 about 4 min on 2 cores")
    say("  3 generate  100 digits with Algorithm 2                     seconds")
    say("  4 evaluate  FID of samples and of held-out real digits      under 1 min")
    say("  5 sweep     Ray Tune: the best sampler for 8 and 35 NFE     about 5 min")
    say(f"  Everything goes to {args.out}/. Stop it at any time; the same command resumes.")


def _run(command: str) -> None:
    say(f"$ edm-ray {command}")
    words = shlex.split(command)
    if code := cli.main(words):
        raise InputError(f"the step `edm-ray {words[0]}` ended with exit code {code}; the lines above say why")


def _conclude(out: str, seconds: float) -> None:
    evaluation = json.loads(Path(out, "evaluation", "evaluation.json").read_text())
    say(f"\ndone in {duration(seconds)}")
    say(f"  samples   {out}/samples.png")
    say(
        f"  FID       samples {evaluation['samples']['fid']:.2f}, held-out real digits {evaluation['real']['fid']:.2f} "
        f"(n={evaluation['samples']['n']}, extractor digits, reference: training digits)"
    )
    say(f"  report    {out}/sweep/report.html")
    say(f"  samplers  {out}/sweep/best-samplers.yaml, one for each budget")
    say(f"  model     {out}/run/model")
    samplers = f"{out}/sweep/best-samplers.yaml"
    say(f"  next      edm-ray generate --model {out}/run/model --sampler {samplers} --nfe 8 --out best.png")
