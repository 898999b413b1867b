"""Pictures for people beyond plain grids: nearest training images, inversion there and back, paths between latents.

Each returns the images of a grid row by row, uint8, and what is to be said of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.data.codec import decode, encode, to_pictures
from edm_ray.diffusion.analysis.inversion import invert, reconstruct
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import Sampler, sample
from edm_ray.errors import InputError
from edm_ray.evaluation.neighbours import nearest
from edm_ray.generation.generate import labels_of
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.seeding import image_noise

Images = npt.NDArray[np.uint8]
LATENT_SHOWN = 3.0
"""Latents are unit normal: this many standard deviations are shown as black to white."""
DIFFERENCE_SHOWN = 10.0
"""Differences are enlarged by this."""
MAX_PROBES = 256


@dataclass(frozen=True, kw_only=True)
class Figure:
    images: Images
    """[rows * columns, C, H, W]"""
    columns: int
    lead: int = 0
    """So many columns are set apart."""
    text: dict[str, str]
    """For the PNG's text chunks."""
    lines: tuple[str, ...]
    """For the terminal."""


def neighbour_figure(
    samples: Images,
    seeds: npt.NDArray[np.int64],
    training: Images,
    sample_rows: npt.NDArray[np.int32],
    training_rows: npt.NDArray[np.int32],
    count: int,
    space: str,
    unit: float = 1.0,
) -> Figure:
    """Each row: a sample, then its ``count`` nearest training images. *_rows: what distances are taken between, on a
    grid of which ``unit`` steps are 1.

    Said beside it, for scale: how far training images are from the nearest other one (median of up to MAX_PROBES of
    them, spread over the data set). Samples that lie much closer than that are copies.
    """
    rows, distances = nearest(sample_rows, training_rows, count)
    probes = np.linspace(0, len(training_rows) - 1, min(MAX_PROBES, len(training_rows))).astype(np.int64)
    _, among = nearest(training_rows[probes], training_rows, min(2, len(training_rows)))
    distances, usual = distances / unit, float(np.median(among[:, -1])) / unit
    images = [picture for i in range(len(samples)) for picture in (samples[i], *training[rows[i]])]
    closest = int(distances[:, 0].argmin())
    exact = int((distances[:, 0] == 0).sum())
    return Figure(
        images=np.stack(images),
        columns=count + 1,
        lead=1,
        text={
            "neighbours": "; ".join(
                f"seed {seed}: rows {', '.join(map(str, row))} at {', '.join(f'{d:.4g}' for d in gap)}"
                for seed, row, gap in zip(seeds.tolist(), rows.tolist(), distances.tolist(), strict=True)
            ),
            "space": space,
        },
        lines=(
            f"each row: a sample, then its {count} nearest training images in {space}",
            f"distance to the nearest: median {np.median(distances[:, 0]):.4g}, least {distances[closest, 0]:.4g} "
            f"(seed {seeds[closest]}, training row {rows[closest, 0]}); {exact} exact copies",
            f"for scale: a training image is {usual:.4g} from the nearest other one (median of {len(probes)})",
        ),
    )


def inversion_figure(
    denoiser: ModelDenoiser,
    images: Images,
    labels: npt.NDArray[np.int64],
    sampler: Sampler,
    micro_batch: int,
) -> Figure:
    """Each row: an image, its latent, the image made from that latent, and 10 times their difference (grey: none)."""
    device, label_dim = denoiser.device, denoiser.label_dim
    shown, squares, moments = [], [], []
    for first in range(0, len(images), micro_batch):
        part = torch.from_numpy(images[first : first + micro_batch]).to(device)
        padded = torch.cat([part, part[-1:].expand(micro_batch - len(part), -1, -1, -1)])
        one_hot = None
        if label_dim:
            classes = torch.from_numpy(labels[first : first + micro_batch]).to(device)
            classes = torch.cat([classes, classes[-1:].expand(micro_batch - len(classes))])
            one_hot = one_hot_labels(classes, label_dim)
        with torch.inference_mode():
            latents = invert(denoiser, decode(padded), sampler, one_hot, denoiser.guide)
            back = reconstruct(denoiser, latents, sampler, one_hot, denoiser.guide)
        latents, back = latents[: len(part)].cpu(), back[: len(part)].cpu()
        gap = back - decode(part).cpu()
        squares.append(gap.square().flatten(1).mean(1))
        moments.append(torch.stack([latents.flatten(1).mean(1), latents.flatten(1).std(1)]))
        quartet = (part.cpu(), encode(latents / LATENT_SHOWN), encode(back), encode(gap * DIFFERENCE_SHOWN))
        shown.append(torch.stack(quartet, dim=1).flatten(0, 1))
    error = float(torch.cat(squares).mean().sqrt())
    mean, std = torch.cat(moments, dim=1).mean(dim=1).tolist()
    return Figure(
        images=torch.cat(shown).numpy(),
        columns=4,
        lead=1,
        text={"inversion error": f"{error:.6g}", "latent": f"mean {mean:.4g}, standard deviation {std:.4g}"},
        lines=(
            f"each row: image, latent (-{LATENT_SHOWN:g} to {LATENT_SHOWN:g}), image made from it, "
            f"{DIFFERENCE_SHOWN:g} x difference",
            f"root mean square error {error:.4g} in [-1, 1] ({error * 127.5:.2g} of 255 levels); "
            f"latents have mean {mean:.3g} and standard deviation {std:.3g} (unit normal: 0 and 1)",
        ),
    )


def spherical(a: torch.Tensor, b: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Points on the great circle from a to b [C, H, W] (Shoemake 1985), at shares [K] of the way: [K, C, H, W].

    Between unit normal latents the straight line would pass through shorter vectors, which the network never saw.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1)
    angle, share = torch.arccos(cosine), share.reshape(-1, 1, 1, 1)
    if float(torch.sin(angle)) < 1e-9:
        return a + share * (b - a)
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def interpolation_figure(
    denoiser: ModelDenoiser,
    pairs: list[tuple[int, int]],
    columns: int,
    sampler: Sampler,
    labels: str,
    micro_batch: int,
) -> Figure:
    """Each row: images from latents on the way from one seed's to another's; the ends are those seeds' own images.

    A row keeps the class of its first seed, so its last image is the second seed's only where the classes agree.
    Raises InputError for settings that add noise: then an image is not a function of its latent.
    """
    if columns < 2:
        raise InputError(f"--columns {columns}: a path needs 2 images or more")
    if sampler.needs_noise(denoiser):
        raise InputError("--interpolate: these settings add noise; give a deterministic sampler, e.g. s_churn=0")
    device, label_dim = denoiser.device, denoiser.label_dim
    share = torch.linspace(0, 1, columns, dtype=torch.float64)
    paths, classes = [], []
    for a, b in pairs:
        seeds = torch.tensor([a, b], dtype=torch.int64)
        ends = image_noise(seeds, "latents", denoiser.shape)(0)
        paths.append(spherical(ends[0], ends[1], share))
        if label_dim:
            classes += labels_of(seeds[:1], label_dim, labels, denoiser.empty_classes).tolist() * columns
    latents = torch.cat(paths)
    parts = []
    for first in range(0, len(latents), micro_batch):
        part = latents[first : first + micro_batch]
        padded = torch.cat([part, part[-1:].expand(micro_batch - len(part), -1, -1, -1)]).to(device)
        one_hot = None
        if label_dim:
            chosen = classes[first : first + micro_batch]
            chosen = chosen + chosen[-1:] * (micro_batch - len(chosen))
            one_hot = one_hot_labels(torch.tensor(chosen, dtype=torch.int64, device=device), label_dim)
        with torch.inference_mode():
            images = sample(denoiser, padded, sampler, one_hot, guide=denoiser.guide)
            pictures = to_pictures(images, denoiser.codec)
        parts.append(pictures[: len(part)].cpu())
    return Figure(
        images=torch.cat(parts).numpy(),
        columns=columns,
        text={"interpolation": "; ".join(f"seed {a} to seed {b}" for a, b in pairs)},
        lines=tuple(f"row {i + 1}: from seed {a} to seed {b}" for i, (a, b) in enumerate(pairs)),
    )
