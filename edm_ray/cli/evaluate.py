"""FID of a model with one sampler against a reference, with its standard error; beside it, optionally, real images.

Every number names its extractor, n and reference; only numbers that agree in all three are comparable."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

from edm_ray.checkpoint import open_model
from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.sampler import choose_settings
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    reference: str
    """Reference that `edm-ray reference` wrote."""
    out: str
    """Directory: evaluation.json and the chunk store."""
    num: int = 50_000
    """Number of images; FID depends on it."""
    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    sampler: str | None = None
    """best-sampler.yaml of a sweep."""
    set: list[str] = field(default_factory=list)
    """Sampler settings, e.g. --set num_steps=40 s_churn=10"""
    real: str | None = None
    """Data set of held-out real images: FID of its first --num images is reported beside."""
    workers: int = 1
    """Sampling actors."""
    device: str = "cpu"
    dry_run: bool = False
    """Check what is given, say what would be done, and stop."""


def run(args: Args) -> None:
    from edm_ray.evaluation.reference import estimate_real, open_reference
    from edm_ray.orchestration.evaluate import Bench, evaluate_on_ray
    from edm_ray.orchestration.pool import NUM_GROUPS

    if args.num < 100:
        raise InputError(f"--num {args.num}: give 100 or more; FID of fewer images says nothing")
    settings = choose_settings(args.sampler, args.set)
    model = open_model(uris.absolute(args.model))
    reference, extractor = open_reference(uris.absolute(args.reference))
    store = uris.join(uris.absolute(args.out), "chunks")
    bench = Bench(
        model=model,
        extractor=extractor,
        reference=reference,
        store=store,
        labels=args.labels,
        workers=args.workers,
        device=args.device,
    )
    if args.dry_run:
        say(f"would sample {args.num:,} images on {args.workers} x {args.device} and measure them against")
        say(f"  {reference.describe()}; settings: {settings}; chunks: {store}")
        return
    progress, started = Progress("images"), time.monotonic()
    result = evaluate_on_ray(bench, settings, args.num, progress.update)
    say(f"  samples: {result.describe()}")
    content = {"model": args.model, "settings": str(settings), "labels": args.labels, "samples": result.to_dict()}
    if args.real is not None:
        real = estimate_real(open_dataset(uris.absolute(args.real)), args.num, reference, extractor, NUM_GROUPS)
        say(f"  real:    {real.describe()}")
        content["real"] = {"dataset": args.real, **real.to_dict()}
    path = uris.join(args.out, "evaluation.json")
    uris.write_bytes(path, json.dumps(content, indent=1).encode())
    say(f"  {duration(time.monotonic() - started)}; written to {path}")
