"""Train a denoiser on a data set. The same command resumes; RUN/model is the result."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tyro

from edm_ray.cli.console import Reports, duration, report, say
from edm_ray.cli.progress import Progress
from edm_ray.cli.workers import choose_executor, parse_workers
from edm_ray.config.presets import DEFAULT, PRESETS, proposed
from edm_ray.data.manifest import open_dataset
from edm_ray.errors import InputError
from edm_ray.execution.stopping import Interrupted, asked
from edm_ray.storage import uris
from edm_ray.tasks.train import TrainOptions, TrainTask

if TYPE_CHECKING:
    from edm_ray.cli.plan import Plan


@dataclass(frozen=True)
class Args(Reports):
    data: str
    """Data set that `edm-ray prepare` wrote: a directory or s3:// URI."""
    out: str
    """Directory or s3:// URI of the run."""
    preset: str | None = None
    """Starting point: see `edm-ray presets`. Default: ddpmpp-32; --dry-run says which preset suits the data."""
    config: str | None = None
    """YAML file of settings that override the preset."""
    set: list[str] = field(default_factory=list)
    """Settings that override both, e.g. --set ema.halflife_kimg=50 optimizer.lr=1e-3"""
    seed: int | None = None
    """Random seed of the training (default: 0). The same as --set seed=..."""
    workers: str = "1"
    """Number of DDP processes (one CPU or GPU each); LEAST:MOST: as many as the cluster has, fewer after losing a node;
    0: this process, without Ray."""
    device: str = "cpu"
    """cpu or cuda."""
    training: tyro.conf.OmitArgPrefixes[TrainOptions] = field(default_factory=TrainOptions)
    no_ray: bool = False
    """The same as --workers 0."""
    dry_run: bool = False
    """Print the plan and stop."""


def run(args: Args) -> None:
    from edm_ray.config.load import OverrideError
    from edm_ray.networks.cost import network_cost
    from edm_ray.tasks.train import plan_train
    from edm_ray.training.loop import Stopped

    if args.no_ray and args.workers not in ("0", "1"):
        raise InputError(
            f"--no-ray trains in one process; got --workers {args.workers}: give --workers 0, or leave --no-ray out"
        )
    workers = "0" if args.no_ray else args.workers
    executor = choose_executor(workers, args.device)
    preset = args.preset or DEFAULT
    overrides = [*args.set, *([] if args.seed is None else [f"seed={args.seed}"])]
    try:
        task = plan_train(args.data, preset, args.out, args.training, file=args.config, overrides=overrides)
        network_cost(task.config.denoiser, args.device)  # refuses levels that the resolution does not have
    except OverrideError:
        raise
    except InputError as error:
        raise InputError(_with_preset(args, error)) from error
    if workers == "0" and task.config.reader != "cache":
        raise InputError(
            f"--no-ray trains without Ray, and --reader {task.config.reader} is Ray's; leave one of them out"
        )
    if not (args.dry_run and args.device == "cuda"):  # GPUs may be planned for where there are none
        task.check_executor(executor)
    plan = check_plan(args, task, workers)
    describe(task, f"this process ({args.device})" if workers == "0" else f"workers: {workers} ({args.device})")
    if args.dry_run:
        from edm_ray.cli.plan import print_plan

        print_plan(plan)
        return
    if task.is_new:
        from edm_ray.cli.plan import refuse_years

        refuse_years(plan)
    progress, seen, started = Progress("images"), list[dict[str, Any]](), time.monotonic()
    resumed = list[int]()

    def on_resume(images_seen: int) -> None:
        if images_seen or resumed:
            say(f"  resuming at {images_seen:,} images")
        resumed.append(images_seen)

    def on_tick(row: dict[str, Any]) -> None:
        seen.append(row)
        progress.update(row["nimg"], row["total"], f"loss {row['loss']:.1f}  {row['images_per_s']:.0f} images/s")
        if "grid_s" in row:
            say(f"  {grid_line(task.run_uri, row)}")

    try:
        task.run(executor, on_tick, lambda line: say(f"  {line}"), on_resume)
    except Stopped as stopped:
        say(f"  {stopped}; the same command resumes from there")
        raise Interrupted(asked() or signal.SIGTERM, said=True) from stopped
    summarise(task.run_uri, time.monotonic() - started, seen, resumed[0] if resumed else 0, args.data)


def _with_preset(args: Args, error: InputError) -> str:
    """Where none was given and the default does not fit the data: which does. Raises InputError for no data set."""
    from edm_ray.networks.cost import network_cost

    dataset = open_dataset(uris.absolute(args.data))
    better = proposed(dataset.shape, dataset.rows, args.device)
    if args.preset is not None or better == DEFAULT:
        return str(error)
    with contextlib.suppress(InputError):
        network_cost(PRESETS[DEFAULT].make(dataset.shape).denoiser, args.device)
        return str(error)  # the default alone fits: the settings do not
    what = f"{dataset.rows:,} images of {dataset.resolution}x{dataset.resolution}"
    return f"{what}: give --preset {better} for them; the default, {DEFAULT}, does not fit: {error}"


def check_plan(args: Args, task: TrainTask, workers: str) -> Plan:
    """Raises InputError for what does not fit the memory."""
    from edm_ray.cli.plan import Plan, hours_by_clock, warned
    from edm_ray.training.cost import check_memory

    counts = (1, 1) if workers == "0" else parse_workers(workers)
    here = workers == "0" or not os.environ.get("RAY_ADDRESS")
    dataset = task.job.dataset
    plan = Plan(
        config=task.config,
        dataset=dataset,
        workers=counts,
        device=args.device,
        preset=args.preset,
        here=here,
        node_hours=args.training.node_hours,
        on_ray=workers != "0",
    )
    try:
        check_memory(task.config, counts[0], args.device, here)
    except InputError as error:
        warning = warned(plan, hours_by_clock(plan))
        raise InputError(f"{warning}, and does not fit: {error}" if warning else str(error)) from error
    return plan


def grid_line(run_uri: str, row: dict[str, Any]) -> str:
    """What became of a snapshot's grid."""
    from edm_ray.training.run import grid_uri

    what = f"snapshot at {row['nimg']:,} images"
    if "grid_skipped" in row:
        return f"{what}: no grid ({row['grid_skipped']})"
    return f"{what}: {grid_uri(run_uri, row['nimg'])}, drawn in {row['grid_s']:.3g} s"


def summarise(run_uri: str, seconds: float, seen: list[dict[str, Any]], resumed_at: int, data: str) -> None:
    """What there is now, and what to do with it. ``seen``: this command's rows of metrics."""
    from edm_ray.training.run import model_uri, snapshot_model_uri, snapshots
    from edm_ray.training.skipped_shards import skipped_lines

    model = model_uri(run_uri)
    last_row = seen[-1] if seen else {}
    report({"run": run_uri, "model": model, "resumed_at": resumed_at, "seconds": seconds, "last": last_row})
    if seen:
        last, images = seen[-1], seen[-1]["nimg"] - resumed_at
        whole = f" ({last['nimg']:,} in all)" if resumed_at else ""
        speed = f"{images / max(seconds, 1e-9):.0f} images/s"
        say(f"  trained {images:,} images{whole} in {duration(seconds)}, {speed}; last loss {last['loss']:.1f}")
    else:
        say("  nothing was left to train")
    for line in skipped_lines(run_uri):
        say(f"  {line}")
    if written := snapshots(run_uri):
        say(f"  snapshots: {len(written)}, the last {written[-1][1]}")
    for nimg in sorted({row["nimg"] for row in seen if "grid_s" in row} - {nimg for nimg, _ in written}):
        say(f"  warning: {snapshot_model_uri(run_uri, nimg)} was not written; see the log")
    say(f"  model: {model}")
    model = shlex.quote(model)
    say(f"  sample from it: edm-ray generate --model {model} --out samples.png")
    say(f"  make a reference: edm-ray reference --data {shlex.quote(data)} --out REFERENCE")
    say(f"  find its best samplers: edm-ray sweep --model {model} --reference REFERENCE --nfe 5,8,10 --out SWEEP")


def describe(task: TrainTask, where: str) -> None:
    import torch

    from edm_ray.networks.build import build_network

    config, dataset = task.config, task.job.dataset
    with torch.device("meta"):
        network = build_network(config.denoiser.network)
    count = sum(parameter.numel() for parameter in network.parameters())
    say(f"train {config.denoiser.network.kind}, {count:,} parameters, on {dataset.name} ({dataset.rows:,} images)")
    say(f"  {config.total_kimg * 1000:,.0f} images in batches of {config.batch_size}; {where}; run: {task.run_uri}")
    if config.reader == "ray-data":
        say("  Ray Data decodes: no two runs are equal, and a resumed run restarts its epoch")
