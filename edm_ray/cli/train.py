"""Train a denoiser on a data set. The same command resumes; RUN/model is the result."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.workers import parse_workers
from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.training.device import Place
from edm_ray.training.loop import Stopped, TrainingJob, train
from edm_ray.training.metrics import read_metrics
from edm_ray.training.run import (
    checkpoint_store,
    claim_run,
    grid_uri,
    model_uri,
    refuse_mirrored_latents,
    snapshot_model_uri,
    snapshots,
)
from edm_ray.training.signals import Signal
from edm_ray.training.skipped_shards import skipped_lines
from edm_ray.training.trackers import Tracking, parse_trackers


@dataclass(frozen=True)
class Args:
    data: str
    """Data set that `edm-ray prepare` wrote: a directory or s3:// URI."""
    out: str
    """Directory or s3:// URI of the run."""
    preset: str = "ddpmpp-32"
    """Starting point: see `edm-ray presets`."""
    config: str | None = None
    """YAML file laid over the preset."""
    set: list[str] = field(default_factory=list)
    """KEY=VALUE pairs laid over both, e.g. --set ema.halflife_kimg=50 optimizer.lr=1e-3"""
    workers: str = "1"
    """DDP processes (one CPU or GPU each); LEAST:MOST for as many as the cluster has, fewer when a node is lost."""
    device: str = "cpu"
    """cpu or cuda."""
    reader: Literal["cache", "ray-data"] | None = None
    """cache (the default): each node decodes the data set once, into its cache; exact. ray-data: tasks of Ray Data
    decode anew each epoch, on any CPU of the cluster, for decoding that is too heavy for the nodes that train; runs are
    then not repeatable, and a resumed one begins its epoch anew. The same as --set reader=..."""
    cache_dir: str | None = None
    """Folder on each node's local disk for decoded images, shared by its processes; else EDM_RAY_CACHE there, else
    ~/.cache/edm_ray."""
    cache_gib: float | None = None
    """How many GiB it may hold; else EDM_RAY_CACHE_GIB there, else 64."""
    max_failures: int = 3
    """How often in a row, without a new checkpoint in between, the workers may fail before the command gives up."""
    track: list[str] = field(default_factory=list)
    """Send the metrics to tensorboard, wandb or mlflow too; NAME=WHERE for a folder, project or experiment of your own.
    May name several."""
    snapshot_kimg: float | None = None
    """Every so many thousand images keep a model in RUN/snapshots and draw a small grid of fixed seeds from it, between
    two steps; no grid where drawing it would take more than 5 % of the time since the last one."""
    no_ray: bool = False
    """Train in this process, without Ray (one worker)."""
    dry_run: bool = False
    """Print the plan and stop."""
    fresh: bool = False
    """Delete the run in --out and start over."""


def run(args: Args) -> None:
    workers = parse_workers(args.workers)
    if args.device not in ("cpu", "cuda"):
        raise InputError(f"--device {args.device}: give cpu or cuda")
    if args.no_ray and workers != (1, 1):
        raise InputError(f"--no-ray trains in one process; got --workers {args.workers}, give --workers 1")
    cache = cache_variables(args.cache_dir, args.cache_gib)
    os.environ.update(cache)
    dataset = open_dataset(uris.absolute(args.data))
    said = [] if args.reader is None else [f"reader={args.reader}"]
    config = configure(preset(args.preset, dataset.shape), args.config, [*args.set, *said])
    if args.no_ray and config.reader != "cache":
        raise InputError(f"--no-ray trains without Ray, and --reader {config.reader} is Ray's; leave one of them out")
    check_fit(config, dataset)
    run_uri = uris.absolute(args.out)
    trackers = parse_trackers(args.track, run_uri)
    if args.snapshot_kimg is not None and args.snapshot_kimg <= 0:
        raise InputError(f"--snapshot-kimg {args.snapshot_kimg:g}: give more than 0")
    describe(config, dataset, run_uri, args.workers, args.device)
    if args.dry_run:
        from edm_ray.cli.plan import print_plan

        print_plan(config, dataset, workers, args.device, args.preset)
        return
    claim_run(run_uri, config, dataset, args.fresh)
    if done := checkpoint_store(run_uri).committed():
        say(f"  resuming at {done[-1]:,} images")
    about = {
        "preset": args.preset,
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "seed": config.seed,
        "class_names": list(dataset.class_names),
    }
    job = TrainingJob(config=config, dataset=dataset, run_uri=run_uri, about=about, snapshot_kimg=args.snapshot_kimg)
    progress = Progress("images")
    fields = identity_fields(config, dataset.hash)
    tracking = Tracking(trackers, run_uri, fields, read_metrics(run_uri))
    seen: list[dict[str, Any]] = []

    def on_tick(row: dict[str, Any]) -> None:
        seen.append(row)
        tracking.add(row)
        progress.update(row["nimg"], row["total"], f"loss {row['loss']:.1f}  {row['images_per_s']:.0f} images/s")
        if "grid_s" in row:
            say(f"  {grid_line(run_uri, row)}")

    started, trained, ended = time.monotonic(), 0.0, False
    with terminated() as must_stop:
        try:
            _train(args, job, cache, on_tick, must_stop)
            trained, ended = time.monotonic() - started, True
        finally:
            for line in tracking.close(ended):
                say(f"  {line}")
    summarise(run_uri, trained, seen, done[-1] if done else 0)


def grid_line(run_uri: str, row: dict[str, Any]) -> str:
    """What became of a snapshot's grid."""
    what = f"snapshot at {row['nimg']:,} images"
    if "grid_skipped" in row:
        return f"{what}: no grid ({row['grid_skipped']})"
    return f"{what}: {grid_uri(run_uri, row['nimg'])}, drawn in {row['grid_s']:.3g} s"


def summarise(run_uri: str, seconds: float, seen: list[dict[str, Any]], resumed_at: int) -> None:
    """What there is now, and what to do with it. ``seen``: this command's rows of metrics."""
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
    model = shlex.quote(model_uri(run_uri))
    say(f"  model: {model_uri(run_uri)}")
    say(f"  sample from it: edm-ray generate --model {model} --out samples.png")
    say(f"  sweep its samplers: edm-ray sweep --model {model} --reference REFERENCE --space SPACE.yaml --out sweep")


def _train(
    args: Args,
    job: TrainingJob,
    cache: dict[str, str],
    on_tick: Callable[[dict[str, Any]], None],
    must_stop: Callable[[], bool],
) -> None:
    try:
        if args.no_ray:
            ask = lambda: Signal.STOP if must_stop() else Signal.NONE  # noqa: E731
            train(job, Place(device=args.device), on_tick, ask)
            return
        from edm_ray.distributed.group import Group
        from edm_ray.distributed.train import train_on_ray

        least, most = parse_workers(args.workers)
        group = Group(least=least, most=most, device=args.device, threads=job.config.threads)
        train_on_ray(job, group, max_failures=args.max_failures, on_tick=on_tick, variables=cache, must_stop=must_stop)
    except Stopped as stopped:
        say(f"  {stopped}; the same command goes on from there")
        raise SystemExit(143) from stopped


@contextlib.contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come since: a machine about to be taken away gives notice by it."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: flag.set())
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def cache_variables(cache_dir: str | None, cache_gib: float | None) -> dict[str, str]:
    """The flags as the environment variables that every worker reads; nothing where nothing was said."""
    said = {"EDM_RAY_CACHE": cache_dir, "EDM_RAY_CACHE_GIB": cache_gib}
    return {name: str(value) for name, value in said.items() if value is not None}


def check_fit(config: TrainingConfig, dataset: DataSet) -> None:
    """The network must take what the data set holds."""
    refuse_mirrored_latents(config, dataset)
    network = config.denoiser.network
    for key, got, has in (
        ("img_resolution", network.img_resolution, dataset.resolution),
        ("img_channels", network.img_channels, dataset.channels),
    ):
        if got != has:
            raise InputError(f"denoiser.network.{key}={got}, but the images of {dataset.uri} have {has}")
    if network.label_dim not in (0, len(dataset.class_names)):
        raise InputError(
            f"denoiser.network.label_dim={network.label_dim}, but {dataset.uri} has {len(dataset.class_names)} "
            "classes; give that number, or 0 for an unconditional model"
        )


def describe(config: TrainingConfig, dataset: DataSet, run_uri: str, workers: str, device: str) -> None:
    import torch

    from edm_ray.networks.build import build_network

    with torch.device("meta"):
        network = build_network(config.denoiser.network)
    count = sum(parameter.numel() for parameter in network.parameters())
    say(f"train {config.denoiser.network.kind}, {count:,} parameters, on {dataset.name} ({dataset.rows:,} images)")
    say(
        f"  {config.total_kimg * 1000:,.0f} images in batches of {config.batch_size} over {workers} x {device}; "
        f"run: {run_uri}"
    )
    if config.reader == "ray-data":
        say("  Ray Data decodes: no two runs are alike, and a resumed one begins its epoch anew")
