"""Find the best sampler for a model, with error bars, as Ray Tune trials; --nfe or --space say what to search.

With --nfe 5,8,10 it finds the best sampler for each of these numbers of network evaluations. Writes OUT/report.html,
OUT/best-sampler.yaml and OUT/sweep.json (with --nfe OUT/best-samplers.yaml, and a folder for each budget). The same
command resumes and never samples an evaluated chunk of images again."""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass, field

import tyro

from edm_ray.cli.console import Reports, duration, report, say
from edm_ray.cli.workers import choose_executor
from edm_ray.errors import InputError
from edm_ray.execution import activity
from edm_ray.search.baselines import GridSearch
from edm_ray.search.by_budget import BEST_SAMPLERS, summary
from edm_ray.search.plan import StrategyName, SweepPlan, sweep_plan
from edm_ray.search.race import Race
from edm_ray.search.sampler_file import BEST_SAMPLER
from edm_ray.search.space import Space, in_words
from edm_ray.search.trials import TrialResult
from edm_ray.storage import uris
from edm_ray.tasks.given import other_data
from edm_ray.tasks.sweep import CHUNKS, SweepOptions, SweepTask

CONFIRM_BY_BUDGET = 50
"""Chunks: 100 for each of four samplers would leave a third of a budget's images to the search."""


@dataclass(frozen=True)
class Args(Reports):
    model: str
    """Model directory."""
    reference: str
    """Reference from `edm-ray reference`."""
    out: str
    """Output directory, local or s3://."""
    space: str | None = None
    """What to search: a space that comes with the package (cifar10, digits, ...) or your own file. Default with --nfe:
    any-budget."""
    nfe: str | None = None
    """Budgets of network evaluations per image, e.g. 5,8,10,18,35: one search for each, in which every sampler takes as
    many steps as the budget allows."""
    workers: str = "1"
    """Number of Ray actors that sample; LEAST:MOST to start with fewer and add more when the cluster can; 0: this
    process, without Ray, one evaluation at a time. The decisions are the same."""
    device: str = "cpu"
    """cpu or cuda."""
    strategy: StrategyName = "race"
    """How to search: race (a first look everywhere, then a race of the best); for comparison grid, random, optuna (TPE)
    and asha (successive halving)."""
    objective: str = "fid"
    """fid, or fid,nfe: the Pareto front of FID and network evaluations, if the space searches num_steps."""
    within: float = 2.0
    """With fid,nfe: name the cheapest sampler whose FID is within this many percent of the best."""
    budget_images: int | None = None
    """Stop in good order after this many images, including confirmation. With --nfe the budgets share them; default:
    300,000 for each."""
    chunk_size: int = 500
    """Images per chunk."""
    initial_chunks: int = Race.initial_chunks
    """Chunks for the first look at a setting."""
    max_chunks: int = Race.max_chunks
    """Chunks for each finalist of the race; for every setting of grid, random and optuna."""
    num_line: int = Race.num_line
    """race: settings that vary only S_churn."""
    num_global: int = Race.num_global
    """race: settings spread evenly over the space. random, optuna, asha: total number of settings."""
    num_model: int = Race.num_model
    """race: settings that a model of the FID proposes."""
    confirm_chunks: int | None = None
    """Chunks of fresh seeds that confirm the winner (default: 100; with --nfe 50 for each budget)."""
    grid_points: int = GridSearch.points
    """grid: number of values for each range of the space."""
    more: tyro.conf.OmitArgPrefixes[SweepOptions] = field(default_factory=SweepOptions)
    dry_run: bool = False
    """Print the plan and the most it can cost, and stop."""


def run(args: Args) -> None:
    from edm_ray.cli.tables import budgets_table, show
    from edm_ray.tasks.sweep import plan_sweep

    executor = choose_executor(args.workers, args.device)
    budgets = _budgets(args.nfe)
    task = plan_sweep(args.model, args.reference, args.space, args.out, _plan(args), args.more, budgets)
    say(task.describe())
    for reference in [task.reference, *([task.second] if task.second else [])]:
        if note := other_data(reference, task.model):
            say(f"  {note}")
    if args.dry_run:
        from edm_ray.cli.spending import Work, spending

        real = task.confirm_images if task.held_out is not None else 0
        images, calls = task.races.most_images + task.second_images, task.most_calls + task.second_calls
        work = Work(
            images=images,
            calls=calls,
            at_most=True,
            real=real,
            precision=args.more.precision,
            micro_batch=args.more.micro_batch,
        )
        spent = spending(work, task.model, [task.reference.extractor], executor)
        for line in spent.lines:
            say(f"  {line}")
        report({"sweep": task.describe(), **vars(work), **spent.facts})
        return
    if uris.list_names(uris.join(task.out, CHUNKS)):
        say(f"  resuming: trials whose images are in {uris.join(task.out, CHUNKS)} are repeated without sampling")
    started = time.monotonic()
    commands = _commands(args, task)
    found = task.run(executor, TrialLines(task.space, bool(budgets), task.races.most_images), commands)
    if budgets:
        show(budgets_table(found.budgets))
    for line in summary(found.results) if budgets else found.result.summary():
        say(f"  {line}")
    images = sum(result.images for result in found.results)
    best = {"best": {str(row.nfe): row.best.settings.to_dict() for row in found.budgets}}
    if not budgets:
        best = {"best": found.best.to_dict()}
    report({"out": found.out, "report": found.report, "images": images, **best, "confirmed": found.table})
    say(f"  {images:,} images, {duration(time.monotonic() - started)}; report: {found.report}")
    say(f"  sample with what was found: {commands[-1]}")


def _budgets(text: str | None) -> tuple[int, ...]:
    """--nfe 5,8,10 -> numbers."""
    if text is None:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"--nfe {text} is not allowed: whole numbers of network evaluations, as in 5,8,10")
    return tuple(map(int, parts))


def _plan(args: Args) -> SweepPlan:
    return sweep_plan(
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
        confirm_chunks=_confirm_chunks(args),
        grid_points=args.grid_points,
    )


def _confirm_chunks(args: Args) -> int:
    if args.confirm_chunks is not None:
        return args.confirm_chunks
    return SweepPlan.confirm_chunks if args.nfe is None else CONFIRM_BY_BUDGET


def _commands(args: Args, task: SweepTask) -> tuple[str, ...]:
    """What was typed, and what may be typed next, for the report."""
    options = args.more
    same = ["--model", args.model, *(["--guide", options.guide] if options.guide else [])]
    if task.budgets:
        same += ["--sampler", uris.join(args.out, BEST_SAMPLERS), "--nfe", str(task.budgets[0])]
    else:
        same += ["--sampler", uris.join(args.out, BEST_SAMPLER)]
    again = ["--reference", args.reference, "--labels", options.labels, "--num", str(task.confirm_images)]
    if options.precision != SweepOptions.precision:
        again += ["--precision", options.precision]
    if options.micro_batch != SweepOptions.micro_batch:
        again += ["--micro-batch", str(options.micro_batch)]
    return (
        shlex.join(["edm-ray", "sweep", *as_flags(args)]),
        shlex.join(["edm-ray", "report", args.out]),
        shlex.join(["edm-ray", "evaluate", *same, *again, "--out", uris.join(args.out, "best")]),
        shlex.join(["edm-ray", "generate", *same, "--out", "best.png"]),
    )


def as_flags(args: Args) -> list[str]:
    """The options as they can be typed again, without what is the default."""
    defaults = {each.name: each.default for each in (*dataclasses.fields(Args), *dataclasses.fields(SweepOptions))}
    flat = dataclasses.asdict(args)
    flat |= flat.pop("more")
    flags = []
    for key, value in flat.items():
        if value is None or value is False or value == defaults[key]:
            continue
        flags += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


class TrialLines:
    """One line for every trial as it ends, with the settings of the space; by budget with its evaluations."""

    def __init__(self, space: Space, by_budget: bool = False, most_images: int = 0) -> None:
        self.space, self.by_budget, self.count, self.most_images = space, by_budget, 0, most_images
        self.images: dict[tuple[str, str], int] = {}
        """(settings, pool of seeds) -> how many were looked at."""

    def __call__(self, result: TrialResult) -> None:
        self.count += 1
        asked, found = result.evaluation, result.estimate
        nfe = f"{asked.settings.nfe:>3} NFE  " if self.by_budget else ""
        text = f"FID {found.fid:6.2f} +- {found.se:.2f}  n={found.n}" if found else f"FAILED: {result.failure}"
        say(f"  trial {self.count:>3}  {nfe}{asked.stage:<8} {in_words(self.space.describe(asked.settings))}  {text}")
        if found:
            self.images[str(asked.settings), asked.seeds] = found.n
        activity.count(sum(self.images.values()), self.most_images, "images, at most")
