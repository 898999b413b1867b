"""Train: a denoiser from a data set, in this process or on Ray."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from edm_ray.config.identity import identity_fields
from edm_ray.config.load import configure
from edm_ray.config.network import OwnNetwork
from edm_ray.config.presets import preset
from edm_ray.config.training import TrainingConfig
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.distributed.executor import Ray
from edm_ray.errors import InputError
from edm_ray.execution.executor import Executor
from edm_ray.execution.local import Local
from edm_ray.execution.stopping import saving
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import load_model
from edm_ray.networks.build import build_denoiser
from edm_ray.storage import uris
from edm_ray.storage.lease import hold
from edm_ray.tasks.export import about_of
from edm_ray.tasks.options import read_options
from edm_ray.training.checkpoint_interval import NODE_HOURS
from edm_ray.training.cost import node_count
from edm_ray.training.device import Place
from edm_ray.training.loop import Row, TrainingJob
from edm_ray.training.loop import train as train_here
from edm_ray.training.metrics import read_metrics
from edm_ray.training.pulse import Pulse
from edm_ray.training.run import checkpoint_store, claim_run, model_uri, refuse_mirrored_latents
from edm_ray.training.signals import Loop, Signal
from edm_ray.training.trackers import Tracking, parse_trackers

logger = logging.getLogger(__name__)
RAY_SILENCE_S = 10.0
"""Workers give a sign twice a second; without one for so long the group is lost, or another one starts."""
OnTick = Callable[[Row], None]
OnResume = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What is beside the configuration: none of it changes the result."""

    reader: Literal["cache", "ray-data"] | None = None
    """cache (default): each node decodes the data set once, into its cache; exact. ray-data: Ray Data decodes it every
    epoch on any CPU of the cluster, if decoding is too heavy for the nodes that train; then runs are not repeatable,
    and a resumed run restarts its epoch. The same as --set reader=..."""
    cache_dir: str | None = None
    """Folder for decoded images on each node's local disk, shared by its processes. Default: EDM_RAY_CACHE there, else
    ~/.cache/edm_ray."""
    cache_gib: float | None = None
    """Size limit of that folder in GiB. Default: EDM_RAY_CACHE_GIB there, else 64."""
    max_failures: int = 3
    """Give up after this many failures of the workers without a new checkpoint in between."""
    node_hours: float = NODE_HOURS
    """Hours between two failures of one node (33: spot machines that are often taken). From them and the cost of a
    checkpoint follows the interval that loses least, at which the run makes more checkpoints; 0: it makes none."""
    track: tuple[str, ...] = ()
    """Also send the metrics to tensorboard, wandb or mlflow (one or more); NAME=WHERE sets the folder, project or
    experiment."""
    snapshot_kimg: float | None = None
    """Every N thousand images, keep a model in RUN/snapshots and draw a small grid of fixed seeds; no grid if drawing
    it would take more than 5 % of the time since the last one."""
    fresh: bool = False
    """Delete the run in --out first."""

    def check(self) -> None:
        """Raises InputError for what is out of range."""
        if self.snapshot_kimg is not None and self.snapshot_kimg <= 0:
            raise InputError(f"--snapshot-kimg {self.snapshot_kimg:g}: give more than 0")
        if not 0 <= self.node_hours < math.inf:
            raise InputError(f"--node-hours {self.node_hours:g}: give 0 (checkpoints at checkpoint_kimg only) or more")

    @property
    def cache_variables(self) -> dict[str, str]:
        """As every worker reads them from its environment; nothing where nothing was said."""
        said = {"EDM_RAY_CACHE": self.cache_dir, "EDM_RAY_CACHE_GIB": self.cache_gib}
        return {name: str(value) for name, value in said.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class TrainTask:
    """A training that was checked; `run` does it."""

    job: TrainingJob
    options: TrainOptions

    @property
    def config(self) -> TrainingConfig:
        return self.job.config

    @property
    def run_uri(self) -> str:
        return self.job.run_uri

    @property
    def is_new(self) -> bool:
        """Whether there is no checkpoint to resume from."""
        return self.options.fresh or not checkpoint_store(self.run_uri).committed()

    def check_executor(self, on: Executor) -> None:
        """Raises InputError for more workers than this machine can hold, where no cluster is named: before Ray starts,
        which takes seconds."""
        if isinstance(on, Ray) and on.address is None:
            from edm_ray.distributed.cluster.preflight import preflight_here

            preflight_here(self._group(on).request())

    def _group(self, on: Ray) -> Any:
        from edm_ray.distributed.group import Group

        return Group(least=on.least or on.workers, most=on.workers, device=on.device, threads=self.config.threads)

    def run(
        self,
        on: Executor,
        on_tick: OnTick = lambda row: None,
        on_note: Callable[[str], None] = print,
        on_resume: OnResume = lambda images_seen: None,
    ) -> None:
        """To the end, or to the checkpoint that Ctrl-C or SIGTERM ask for (raises `Stopped`; `Interrupted` where the
        first step was not begun). on_note: what trackers say. on_resume: called before the first step with the images
        seen by the checkpoint that was really loaded (0 where there is none), and again where workers were lost and
        others resume.

        Raises InputError within ten seconds when another process writes to the run's directory.
        """
        os.environ.update(self.options.cache_variables)
        with hold(self.run_uri, "train"):
            self._run(on, on_tick, on_note, on_resume)

    def _run(self, on: Executor, on_tick: OnTick, on_note: Callable[[str], None], on_resume: OnResume) -> None:
        trackers = parse_trackers(list(self.options.track), self.run_uri)
        claim_run(self.run_uri, self.config, self.job.dataset, self.options.fresh)
        fields = identity_fields(self.config, self.job.dataset.hash)
        tracking, ended = Tracking(trackers, self.run_uri, fields, read_metrics(self.run_uri)), False

        def tick(row: Row) -> None:
            tracking.add(row)
            on_tick(row)

        loop = Loop(RAY_SILENCE_S) if isinstance(on, Ray) else Loop()
        with saving(loop.is_running) as must_stop:
            try:
                self._train(on, tick, loop, must_stop, on_resume)
                ended = True
            finally:
                for line in tracking.close(ended):
                    on_note(line)

    def _paced(self, nodes: int) -> TrainingJob:
        return dataclasses.replace(self.job, mtbf_s=3600 * self.options.node_hours / nodes)

    def _train(
        self, on: Executor, on_tick: OnTick, loop: Loop, must_stop: Callable[[], bool], on_resume: OnResume
    ) -> None:
        if not isinstance(on, Ray):
            ask = lambda: Signal.STOP if must_stop() else Signal.NONE  # noqa: E731
            pulse = Pulse(on_begin=on_resume, on_step=loop.on_step)
            train_here(self._paced(1), Place(device=on.device), on_tick, ask, pulse=pulse)
            return
        from edm_ray.distributed.train import train_on_ray

        self.check_executor(on)

        with on.session():
            train_on_ray(
                self._paced(node_count(on.workers, on.device, not (on.address or os.environ.get("RAY_ADDRESS")))),
                self._group(on),
                max_failures=self.options.max_failures,
                on_tick=on_tick,
                variables=self.options.cache_variables,
                must_stop=must_stop,
                on_step=loop.on_step,
                on_resume=on_resume,
            )


def plan_train(
    data: str | DataSet,
    config: str | TrainingConfig,
    out: str,
    options: TrainOptions,
    *,
    file: str | None = None,
    overrides: Sequence[str] = (),
    network: torch.nn.Module | None = None,
) -> TrainTask:
    """Open and check everything. config: a preset's name, or a configuration; file and overrides are laid over it.

    Raises InputError for a configuration that does not fit the data.
    """
    options.check()
    dataset = data if isinstance(data, DataSet) else open_dataset(uris.absolute(data))
    base = preset(config, dataset.shape) if isinstance(config, str) else config
    said = [] if options.reader is None else [f"reader={options.reader}"]
    chosen = configure(base, file, [*overrides, *said])
    if network is not None:
        chosen = with_own_network(chosen, network, dataset)
    check_fit(chosen, dataset)
    if network is not None:
        build_denoiser(chosen.denoiser, network=copy.deepcopy(network))  # a module that does not fit is refused here
    about = about_of(dataset, chosen.seed, config if isinstance(config, str) else "")
    job = TrainingJob(
        config=chosen,
        dataset=dataset,
        run_uri=uris.absolute(out),
        about=about,
        network=network,
        snapshot_kimg=options.snapshot_kimg,
    )
    return TrainTask(job=job, options=options)


def with_own_network(config: TrainingConfig, network: torch.nn.Module, dataset: DataSet) -> TrainingConfig:
    """The configuration with a module of the user's own in place of its network. It is conditional where the module
    says so (``label_dim``)."""
    if dataset.class_names and not hasattr(network, "label_dim"):
        logger.warning(
            "%s has no label_dim, so the model is unconditional although %s has %d classes; give the module "
            "label_dim = %d to train it with them, or label_dim = 0 to say so",
            type(network).__qualname__,
            dataset.uri,
            len(dataset.class_names),
            len(dataset.class_names),
        )
    own = OwnNetwork(
        img_resolution=dataset.resolution,
        img_channels=dataset.channels,
        label_dim=int(getattr(network, "label_dim", 0)),
        augment_dim=int(getattr(network, "augment_dim", 0)),
        class_path=f"{type(network).__module__}.{type(network).__qualname__}",
    )
    return dataclasses.replace(config, denoiser=dataclasses.replace(config.denoiser, network=own))


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


def train(
    data: str | DataSet,
    config: str | TrainingConfig,
    out: str,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    network: torch.nn.Module | None = None,
    overrides: Sequence[str] = (),
    on_tick: OnTick = lambda row: None,
    **options: Any,
) -> ModelDenoiser:
    """Train to the end, and load the result; the same call resumes, bit for bit.

    data: a data set. config: a preset's name ("ddpmpp-32"), or `preset(...)` with changes. out: the run's directory.
    on: `Local(device=...)`, or `Ray(workers=8, device="cuda")`: one DDP process a worker. network: a module of your own
    in place of the preset's U-Net: network(x, noise_labels, class_labels, augment_labels), with ``label_dim`` where it
    takes classes. overrides: ``["optimizer.lr=1e-3"]``. options: fields of `TrainOptions`.
    Raises InputError (a ValueError) for what does not fit, `Stopped` where Ctrl-C or SIGTERM asked for a checkpoint and
    the end.
    """
    task = plan_train(data, config, out, read_options(TrainOptions, options), overrides=overrides, network=network)
    task.run(on, on_tick, on_note=lambda line: None)
    return load_model(model_uri(task.run_uri), network=network)
