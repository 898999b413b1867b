"""Non-leaky augmentation: geometric transforms of which the network is told (Karras et al. 2022, appendix F.2).

Every image has a parameter for each transform, keyed by its position in the training order; zero means untouched. The
network gets the parameters as 9 labels and is sampled with zeros, so that samples carry no augmentation. Flips are
exact; the rest is one resampling: twice as fine by the sym6 wavelet filter, bilinear, back by the same filter. That
filter is orthonormal, so up and down again is the identity.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from edm_ray.seeding import normal, stream_key, uniform
from edm_ray.training.device import to_device

NUM_LABELS = 9
SCALE_STD, ANISO_STD, SHIFT_STD = 0.2, 0.2, 0.125
"""Scale and stretch by 2^(0.2 w); shift by 0.125 of the side."""
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Low-pass filter of the symlet with 6 vanishing moments (Daubechies 1992, table 6.3), of unit norm."""
DELAY = 5
"""Pixel k of an image is taken to be sample 2 k + DELAY of its finer version, as in the released code. The filter's
centre of mass is at 5.098: a half turn moves a picture by a tenth of a pixel."""


@dataclass(frozen=True)
class AugmentParameters:
    """w of each transform (0 = off), float64 [B] on the host: counter-based, so no device has to be waited for."""

    xflip: torch.Tensor
    yflip: torch.Tensor
    scale: torch.Tensor
    rotate: torch.Tensor
    aniso: torch.Tensor
    aniso_angle: torch.Tensor
    """Direction r of the stretch; means nothing where aniso is 0."""
    shift_x: torch.Tensor
    shift_y: torch.Tensor


def draw_parameters(positions: torch.Tensor, probability: float, seed: int) -> AugmentParameters:
    """Parameters of the images at positions (int64 [B]) of the training order; transforms act with ``probability``.

    The horizontal flip is always on offer: half of the images have it. Vertical flips are offered with ``probability``,
    so half of that share have one; the direction of a stretch is 0 for half of those that have one.
    """
    positions = positions.cpu()
    u = uniform(stream_key("augment", seed), positions, 10)
    w = normal(stream_key("augment sizes", seed), positions, 4)

    def gate(column: int) -> torch.Tensor:
        return (u[:, column] < probability).double()

    shift = gate(6)
    return AugmentParameters(
        xflip=(u[:, 0] < 0.5).double() * (probability > 0),
        yflip=(u[:, 1] < 0.5).double() * gate(2),
        scale=w[:, 0] * gate(3),
        rotate=(2 * u[:, 7] - 1) * math.pi * gate(4),
        aniso=w[:, 1] * gate(5),
        aniso_angle=(2 * u[:, 8] - 1) * math.pi * (u[:, 9] < 0.5),
        shift_x=w[:, 2] * shift,
        shift_y=w[:, 3] * shift,
    )


def augment_labels(parameters: AugmentParameters) -> torch.Tensor:
    """What the network is told: float32 [B, 9]; all zero for an image that is not touched."""
    p = parameters
    return torch.stack(
        [
            p.xflip,
            p.yflip,
            p.scale,
            p.rotate.cos() - 1,
            p.rotate.sin(),
            p.aniso * p.aniso_angle.cos(),
            p.aniso * p.aniso_angle.sin(),
            p.shift_x,
            p.shift_y,
        ],
        dim=1,
    ).to(torch.float32)


def augment(images: torch.Tensor, parameters: AugmentParameters) -> torch.Tensor:
    """Transformed images: float [B, C, R, R] -> the same shape; images whose parameters are zero keep every bit.

    Only images with more than flips are resampled. Which ones is known on the host, so nothing waits for the device;
    a batch that nothing touches is returned as it is.
    """
    p = parameters
    for flag, axis in ((p.xflip, 3), (p.yflip, 2)):
        if bool(flag.any()):
            images = _where(flag != 0, images.flip(axis), images)
    moved = torch.stack([p.scale, p.rotate, p.aniso, p.shift_x, p.shift_y]).abs().amax(0) > 0
    if not bool(moved.any()):
        return images
    chosen = moved.nonzero()[:, 0]
    inverse = inverse_transforms(p, images.shape[3])[chosen]
    rows = to_device(chosen, images.device)
    return images.index_copy(0, rows, resample(images.index_select(0, rows), to_device(inverse, images.device)))


def inverse_transforms(parameters: AugmentParameters, side: int) -> torch.Tensor:
    """Where each output pixel comes from: float64 [B, 2, 3], from output to input coordinates.

    Coordinates are pixels from the image's centre, y downwards. Positive rotations turn the picture counter-clockwise
    as seen, positive shifts move it right and down, scales above 1 magnify.
    """
    p = parameters
    scale = torch.exp2(-SCALE_STD * p.scale)
    stretch = torch.exp2(ANISO_STD * p.aniso)
    zero = torch.zeros_like(scale)
    along = torch.stack([torch.stack([1 / stretch, zero], -1), torch.stack([zero, stretch], -1)], -2)
    turned = _rotation(-p.aniso_angle) @ along @ _rotation(p.aniso_angle)
    linear = scale[:, None, None] * (_rotation(p.rotate) @ turned)
    shift = torch.stack([p.shift_x, p.shift_y], -1)[..., None] * (SHIFT_STD * side)
    return torch.cat([linear, -linear @ shift], dim=2)


def resample(images: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Images [B, C, R, R] seen through affine maps [B, 2, 3] from output to input pixels (origin at the centre).

    What lies outside is the reflection of the image. Its margin is as wide as a reflection can be (R - 1), whatever the
    transforms are: a margin fitted to the batch would make an image depend on its neighbours, and the host wait for it.
    """
    side = images.shape[3]
    up, down = (to_device(matrix.to(images.dtype), images.device) for matrix in _filters(side))
    fine = _both_axes(up, images)
    size, wide = len(up), 3 * side - 2
    # Samples of the canvas that the filter turns into the output's pixels, in output pixels from the centre.
    canvas = (torch.arange(2 * side + 10, dtype=torch.float64, device=images.device) - (side - 1 + DELAY)) / 2
    y, x = torch.meshgrid(canvas, canvas, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1)
    source = torch.einsum("bij,yxj->byxi", inverse.to(places), places)
    grid = (2 * source + (wide - 1 + DELAY)) * (2 / (size - 1)) - 1
    seen = F.grid_sample(fine, grid.to(images.dtype), mode="bilinear", padding_mode="zeros", align_corners=True)
    return _both_axes(down, seen)


def _both_axes(matrix: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """A filter along both axes: [M, N], [B, C, N, N] -> [B, C, M, M].

    A product for each image: convolutions with one filter a channel take ten times as long, and one product for the
    whole batch might round an image differently in another batch.
    """
    flat = images.flatten(0, 1)
    rows = matrix.expand(len(flat), -1, -1)
    filtered: torch.Tensor = torch.bmm(torch.bmm(rows, flat), rows.mT).unflatten(0, images.shape[:2])
    return filtered


@functools.lru_cache(maxsize=8)
def _filters(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 matrices along one axis of R pixels, on the host. [2 (3R - 2) + 10, R]: reflect R - 1 pixels beyond both
    ends, insert zeros, filter with sqrt(2) h. [R, 2R + 10]: filter with h / sqrt(2), every second sample."""
    margin, wide = side - 1, 3 * side - 2
    up = torch.zeros(2 * wide + len(SYM6) - 2, side, dtype=torch.float64)
    down = torch.zeros(side, 2 * side + len(SYM6) - 2, dtype=torch.float64)
    for i, tap in enumerate(SYM6):
        for k in range(wide):
            pixel = abs(k - margin)
            up[2 * k + i, min(pixel, 2 * margin - pixel)] += math.sqrt(2) * tap
        for k in range(side):
            down[k, 2 * k + i] = tap / math.sqrt(2)
    return up, down


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    """[[cos, -sin], [sin, cos]]: [B] -> [B, 2, 2]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)


def _where(flags: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return torch.where(to_device(flags, old.device)[:, None, None, None], new, old)
