"""What research/scale/model.py says of two processes, and what two processes do.

The model puts a step together from its parts (compute, all-reduce, what hides). Here the parts are measured on this
machine, and so is the whole: DDP over gloo, one thread a process. Called by research/scale/measure.py.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

IMAGES = (1, 4, 16)
"""Images a process, from a step that is mostly all-reduce to one that is mostly compute."""
REPEATS = 12


def _network() -> torch.nn.Module:
    """Many parameters for little compute, as a large network on a fast GPU has: U-Net of 8x8 pictures."""
    from edm_ray.config.network import DDPMpp
    from edm_ray.networks import build_network

    return build_network(
        DDPMpp(
            img_resolution=8, img_channels=1, model_channels=128, channel_mult=(1, 2), num_blocks=1, attn_resolutions=()
        )
    )


def _times(barrier: Callable[[], object], **works: Callable[[], object]) -> dict[str, list[float]]:
    """Lower and upper quartile of each work's times.

    The works take turns, so that a machine that is busy for a while is busy for all of them; all processes begin each
    of them together.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 2):
        for name, work in works.items():
            barrier()
            started = time.perf_counter()
            work()
            if repeat >= 2:
                times[name].append(time.perf_counter() - started)
    return {name: [sorted(each)[REPEATS // 4], sorted(each)[-1 - REPEATS // 4]] for name, each in times.items()}


def _process(rank: int, rendezvous: str, out: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    alone = _network()
    parallel = torch.nn.parallel.DistributedDataParallel(_network())
    count = sum(p.numel() for p in alone.parameters())
    gradient = torch.ones(count)
    found: dict[str, list[float]] = {}
    for images in IMAGES:
        x, sigma = torch.randn(images, 1, 8, 8), torch.zeros(images)

        def step(network: torch.nn.Module, x: torch.Tensor = x, sigma: torch.Tensor = sigma) -> None:
            network.zero_grad(set_to_none=True)
            network(x, sigma, None, None).square().mean().backward()

        # Both processes compute at the same time in both cases: what they share of the machine is in both.
        found |= _times(
            dist.barrier,
            **{
                f"ddp_{images}_alone_s": lambda step=step: step(alone),
                f"ddp_{images}_reduce_s": lambda: dist.all_reduce(gradient),
                f"ddp_{images}_together_s": lambda step=step: step(parallel),
            },
        )
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


def measure() -> dict[str, list[float]]:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out.json"
        mp.spawn(_process, args=(f"{folder}/rendezvous", out), nprocs=2)
        found: dict[str, list[float]] = json.loads(Path(out).read_text())
    return found
