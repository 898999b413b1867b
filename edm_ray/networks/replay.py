"""A function of tensors on a GPU, recorded once for each set of shapes as a CUDA graph, and replayed after that.

A step of a U-Net launches thousands of kernels; at a GPU's speed the host is the slower of the two. A replay is one
launch. The kernels are the same, so are the bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

import torch

WARM_UPS = 3
"""Calls before recording: libraries choose their kernels and allocate in them, which a recording must not contain."""
MOST = 4
"""Recordings that are kept, each with its own memory; the one that was made first goes."""

Inputs = tuple[torch.Tensor | None, ...]


class Replay:
    """``function(*inputs)`` -> a tensor or a tuple of tensors. It must not read a number from the device, and depend on
    nothing but its inputs and on tensors that stay where they are (parameters).

    The results of a call are copies; calls of several threads take turns.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.recorded: dict[Hashable, _Recording] = {}
        self.lock = threading.Lock()

    def __call__(self, *inputs: torch.Tensor | None) -> Any:
        key = (tuple(None if x is None else (x.shape, x.dtype) for x in inputs), _autocast())
        with self.lock:
            if key not in self.recorded:
                if len(self.recorded) == MOST:
                    del self.recorded[next(iter(self.recorded))]
                self.recorded[key] = _Recording(self.function, inputs)
            return self.recorded[key].replay(inputs)


class _Recording:
    """The graph with the tensors that it reads and writes."""

    def __init__(self, function: Callable[..., Any], inputs: Inputs) -> None:
        with torch.inference_mode(False):
            self.inputs = tuple(
                None if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in inputs
            )
        self._fill(inputs)
        # Not autocast's cache: it holds weights in 16 bits, which end with the block that is entered outside.
        enabled, dtype = _autocast()
        with torch.autocast("cuda", dtype=dtype, enabled=enabled, cache_enabled=False):
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function(*self.inputs)
            current.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may allocate meanwhile: they take features of what was sampled before.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.outputs = function(*self.inputs)

    def replay(self, inputs: Inputs) -> Any:
        self._fill(inputs)
        self.graph.replay()
        if isinstance(self.outputs, torch.Tensor):
            return self.outputs.clone()
        return tuple(output.clone() for output in self.outputs)

    def _fill(self, inputs: Inputs) -> None:
        for own, given in zip(self.inputs, inputs, strict=True):
            if own is not None and given is not None:
                own.copy_(given)


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
