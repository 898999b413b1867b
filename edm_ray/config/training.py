"""What a run is made of: frozen dataclasses in the field's own names.

Numbers of images are counted in images (``nimg``) or thousands of them (``kimg``); the clock of a run is images seen.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.objective import EDMObjective, ObjectiveConfig
from edm_ray.errors import require


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Non-leaky augmentation: geometric transforms that the network is told of by 9 labels (appendix F.2)."""

    probability: float = 0.0
    """Of each transform; 0 = none. The paper: 0.12 for CIFAR-10, 0.15 at 64x64. Needs network.augment_dim=9."""

    def __post_init__(self) -> None:
        require(0.0 <= self.probability <= 1.0, "augment.probability", self.probability, "0 (none) to 1")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam without weight decay, learning rate ramped up linearly over images."""

    lr: float = 1e-3
    """Learning rate, after the ramp."""
    ramp_kimg: float = 10_000.0
    """It rises from 0 over so many thousand images."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay of the first and second moment."""
    eps: float = 1e-8
    """Adam's, added to the root of the second moment."""
    grad_clip: float = 0.0
    """Largest norm of the gradient, cut there; 0 = never (configuration A: 1)."""
    nonfinite: str = "stop"
    """stop | replace: of a gradient that is not finite. stop: the step is not taken, the run ends, its last checkpoint
    is from before. replace: entries become 0 or +-1e5, as in the paper's code; a run of mostly such steps ends."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "greater than 0")
        require(self.ramp_kimg >= 0, "optimizer.ramp_kimg", self.ramp_kimg, "0 (no ramp) or more")
        require(self.grad_clip >= 0, "optimizer.grad_clip", self.grad_clip, "0 (off) or more")
        require(self.nonfinite in ("stop", "replace"), "optimizer.nonfinite", self.nonfinite, "stop or replace")
        require(all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "two numbers, 0 <= beta < 1")


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the parameters, by half-life in images."""

    halflife_kimg: float = 500.0
    """Half-life of the average, in thousands of images."""
    rampup_ratio: float = 0.05
    """The half-life is at most this share of the images seen so far; 0 = no ramp."""
    sigma_rels: tuple[float, ...] = ()
    """Relative widths of power-function averages kept beside (Karras et al. 2024, section 3), e.g. (0.05, 0.10);
    `edm-ray ema` makes any width in their range from their snapshots after training."""
    snapshot_kimg: float = 1000.0
    """How often the power-function averages are stored."""
    snapshot_dtype: str = "float32"
    """float32 | float16: half the bytes, at an error of 2e-4 of the parameters' norm."""

    def __post_init__(self) -> None:
        require(self.halflife_kimg > 0, "ema.halflife_kimg", self.halflife_kimg, "greater than 0")
        require(self.rampup_ratio >= 0, "ema.rampup_ratio", self.rampup_ratio, "0 (no ramp) or more")
        for width in self.sigma_rels:
            require(0 < width < 0.28, "ema.sigma_rels", width, "greater than 0, less than 0.28")
        require(len(set(self.sigma_rels)) == len(self.sigma_rels), "ema.sigma_rels", self.sigma_rels, "each width once")
        require(self.snapshot_kimg > 0, "ema.snapshot_kimg", self.snapshot_kimg, "greater than 0")
        dtype = self.snapshot_dtype
        require(dtype in ("float32", "float16"), "ema.snapshot_dtype", dtype, "float32 or float16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run. All of it is in the run's identity but length, how often something is written, and what changes
    rounding only (micro_batch, compile, graph, deterministic, threads)."""

    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    objective: ObjectiveConfig = field(default_factory=EDMObjective)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EmaConfig = field(default_factory=EmaConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    precision: str = "fp32"
    """fp32 | tf32 | bf16 | fp16: of the network's forward and backward pass; parameters and preconditioning stay fp32.
    tf32 and fp16 are for GPUs."""
    loss_scale: float = 1.0
    """fp16 only: the loss is multiplied by it before the backward pass and the gradient divided by it after."""
    seed: int = 0
    """Of everything random in the training."""
    xflip: bool = False
    """Mirror images belong to the data set too: an epoch is twice as long (configurations A-E)."""
    batch_size: int = 512
    """Global batch, in images, over all workers: results do not depend on how it is shared out."""
    micro_batch: int = 0
    """Images a worker takes through the network at once, gradients adding up; 0 = its whole share. For memory only."""
    compile: bool = False
    """torch.compile the network: minutes at the start, then fewer and larger kernels. Changes rounding only."""
    graph: bool = True
    """On one GPU, without micro_batch and compile: record a step as a CUDA graph and replay it. No bit changes."""
    deterministic: bool = True
    """On a GPU: equal runs give equal bits, resumed ones too. False lets cuDNN and attention choose faster kernels."""
    threads: int = 1
    """CPU threads of each worker, whatever the machine has: another number is another order of sums, and the bits of a
    run would depend on where it runs. On a CPU, Ray gives a worker as many CPUs. Changes rounding only."""
    total_kimg: float = 200_000.0
    """Length of the run in thousands of images; the last step is cut nowhere: it ends at the first batch past it."""
    tick_kimg: float = 50.0
    """One line of metrics every so many thousand images."""
    checkpoint_kimg: float = 500.0
    """A checkpoint every so many thousand images."""
    keep_checkpoints: int = 2
    """The newest so many are kept; 2 or more."""
    lanes: int = 840
    """Positions of the data order belong to position mod lanes; workers share the lanes out. 840 = lcm(1..8)."""
    order: str = "rows"
    """rows: every epoch is a perfect permutation, and the decoded data set must fit the cache of each node. blocks:
    shuffled in windows of a few shards; a node reads the shards of its lanes only. Needs lanes <= shards, e.g. 24."""
    on_damage: str = "raise"
    """raise | skip: of a damaged shard; skipped rows are replaced by those of the next good shard, and counted."""
    reader: str = "cache"
    """cache: every node decodes into its cache; exact. ray-data: tasks of Ray Data decode, on any CPU of the cluster,
    and stream to the workers; the order depends on timing: no two runs are alike, a resumed one begins its epoch again.
    """

    def __post_init__(self) -> None:
        _require_finite(dataclasses.asdict(self))
        self.objective.check_beside(self.denoiser.preconditioning)
        require(0 <= self.seed < 1 << 63, "seed", self.seed, "0 to 2^63 - 1")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.threads >= 1, "threads", self.threads, "at least 1")
        require(self.micro_batch >= 0, "micro_batch", self.micro_batch, "0 (the whole share) or more")
        require(
            self.augment.probability == 0 or self.denoiser.network.augment_dim == 9,
            "denoiser.network.augment_dim",
            self.denoiser.network.augment_dim,
            f"9 with augment.probability={self.augment.probability}, so that the network is told what was done",
        )
        for name in ("total_kimg", "tick_kimg", "checkpoint_kimg"):
            require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        require(
            self.keep_checkpoints >= 2,
            "keep_checkpoints",
            self.keep_checkpoints,
            "at least 2, so that a damaged checkpoint leaves one to fall back to",
        )
        allowed = ("fp32", "tf32", "bf16", "fp16")
        require(self.precision in allowed, "precision", self.precision, "fp32, tf32, bf16 or fp16")
        require(self.loss_scale > 0, "loss_scale", self.loss_scale, "greater than 0")
        require(self.lanes >= 1, "lanes", self.lanes, "at least 1")
        require(self.order in ("rows", "blocks"), "order", self.order, "rows or blocks")
        require(self.on_damage in ("raise", "skip"), "on_damage", self.on_damage, "raise or skip")
        require(self.reader in ("cache", "ray-data"), "reader", self.reader, "cache or ray-data")
        if self.reader == "ray-data":
            require(self.order == "rows", "order", self.order, "rows with reader=ray-data")
            require(self.on_damage == "raise", "on_damage", self.on_damage, "raise with reader=ray-data")


def _require_finite(value: Any, path: str = "") -> None:
    """Refuse infinities and NaN anywhere in a configuration."""
    if isinstance(value, dict):
        for name, part in value.items():
            _require_finite(part, f"{path}.{name}".lstrip("."))
    for each in value if isinstance(value, (list, tuple)) else (value,):
        require(not isinstance(each, float) or math.isfinite(each), path, each, "a finite number")
