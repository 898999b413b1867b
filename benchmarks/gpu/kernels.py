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


class Kept:
    """What autograd keeps between the two passes: its own backward pass would run on the stream of the forward pass,
    and not be recorded."""

    def save_for_backward(self, *tensors: torch.Tensor | None) -> None:
        self.saved_tensors = tensors


def calls(shape: tuple[int, ...], device: torch.device) -> tuple[functools.partial, functools.partial]:
    """A forward pass of the network's second normalisation, as in sampling; and a backward pass, with its dropout."""
    from edm_ray.networks.kernels import How, Normalise  # Triton comes with PyTorch for GPUs

    x = torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    a, b, p = (torch.randn(shape[:2], device=device) for _ in range(3))
    keys, kept = torch.arange(shape[0], device=device) * 2**40, Kept()
    forward = functools.partial(Normalise.forward, Kept(), x, p, a, b, None, How(32, 1e-6, True, 0.0))
    y = Normalise.forward(kept, x, p, a, b, keys, How(32, 1e-6, True, 0.13))
    return forward, functools.partial(Normalise.backward, kept, torch.randn_like(y))


def _measure(bench: Bench, shape: tuple[int, ...]) -> None:
    works = calls(shape, bench.device)
    times = [spread(bench.time(recorded(work), rounds=3))["median"] / CALLS for work in works]
    # Least traffic: x and y; x, dy and dx.
    size = 2 * shape[0] * shape[1] * shape[2] * shape[3]
    rates = [passes * size / time / 1e9 for passes, time in zip((2, 3), times)]
    bench.row(
        "kernels", shape=str(shape), forward_us=1e6 * times[0], backward_us=1e6 * times[1],
        forward_gb_per_s=rates[0], backward_gb_per_s=rates[1],
    )  # fmt: skip


def recorded(work: functools.partial) -> functools.partial:
    """`CALLS` of them as one graph."""
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
