"""Find the best sampler for a model, with error bars, as Ray Tune trials: what is searched is said by --space.

Writes OUT/report.html, OUT/best-sampler.yaml and OUT/sweep.json. The same command resumes: chunks of images that were
evaluated are kept and never generated again."""

from __future__ import annotations

import dataclasses
import io
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from edm_ray.cli.console import duration, say
from edm_ray.cli.sampler import BEST_SAMPLER
from edm_ray.cli.workers import parse_workers
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.evaluation.grids import image_grid
from edm_ray.generation.generate import generate
from edm_ray.models import open_model
from edm_ray.report.html import Context
from edm_ray.report.saved import save_progress, save_report
from edm_ray.search.baselines import GridSearch
from edm_ray.search.driver import Driver
from edm_ray.search.plan import StrategyName, SweepPlan, sweep_plan
from edm_ray.search.race import Race
from edm_ray.search.result import result_of
from edm_ray.search.sampler_file import best_sampler_yaml
from edm_ray.search.space import Space, in_words, load_space
from edm_ray.search.trials import TrialResult
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
    guide: str | None = None
    """Model directory of the model that guides it, where the space searches guidance; without it guidance is
    classifier-free: the model itself without its labels."""
    workers: str = "1"
    """Sampling actors; LEAST:MOST to begin with fewer and take more when the cluster has room."""
    concurrent: int | None = None
    """Trials in flight at once; they share the actors (default: two for each of them, 8 at least, 64 at most)."""
    device: str = "cpu"
    labels: str = "random"
    """random (as in the paper), balanced, or a class number."""
    strategy: StrategyName = "race"
    """How to search: race (looks everywhere a little, then races the best), or grid, random, optuna (TPE) and asha
    (successive halving) to compare with."""
    objective: str = "fid"
    """fid, or fid,nfe: the front of FID and network evaluations, where the space searches num_steps."""
    within: float = 2.0
    """Percent: with fid,nfe the cheapest sampler within so much of the best FID is named."""
    budget_images: int | None = None
    """Stop in good order at so many images, confirmation included."""
    budget_gpu_hours: float | None = None
    """Stop in good order at so many hours of all workers together; the speed is measured on the first looks."""
    chunk_size: int = 500
    """Images a chunk."""
    initial_chunks: int = Race.initial_chunks
    """Chunks of a setting's first look."""
    max_chunks: int = Race.max_chunks
    """Chunks of the finalists of the race; of every setting of grid, random and optuna."""
    num_line: int = Race.num_line
    """race: settings on the line of S_churn alone."""
    num_global: int = Race.num_global
    """race: settings spread evenly over the space. random, optuna, asha: settings in all."""
    num_model: int = Race.num_model
    """race: settings that a model of the FID proposes."""
    confirm_chunks: int = SweepPlan.confirm_chunks
    """Chunks of fresh seeds that confirm the winner."""
    grid_points: int = GridSearch.points
    """grid: values that a range of the space is cut into."""
    seed: int = 0
    """Of the search's own choices."""
    real: str | None = None
    """Data set of held-out real images: their FID at the confirmation's n is reported beside."""
    grid: int = 50
    """Images in each sample grid of the report."""
    export: bool = False
    """Put best-sampler.yaml into the model directory too; then `--sampler MODEL` takes it from there."""
    dry_run: bool = False
    """Print what would be done and what it costs at most, and stop."""


def run(args: Args) -> None:
    from edm_ray.distributed.evaluate import Bench
    from edm_ray.distributed.fid_worker import NUM_GROUPS
    from edm_ray.distributed.sweep import sweep_on_ray
    from edm_ray.evaluation.reference import estimate_real, open_reference

    space = load_space(args.space)
    plan = sweep_plan(
        strategy=args.strategy,
        objective=tuple(part.strip() for part in args.objective.split(",")),
        within=args.within,
        budget_images=args.budget_images,
        chunk_size=args.chunk_size,
        initial_chunks=args.initial_chunks,
        max_chunks=args.max_chunks,
        num_line=args.num_line,
        num_global=args.num_global,
        num_model=args.num_model,
        confirm_chunks=args.confirm_chunks,
        grid_points=args.grid_points,
    )
    if args.budget_gpu_hours is not None and not 0 < args.budget_gpu_hours < math.inf:
        raise InputError(f"--budget-gpu-hours {args.budget_gpu_hours} is not allowed: greater than 0, finite")
    least, most = parse_workers(args.workers)
    if args.concurrent is not None and args.concurrent < 1:
        raise InputError(f"--concurrent {args.concurrent}: give 1 or more")
    out = uris.absolute(args.out)
    model = open_model(uris.absolute(args.model), args.guide and uris.absolute(args.guide))
    reference, extractor = open_reference(uris.absolute(args.reference))
    real = None
    if args.real is not None:
        n = plan.confirm_chunks * plan.chunk_size
        real = estimate_real(open_dataset(uris.absolute(args.real)), n, reference, extractor, NUM_GROUPS)
    denoiser = model.denoiser()
    guides = any(name.startswith("guidance") for name in space.search)
    if guides and model.guide is None and not model.config.network.label_dim:
        raise InputError(f"{args.space}: searches guidance, but {args.model} has no classes; give --guide MODEL too")
    driver = Driver(space, plan, args.seed, denoiser)
    say(f"sweep of {space.name}: {driver.describe()}")
    if args.dry_run:
        return
    bench = Bench(
        model=model,
        extractor=extractor,
        reference=reference,
        store=uris.join(out, "chunks"),
        labels=args.labels,
        workers=most,
        least_workers=least,
        device=args.device,
    )
    same = ["--model", args.model, *(["--guide", args.guide] if args.guide else [])]
    same += ["--sampler", uris.join(args.out, BEST_SAMPLER)]
    again = [
        "--reference",
        args.reference,
        "--labels",
        args.labels,
        "--num",
        str(plan.confirm_chunks * plan.chunk_size),
    ]
    context = Context(
        title=f"The best sampler for {model.about.get('dataset', 'this model')}",
        reference=reference.describe(),
        commands=(
            shlex.join(["edm-ray", "sweep", *_as_flags(args)]),
            shlex.join(["edm-ray", "report", args.out]),
            shlex.join(["edm-ray", "evaluate", *same, *again, "--out", uris.join(args.out, "best")]),
            shlex.join(["edm-ray", "generate", *same, "--out", "best.png"]),
        ),
    )
    started = time.monotonic()
    sweep_on_ray(
        bench,
        driver,
        out,
        TrialLines(space, lambda: save_progress(out, result_of(driver), context)),
        concurrent=args.concurrent,
        budget_hours=args.budget_gpu_hours,
    )
    result = result_of(driver)
    found = result.of(result.found) or result.require_best()
    say("  sample grids for the report")
    seeds = torch.arange(args.grid, dtype=torch.int64)
    grids = {}
    shown = {"deterministic": space.sampler}
    registry = driver.search.registry
    if registry.paper is not None and registry.paper != found.label:
        shown[f"the paper's setting: {registry.paper}"] = registry.samplers[registry.paper]
    shown[f"found: {found.label}"] = found.settings
    for title, settings in shown.items():
        buffer = io.BytesIO()
        images = generate(denoiser, seeds, settings, "balanced").numpy()
        image_grid(images, 10, max(1, 48 // images.shape[-1]), gap=4).save(buffer, format="PNG")
        grids[f"{title}, seeds 0..{args.grid - 1}"] = buffer.getvalue()
    context = dataclasses.replace(
        context,
        grids=grids,
        real=None
        if real is None
        else {
            "dataset": open_dataset(uris.absolute(args.real or "")).name,
            "n": str(real.n),
            "fid": f"{real.fid:.3f}",
            "se": f"{real.se:.3f}",
            "debiased": f"{real.debiased:.3f}",
        },
        seconds=time.monotonic() - started,
    )
    guide = {} if model.guide is None else {"guide": model.guide.hash}
    sampler = best_sampler_yaml(result, model=model.hash, **guide, reference_data=reference.describe())
    for place in (out, *([uris.absolute(args.model)] if args.export else [])):
        uris.write_bytes(uris.join(place, BEST_SAMPLER), sampler.encode())
    report = save_report(out, result, context)
    for line in result.summary():
        say(f"  {line}")
    say(f"  {result.images:,} images, {duration(time.monotonic() - started)}; report: {report}")


def _as_flags(args: Args) -> list[str]:
    """The options as they can be typed again."""
    flags = []
    for key, value in dataclasses.asdict(args).items():
        if value is None or value is False:
            continue
        flags += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


class TrialLines:
    """One line for every trial as it ends; ``save`` stores now and then what was told before it."""

    def __init__(self, space: Space, save: Callable[[], None]) -> None:
        self.space, self.save = space, save
        self.count, self.saved = 0, -math.inf

    def __call__(self, result: TrialResult) -> None:
        if self.count and time.monotonic() - self.saved > 5:
            self.save()
            self.saved = time.monotonic()
        self.count += 1
        asked, found = result.evaluation, result.estimate
        text = f"FID {found.fid:6.2f} +- {found.se:.2f}  n={found.n}" if found else f"FAILED: {result.failure}"
        settings = in_words(self.space.describe(asked.settings))
        say(f"  trial {self.count:>3}  {asked.stage:<8} {settings}  {text}")
