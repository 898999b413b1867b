"""A group of training workers: how many, of what size, on which device; what that takes of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from ray.train import ScalingConfig

from edm_ray.distributed.cluster.preflight import WorkerRequest

NEVER_S = 1e9
"""Between Ray Train's own looks at what it could grow to: `elastic` does that without losing a step."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """``least`` to ``most`` DDP processes of equal size; with ``least`` < ``most`` the group is elastic."""

    least: int
    most: int
    device: str = "cpu"
    threads: int = 1
    """CPUs of each; with cuda each takes one GPU instead."""

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def request(self) -> WorkerRequest:
        """What the smallest group takes of the cluster."""
        if self.device == "cuda":
            return WorkerRequest(what="training", count=self.least, gpus=1.0)
        return WorkerRequest(what="training", count=self.least, cpus=float(self.threads))

    def scaling(self) -> ScalingConfig:
        """The same, as Ray Train is told."""
        request = self.request()
        return ScalingConfig(
            num_workers=(self.least, self.most) if self.elastic else self.most,
            elastic_resize_monitor_interval_s=NEVER_S,
            use_gpu=request.gpus > 0,
            resources_per_worker={"GPU": request.gpus} if request.gpus else {"CPU": int(request.cpus)},
        )
