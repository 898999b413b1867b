"""Images by seed: image i is a function of (model, settings, seed i, label policy), whatever else is in the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch

from edm_ray.data.codec import to_pictures
from edm_ray.diffusion.denoiser import Denoiser
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import Sampler, sample
from edm_ray.errors import InputError
from edm_ray.execution import activity
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.seeding import image_noise, stream_key, uniform

MICRO_BATCH = 50
"""Images that a network sees at once. Part of what an image is, to the last bit: other shapes round otherwise."""
LARGEST = 10_000
BALANCED_RUN = 10
PRECISIONS = ("fp32", "bf16", "fp16")


def check_precision(precision: str) -> None:
    """Raises InputError for what is none."""
    if precision not in PRECISIONS:
        raise InputError(f"--precision {precision}: give {', '.join(PRECISIONS)}")


def check_micro_batch(size: int, most: int = LARGEST) -> None:
    """Raises InputError for what is no number of images; most: as many as are drawn together."""
    if not 1 <= size <= most:
        raise InputError(f"--micro-batch {size}: give 1 to {most}")


def network_precision(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Within it the network's products are computed in this precision. The sampler's state and sigmas stay float64 and
    the preconditioning float32: with a 16-bit state FID moves several times as much (`research/precision`)."""
    check_precision(precision)
    stack = contextlib.ExitStack()
    if device.type == "cuda":
        # The fastest algorithm is chosen by timing, and fp32 convolutions are TF32, unless one says otherwise.
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        )
    if precision != "fp32":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        stack.enter_context(torch.autocast(device.type, dtype=dtype))
    return stack


def check_labels(policy: str, num_classes: int) -> None:
    """Refuse a policy that a model of so many classes cannot follow."""
    if policy in ("random", "balanced"):
        return  # of a model without classes they ask for nothing
    if not num_classes:
        raise InputError(f"--labels {policy}: the model has no classes; leave it out")
    if not policy.isdecimal() or int(policy) >= num_classes:
        raise InputError(f"--labels {policy}: give random, balanced, or a class in 0..{num_classes - 1}")


def labels_of(seeds: torch.Tensor, num_classes: int, policy: str, empty_classes: Sequence[int] = ()) -> torch.Tensor:
    """Class of each seed: int64 [B].

    policy: "random" (uniform per seed, as in the paper), "balanced" (ten seeds in a row share a class, so that
    every residue of seeds mod 10, which is a jackknife group, holds all classes alike), or a class number.
    empty_classes: had no pictures to train on, and come only by their number.
    """
    check_labels(policy, num_classes)
    if policy not in ("random", "balanced"):
        return torch.full_like(seeds, int(policy))
    drawn = num_classes - len(empty_classes)
    if policy == "random":
        number = (uniform(stream_key("class label"), seeds, 1)[:, 0] * drawn).long()
    else:
        number = seeds // BALANCED_RUN % drawn
    if empty_classes:
        without = set(empty_classes)
        number = torch.tensor([c for c in range(num_classes) if c not in without], device=seeds.device)[number]
    return number


def generate(
    denoiser: ModelDenoiser,
    seeds: torch.Tensor,
    sampler: Sampler,
    labels: str = "random",
    micro_batch: int = MICRO_BATCH,
    precision: str = "fp32",
) -> torch.Tensor:
    """Sample one image per seed: int64 [B] -> uint8 [B, C, H, W] on the host; latents through their decoder.

    The network always sees ``micro_batch`` images (the last micro-batch is padded with repeats), because floating-point
    kernels may round differently for other shapes; so the result does not depend on how seeds are split into calls.
    """
    device, classes = denoiser.device, denoiser.label_dim
    parts = []
    shown: Denoiser = denoiser
    if activity.is_shown():
        shown = _Counted(denoiser, sampler.nfe * -(-len(seeds) // micro_batch))
    for first in range(0, len(seeds), micro_batch):
        part = seeds[first : first + micro_batch].to(device)
        padded = torch.cat([part, part[-1:].expand(micro_batch - len(part))])
        latents = image_noise(padded, "latents", denoiser.shape)(0)
        noise = image_noise(padded, "churn", denoiser.shape)
        one_hot = None
        if classes:
            one_hot = one_hot_labels(labels_of(padded, classes, labels, denoiser.empty_classes), classes)
        with torch.inference_mode(), network_precision(precision, device):
            images = sample(shown, latents, sampler, one_hot, noise, denoiser.guide)
        if not bool(torch.isfinite(images).all()):  # as uint8 they would pass for black pixels
            broken = int((~torch.isfinite(images[: len(part)]).flatten(1).all(dim=1)).sum())
            raise InputError(
                f"{broken} of {len(part)} images of seeds {int(part[0])}..{int(part[-1])} have values that are not "
                f"numbers (NaN or infinite), with {sampler}; the model's weights or these settings are at fault"
            )
        with torch.inference_mode():  # the decoder too sees whole micro-batches only
            parts.append(to_pictures(images, denoiser.codec)[: len(part)].cpu())
    return torch.cat(parts)


class _Counted:
    """A denoiser that says how far a call of `generate` is: once an evaluation."""

    def __init__(self, denoiser: ModelDenoiser, most: int) -> None:
        self.denoiser, self.done, self.most = denoiser, 0, most
        self.sigma_min, self.sigma_max, self.label_dim = denoiser.sigma_min, denoiser.sigma_max, denoiser.label_dim
        self.round_sigma = denoiser.round_sigma

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        self.done += 1
        if self.most:  # an adaptive solver's is not known
            activity.within(min(self.done, self.most), self.most, "network call")
        return self.denoiser(x, sigma, class_labels)
