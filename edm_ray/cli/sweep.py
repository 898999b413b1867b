"""Find the best sampler for a model: S_churn, S_tmin, S_tmax and S_noise, with error bars, as Ray Tune trials.

Writes OUT/report.html, OUT/best-sampler.yaml and OUT/sweep.json. The same command resumes: chunks of images that were
evaluated are kept and never generated again."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from typing import Any

from edm_ray.checkpoint import open_model
from edm_ray.cli.console import duration, say
from edm_ray.errors import InputError
from edm_ray.storage import uris


@dataclass(frozen=True)
class Args:
    model: str
    """Model directory."""
    reference: str
    """Reference that `edm-ray reference` wrote."""
    space: str
    """What to search: a file of tune_spaces/."""
    out: str
    """Directory or s3:// URI of the sweep."""
    workers: int = 1
    """Sampling actors."""
    concurrent: int = 4
    """Trials in flight at once; they share the actors."""
    device: str = "cpu"
    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    chunk_size: int = 500
    """Images a chunk."""
    initial_chunks: int = 10
    """Chunks of a setting's first look."""
    max_chunks: int = 60
    """Chunks of the finalists of the race."""
    num_line: int = 5
    """Settings on the line of S_churn alone."""
    num_global: int = 30
    """Settings over the whole space."""
    confirm_chunks: int = 100
    """Chunks of fresh seeds that confirm the winner."""
    seed: int = 0
    """Of the search's own choices."""
    real: str | None = None
    """Data set of held-out real images: their FID at the confirmation's n is reported beside."""
    grid: int = 50
    """Images in each sample grid of the report."""
    dry_run: bool = False
    """Print what would be done and what it costs at most, and stop."""


def run(args: Args) -> None:
    import torch

    from edm_ray.evaluation.bench import estimate_real, open_reference
    from edm_ray.evaluation.grids import image_grid
    from edm_ray.orchestration.evaluate import Bench
    from edm_ray.orchestration.sweep import sweep_on_ray
    from edm_ray.report.html import write_report
    from edm_ray.sampling.generate import generate
    from edm_ray.search.controller import SweepController, SweepPlan
    from edm_ray.search.result import best_sampler_yaml
    from edm_ray.search.space import load_space

    space = load_space(args.space)
    plan = SweepPlan(
        chunk_size=args.chunk_size,
        initial_chunks=args.initial_chunks,
        max_chunks=args.max_chunks,
        num_line=args.num_line,
        num_global=args.num_global,
        confirm_chunks=args.confirm_chunks,
    )
    if args.workers < 1 or args.concurrent < 1:
        raise InputError("--workers and --concurrent must be 1 or more")
    out = uris.absolute(args.out)
    model = open_model(uris.absolute(args.model))
    reference, extractor = open_reference(uris.absolute(args.reference))
    denoiser = model.denoiser()
    controller = SweepController(space, plan, args.seed, denoiser=denoiser)
    say(f"sweep of {space.name}: {plan.describe()}")
    if args.dry_run:
        return
    bench = Bench(
        model=model,
        extractor=extractor,
        reference=reference,
        store=uris.join(out, "chunks"),
        labels=args.labels,
        workers=args.workers,
        device=args.device,
    )
    started, count = time.monotonic(), 0

    def on_trial(evaluation: Any, result: dict[str, Any] | None) -> None:
        nonlocal count
        count += 1
        what = evaluation.settings
        text = "FAILED" if result is None else f"FID {result['fid']:.3f} +- {result['se']:.3f} (n={result['n']})"
        say(
            f"  trial {count:>3}  {evaluation.stage:<8}  S_churn {what.s_churn:5.2f}  S_tmin {what.s_tmin:6.3f}  "
            f"S_tmax {what.s_tmax:6.2f}  S_noise {what.s_noise:.3f}  {text}"
        )

    result, _ = sweep_on_ray(bench, controller, args.chunk_size, out, on_trial, concurrent=args.concurrent)
    result = result.with_context(model=args.model, seconds=time.monotonic() - started)
    facts: dict[str, Any] = {"reference": reference.describe(), "model": {**model.about, "directory": args.model}}
    if args.real is not None:
        real = estimate_real(uris.absolute(args.real), plan.confirm_chunks * plan.chunk_size, reference, extractor)
        facts["real"] = real.to_dict()
    grids = {}
    seeds = torch.arange(args.grid, dtype=torch.int64)
    for title, settings in result.grid_settings().items():
        buffer = io.BytesIO()
        images = generate(denoiser, seeds, settings, "balanced").numpy()
        image_grid(images, 10, max(1, 40 // images.shape[-1])).save(buffer, format="PNG")
        grids[title] = buffer.getvalue()
    uris.write_bytes(uris.join(out, "sweep.json"), json.dumps(result.to_dict(), indent=1).encode())
    uris.write_bytes(uris.join(out, "best-sampler.yaml"), best_sampler_yaml(result).encode())
    report = uris.join(out, "report.html")
    uris.write_bytes(report, write_report(result, grids, facts).encode())
    for line in result.summary():
        say(f"  {line}")
    say(f"  {duration(time.monotonic() - started)}; report: {report}; sampler: {uris.join(out, 'best-sampler.yaml')}")
