"""The forms in which a network runs, each one change more than the one before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from edm_ray.diffusion.preconditioning import Preconditioned

FORMS = ("eager", "channels_last", "fused", "recorded")
"""PyTorch's own layout and kernels; weights and activations as tensor cores take them; one kernel around each
convolution (`networks.kernels`); the whole as a CUDA graph. The last is how the product runs."""


@contextmanager
def form(name: str) -> Iterator[None]:
    """Networks that are built and called within it are of this form; recording is the caller's."""
    with ExitStack() as stack:
        if FORMS.index(name) < FORMS.index("fused"):
            for user in ("normalise", "layers", "unet"):
                stack.enter_context(mock.patch(f"edm_ray.networks.{user}.one_kernel", _never))
        if name == "eager":
            stack.enter_context(mock.patch("edm_ray.training.state.on_device", moved))
        yield


def moved(denoiser: Preconditioned, device: Any) -> Preconditioned:
    """`networks.build.on_device` without a change of layout."""
    result: Preconditioned = denoiser.to(device)
    return result


def _never(*args: Any) -> bool:
    return False
