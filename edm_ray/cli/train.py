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
from typing import TYPE_CHECKING, Any, Literal

from edm_ray.cli.console import Progress, duration, say
from edm_ray.cli.workers import parse_workers
from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.storage import uris
from edm_ray.training.run import checkpoint_store, claim_run, model_uri, read_metrics, refuse_mirrored_latents
from edm_ray.training.skipped_shards import lost_lines
from edm_ray.training.snapshots import FidRows, fid_lines, picture_uri, snapshots_uri
from edm_ray.training.trackers import parse_trackers
from edm_ray.training.tracking import Tracking

if TYPE_CHECKING:  # with --no-ray, Ray is not imported
    from edm_ray.distributed.snapshots import Follower, SnapshotPlan


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
    """Every so many thousand images keep a snapshot of the model in RUN/snapshots, and draw a grid of fixed seeds from
    it beside the training."""
    snapshot_fid: str | None = None
    """Reference that `edm-ray reference` wrote: a quick FID of each snapshot too."""
    snapshot_images: int = 500
    """Images of that FID; only FIDs of equal n compare."""
    snapshot_sampler: str | None = None
    """best-sampler.yaml of a sweep, or a directory that holds one; else deterministic, 18 steps."""
    snapshot_on: str = "cpu"
    """Where snapshots are drawn: cpu, gpu:SHARE (such as gpu:0.25; under Ray, cards that train keep that share free),
    or after (when training has ended). Where there is no room beside the training it is done after."""
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
    plan = snapshot_plan(args, workers)
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
    rows = read_metrics(run_uri)
    tracking, fids = Tracking(trackers, run_uri, fields, rows), FidRows(rows[-1]["nimg"] if rows else 0)
    with terminated() as must_stop, session_for(args, plan):
        follower = follow(args, plan, run_uri, (workers[1], config.threads), fids, done[-1] if done else 0)
        seen: list[dict[str, Any]] = []

        def on_tick(row: dict[str, Any]) -> None:
            seen.append(row)
            tracking.add(fids.onto(row))
            if follower is not None:
                follower.on_tick(row)
            progress.update(row["nimg"], row["total"], f"loss {row['loss']:.1f}  {row['images_per_s']:.0f} images/s")

        started, trained, drawn, ended = time.monotonic(), 0.0, True, False
        try:
            gpus = 1.0 if plan is None else plan.gpus_of_a_worker(args.device)
            _train(args, workers, gpus, config, dataset, run_uri, about, on_tick, cache, must_stop)
            trained, ended = time.monotonic() - started, True
        finally:
            try:
                if follower is not None:
                    drawn = follower.close(ended, must_stop)
            finally:
                for row in fids.rest():
                    tracking.add(row)
                for line in tracking.close(ended):
                    say(f"  {line}")
        summarise(args, run_uri, trained, seen, done[-1] if done else 0, follower)
        if not drawn and must_stop():
            raise SystemExit(143)


def session_for(args: Args, plan: SnapshotPlan | None) -> contextlib.AbstractContextManager[None]:
    """Tasks that draw snapshots need Ray for as long as the command; training alone opens it by itself."""
    if args.no_ray or plan is None:
        return contextlib.nullcontext()
    from edm_ray.distributed.session import session

    return session()


def snapshot_plan(args: Args, workers: tuple[int, int]) -> SnapshotPlan | None:
    """What --snapshot-* ask for, checked; None where no snapshots are wanted."""
    if args.snapshot_kimg is None:
        given = {"--snapshot-fid": args.snapshot_fid, "--snapshot-sampler": args.snapshot_sampler}
        if asked := [flag for flag, value in given.items() if value is not None]:
            raise InputError(f"{asked[0]} is about snapshots, which are not asked for; give --snapshot-kimg N too")
        return None
    from edm_ray.cli.sampler import choose_settings
    from edm_ray.distributed.snapshots import SnapshotPlan, parse_place, require_reservable
    from edm_ray.evaluation.reference import open_reference

    if args.snapshot_kimg <= 0:
        raise InputError(f"--snapshot-kimg {args.snapshot_kimg:g}: give more than 0")
    if args.snapshot_images < 100:
        raise InputError(
            f"--snapshot-images {args.snapshot_images}: give 100 or more; FID of fewer images says nothing"
        )
    where = None if args.snapshot_fid is None else uris.absolute(args.snapshot_fid)
    device, share, after = parse_place(args.snapshot_on, args.device)
    plan = SnapshotPlan(
        kimg=args.snapshot_kimg,
        settings=choose_settings(args.snapshot_sampler, []),
        reference=where,
        reference_hash=None if where is None else open_reference(where)[0].moments.hash,
        num=args.snapshot_images,
        device=device,
        share=share,
        after=after,
    )
    if not args.no_ray and plan.gpus_of_a_worker(args.device) < 1.0:
        require_reservable(plan.share, workers)
    return plan


def follow(
    args: Args, plan: SnapshotPlan | None, run_uri: str, workers: tuple[int, int], fids: FidRows, resumed_at: int
) -> Follower | None:
    """What draws the snapshots from here on; the caller closes it. ``workers``: (how many at most, threads of each)."""
    if plan is None:
        return None
    from edm_ray.distributed.snapshot_runners import ProcessRunner, RayRunner, Runner
    from edm_ray.distributed.snapshots import Follower

    runner: Runner = (
        ProcessRunner(plan.device)
        if args.no_ray
        else RayRunner(plan.device, plan.share, workers[0], args.device, workers[1], plan.gpus_of_a_worker(args.device))
    )

    def on_record(record: dict[str, Any]) -> None:
        fids.add(record)
        fid = f", FID {record['fid']:.3f} (n={record['n']})" if "fid" in record else ""
        say(f"  snapshot at {record['nimg']:,} images: {picture_uri(run_uri, record['nimg'])}{fid}")

    follower = Follower(plan, run_uri, runner, lambda line: say(f"  {line}"), on_record, resumed_at)
    follower.start()
    return follower


def summarise(
    args: Args,
    run_uri: str,
    seconds: float,
    seen: list[dict[str, Any]],
    resumed_at: int,
    follower: Follower | None,
) -> None:
    """What there is now, and what to do with it. ``seen``: this command's rows of metrics."""
    if seen:
        last, images = seen[-1], seen[-1]["nimg"] - resumed_at
        whole = f" ({last['nimg']:,} in all)" if resumed_at else ""
        speed = f"{images / max(seconds, 1e-9):.0f} images/s"
        say(f"  trained {images:,} images{whole} in {duration(seconds)}, {speed}; last loss {last['loss']:.1f}")
    else:
        say("  nothing was left to train")
    for line in lost_lines(run_uri):
        say(f"  {line}")
    records = follower.records() if follower is not None else []
    if follower is not None:
        failed = f", {len(follower.failed)} failed: the same command tries them again" if follower.failed else ""
        say(f"  snapshots: {len(records)} drawn in {snapshots_uri(run_uri)}{failed}")
        for line in fid_lines(run_uri, records):
            say(f"    {line}")
    model = shlex.quote(model_uri(run_uri))
    reference = "REFERENCE" if args.snapshot_fid is None else shlex.quote(args.snapshot_fid)
    say(f"  model: {model_uri(run_uri)}")
    say(f"  sample from it: edm-ray generate --model {model} --out samples.png")
    say(f"  sweep its samplers: edm-ray sweep --model {model} --reference {reference} --space SPACE.yaml --out sweep")


def _train(
    args: Args,
    workers: tuple[int, int],
    gpus: float,
    config: TrainingConfig,
    dataset: DataSet,
    run_uri: str,
    about: dict[str, Any],
    on_tick: Callable[[dict[str, Any]], None],
    cache: dict[str, str],
    must_stop: Callable[[], bool],
) -> None:
    from edm_ray.training.engine import Place, Stopped, train
    from edm_ray.training.signals import Wish

    try:
        if args.no_ray:
            place, ask = Place(device=args.device), lambda: Wish.STOP if must_stop() else Wish.NOTHING
            train(config, dataset, run_uri, place, about, on_tick, ask=ask, snapshot_kimg=args.snapshot_kimg)
            return
        from edm_ray.distributed.train import train_on_ray

        train_on_ray(
            config,
            dataset,
            run_uri,
            about,
            workers=workers,
            device=args.device,
            max_failures=args.max_failures,
            gpus=gpus,
            on_tick=on_tick,
            variables=cache,
            snapshot_kimg=args.snapshot_kimg,
            must_stop=must_stop,
        )
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
