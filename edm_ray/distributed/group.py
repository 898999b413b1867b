"""A group of training workers: how many, of what size, on which device; what that takes of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ray.train import ScalingConfig

from edm_ray.distributed.cluster.preflight import Ask

NEVER_S = 1e9
"""Between Ray Train's own looks at what it could grow to: `elastic` does that without losing a step."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """``least`` to ``most`` DDP processes of equal size; with ``least`` < ``most`` the group is elastic."""

    least: int
    most: int
    device: str = "cpu"
    threads: int = 1
    """CPUs of each, without a GPU."""
    gpus: float = 1.0
    """With cuda: how much of one GPU each takes; above 0.5, so that each has a card of its own."""

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def request(self) -> Ask:
        """What the smallest group takes of the cluster."""
        if self.device == "cuda":
            return Ask(what="training", count=self.least, gpus=self.gpus)
        return Ask(what="training", count=self.least, cpus=float(self.threads))

    def scaling(self) -> ScalingConfig:
        """The same, as Ray Train is told."""
        request = self.request()
        return ScalingConfig(
            num_workers=(self.least, self.most) if self.elastic else self.most,
            elastic_resize_monitor_interval_s=NEVER_S,
            use_gpu=request.gpus > 0,
            resources_per_worker={"GPU": request.gpus} if request.gpus else {"CPU": int(request.cpus)},
        )


def keep_to_share(device: str, gpus: float) -> None:
    """In a worker: PyTorch takes no more of its card's memory than Ray gave it of the card. The rest is another's."""
    if device.startswith("cuda") and gpus < 1.0:
        torch.cuda.set_per_process_memory_fraction(gpus, device)
