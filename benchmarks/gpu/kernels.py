"""The normalisation's kernels alone, recorded so that no launch is waited for, against the memory's own speed."""

from __future__ import annotations

import functools

import torch

from benchmarks.gpu.bench import Bench, spread

SHAPES = ((128, 256, 32, 32), (128, 512, 32, 32), (128, 256, 16, 16))
CALLS = 20
"""In one recording."""


def table(bench: Bench) -> None:
    """One row a shape: forward, and backward."""
    if bench.device.type == "cuda":
        for shape in SHAPES:
            bench.attempt(f"kernels {shape}", functools.partial(_measure, bench, shape))


def _measure(bench: Bench, shape: tuple[int, ...]) -> None:
    from edm_ray.networks.kernels import How, Normalise  # Triton comes with PyTorch for GPUs

    x = torch.randn(shape, device=bench.device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x.requires_grad_()
    a, b, p = (torch.randn(shape[:2], device=bench.device) for _ in range(3))
    keys = torch.arange(shape[0], device=bench.device) * 2**40
    forward = functools.partial(Normalise.apply, x, p, a, b, keys, How(32, 1e-6, True, 0.13))
    y = forward()
    direction = torch.randn_like(y)
    backward = functools.partial(torch.autograd.grad, y, x, direction, retain_graph=True)
    times = [spread(bench.time(_recorded(work), rounds=3))["median"] / CALLS for work in (forward, backward)]
    # Least traffic: x and y; x, dy and dx.
    rates = [passes * x.numel() * 2 / time / 1e9 for passes, time in zip((2, 3), times)]
    bench.row(
        "kernels", shape=str(shape), forward_us=1e6 * times[0], backward_us=1e6 * times[1],
        forward_gb_per_s=rates[0], backward_gb_per_s=rates[1],
    )  # fmt: skip


def _recorded(work: functools.partial) -> functools.partial:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work()
    return functools.partial(torch.cuda.CUDAGraph.replay, graph)
