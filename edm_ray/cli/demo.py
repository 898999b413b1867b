"""The whole job on 1,797 real handwritten digits, from pictures to the best sampler. Run again, it goes on.

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
from edm_ray.errors import InputError

NUM_REAL = 500
"""Held-out digits there are, and so the n at which samples and real digits are compared."""


@dataclass(frozen=True)
class Args:
    out: str = "demo"
    """Folder for everything the demo makes."""
    quick: bool = False
    """A few seconds of training and a tiny sweep: shows that the set-up works, not what the method can do."""


def run(args: Args) -> None:
    from edm_ray.orchestration.session import session

    out = args.out
    started = time.monotonic()
    _introduce(args)
    os.environ.setdefault("EDM_RAY_LOCAL_CPUS", "2")
    model, reference = f"{out}/run/model", f"{out}/reference"
    _step(1, "write the digits as sharded Parquet", ["prepare", "digits", f"{out}/data"])
    with session():
        train = ["train", "--data", f"{out}/data/train", "--out", f"{out}/run", "--preset", "digits", "--workers", "2"]
        short = ["--set", "total_kimg=1.28", "tick_kimg=0.64", "checkpoint_kimg=0.64"] if args.quick else []
        if not Path(model, "manifest.json").exists():
            _step(2, "train a class-conditional denoiser on 2 DDP workers", [*train, *short])
        else:
            say(f"\n[2/5] the model is there already: {model}")
        _step(
            3,
            "sample with Algorithm 2",
            [
                "generate",
                "--model",
                model,
                "--out",
                f"{out}/samples.png",
                "--num",
                "100",
                "--set",
                "s_churn=5",
            ],
        )
        _step(
            4,
            "FID of samples beside FID of held-out real digits",
            [
                "reference",
                "--data",
                f"{out}/data/train",
                "--out",
                reference,
                "--extractor",
                "digits",
            ],
        )
        _run(
            [
                "evaluate",
                "--model",
                model,
                "--reference",
                reference,
                "--out",
                f"{out}/evaluation",
                "--num",
                "200" if args.quick else str(NUM_REAL),
                "--workers",
                "2",
                "--real",
                f"{out}/data/heldout",
            ]
        )
        size = (
            [
                "--chunk-size",
                "50",
                "--initial-chunks",
                "1",
                "--max-chunks",
                "2",
                "--num-line",
                "2",
                "--num-global",
                "2",
                "--confirm-chunks",
                "4",
            ]
            if args.quick
            else [
                "--chunk-size",
                "100",
                "--initial-chunks",
                "2",
                "--max-chunks",
                "4",
                "--num-line",
                "5",
                "--num-global",
                "8",
                "--confirm-chunks",
                str(NUM_REAL // 100),
            ]
        )
        space = Path(__file__).parents[2] / "tune_spaces" / "digits.yaml"
        _step(
            5,
            "search S_churn, S_tmin, S_tmax and S_noise with Ray Tune",
            [
                "sweep",
                "--model",
                model,
                "--reference",
                reference,
                "--space",
                str(space),
                "--out",
                f"{out}/sweep",
                "--workers",
                "2",
                "--concurrent",
                "4",
                "--real",
                f"{out}/data/heldout",
                *size,
            ],
        )
    _conclude(out, time.monotonic() - started)


def _introduce(args: Args) -> None:
    say("edm_ray demo: 1,797 real handwritten digits (8x8), from pictures to the best sampler for them")
    say("  1 prepare   digits -> sharded Parquet                       seconds")
    say("  2 train     EDM U-Net, Ray Train, 2 workers                 about 4 min on 2 cores")
    say("  3 generate  100 digits with Algorithm 2                     seconds")
    say("  4 evaluate  FID of samples and of held-out real digits      under 1 min")
    say("  5 sweep     Ray Tune over the sampler's settings, report    about 4 min")
    say(f"  Everything goes to {args.out}/. Stop it at any time: run again, it goes on where it was.")


def _step(number: int, what: str, command: list[str]) -> None:
    say(f"\n[{number}/5] {what}")
    _run(command)


def _run(command: list[str]) -> None:
    say(f"$ edm-ray {shlex.join(command)}")
    if code := cli.main(command):
        raise InputError(f"the step `edm-ray {command[0]}` ended with exit code {code}; the lines above say why")


def _conclude(out: str, seconds: float) -> None:
    evaluation = json.loads(Path(out, "evaluation", "evaluation.json").read_text())
    say(f"\ndone in {duration(seconds)}")
    say(f"  samples   {out}/samples.png")
    say(
        f"  FID       samples {evaluation['samples']['fid']:.2f}, held-out real digits {evaluation['real']['fid']:.2f} "
        f"(n={evaluation['samples']['n']}, extractor digits, reference: training digits)"
    )
    say(f"  report    {out}/sweep/report.html")
    say(f"  sampler   {out}/sweep/best-sampler.yaml")
    say(f"  model     {out}/run/model")
    say(f"  next      edm-ray generate --model {out}/run/model --sampler {out}/sweep/best-sampler.yaml --out best.png")
