"""Train a denoiser on a data set. The same command resumes; RUN/model is the result."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.workers import parse_workers
from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.schema import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.training.run import checkpoint_store, claim_run, model_uri, read_metrics, refuse_mirrored_latents
from edm_ray.training.trackers import parse_trackers
from edm_ray.training.tracking import Tracking


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
    cache_dir: str | None = None
    """Folder on each node's local disk for decoded images, shared by its processes; else EDM_RAY_CACHE there, else
    ~/.cache/edm_ray."""
    cache_gib: float | None = None
    """How many GiB it may hold; else EDM_RAY_CACHE_GIB there, else 64."""
    max_failures: int = 3
    """How often Ray Train may restart the workers."""
    track: list[str] = field(default_factory=list)
    """Send the metrics to tensorboard, wandb or mlflow too; NAME=WHERE for a folder, project or experiment of your own.
    May name several."""
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
    config = configure(preset(args.preset, dataset.shape), args.config, args.set)
    check_fit(config, dataset)
    run_uri = uris.absolute(args.out)
    trackers = parse_trackers(args.track, run_uri)
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
    progress = Progress("images")
    fields = identity_fields(config, dataset.hash)
    tracking = Tracking(trackers, run_uri, fields, read_metrics(run_uri))

    def on_tick(row: dict[str, float]) -> None:
        tracking.add(row)
        progress.update(row["nimg"], row["total"], f"loss {row['loss']:.1f}  {row['images_per_s']:.0f} images/s")

    started, done = time.monotonic(), False
    try:
        _train(args, workers, config, dataset, run_uri, about, on_tick, cache)
        done = True
    finally:
        for line in tracking.close(done):
            say(f"  {line}")
    say(f"  trained in {duration(time.monotonic() - started)}; model: {model_uri(run_uri)}")
    say(f"  next: edm-ray generate --model {model_uri(run_uri)} --out samples.png")


def _train(
    args: Args,
    workers: tuple[int, int],
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    about: dict[str, Any],
    on_tick: Callable[[dict[str, Any]], None],
    cache: dict[str, str],
) -> None:
    if args.no_ray:
        from edm_ray.training.engine import Place, Stopped, train

        try:
            train(config, dataset, run_uri, Place(device=args.device), about, on_tick, must_stop=terminated())
        except Stopped as stopped:
            say(f"  {stopped}; the same command goes on from there")
            raise SystemExit(143) from stopped
    else:
        from edm_ray.orchestration.train import train_on_ray

        train_on_ray(
            config,
            dataset,
            run_uri,
            about,
            workers=workers,
            device=args.device,
            max_failures=args.max_failures,
            on_tick=on_tick,
            variables=cache,
        )


def terminated() -> Callable[[], bool]:
    """Whether SIGTERM has come since: a machine about to be taken away gives notice by it."""
    flag = threading.Event()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, frame: flag.set())
    return flag.is_set


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
