"""The denoiser as data: a network and the preconditioning around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edm_ray.config.network import DDPMpp, NetworkConfig
from edm_ray.config.preconditioning import EDMPreconditioning, PreconditioningConfig


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The preconditioned denoiser D: all that a model directory needs to rebuild it."""

    network: NetworkConfig = field(default_factory=DDPMpp)
    preconditioning: PreconditioningConfig = field(default_factory=EDMPreconditioning)
