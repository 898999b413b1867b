"""`--extractor self`: features trained in minutes on the images themselves, where no published weights are at hand.

The network tells how a picture was altered (blurred, noised, more or less contrast, two quarters exchanged: what goes
wrong in samples), and of which class it is, where there are classes. FIDs of such features compare within that data set
only; how they rank samplers beside other features: research/self_features.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from edm_ray.errors import IntegrityError
from edm_ray.evaluation.extractors.trained import FeatureNetwork, Loss, train
from edm_ray.execution.executor import OnProgress, no_progress
from edm_ray.seeding import normal, stream_key, words

NAME = "self"
SEEN = 60_000
"""Images that the training sees, about: minutes on one core at 32x32."""
MOST = 1 << 16
"""Different images among them, at most."""
_PURPOSE, _KEY = "self", "edm_ray"


def _replicated(pixels: torch.Tensor) -> torch.Tensor:
    """Mean of 3x3 neighbours."""
    return nn.functional.avg_pool2d(nn.functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, 1)


def _contrast(pixels: torch.Tensor, factor: float) -> torch.Tensor:
    mean = pixels.mean((1, 2, 3), keepdim=True)
    return (pixels - mean) * factor + mean


def _exchanged(pixels: torch.Tensor) -> torch.Tensor:
    """Two opposite quarters change places."""
    half, other = pixels.shape[-1] // 2, pixels.clone()
    other[..., :half, :half], other[..., -half:, -half:] = pixels[..., -half:, -half:], pixels[..., :half, :half]
    return other


ALTERATIONS = (
    lambda pixels, noise: pixels,
    lambda pixels, noise: _replicated(pixels),
    lambda pixels, noise: 0.5 * pixels + 0.5 * _replicated(pixels),
    lambda pixels, noise: pixels + 10 * noise,
    lambda pixels, noise: pixels + 30 * noise,
    lambda pixels, noise: _contrast(pixels, 0.8),
    lambda pixels, noise: _contrast(pixels, 1.25),
    lambda pixels, noise: _exchanged(pixels),
)
"""(pixels float [B, C, S, S] in 0..255, unit noise of that shape) -> the same, altered."""


def altered(images: torch.Tensor, rows: torch.Tensor, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Each of these rows altered in one way, which is keyed by row and epoch: float [B, C, S, S] on levels 0..255, and
    which way it was, int64 [B]."""
    which = words(stream_key(f"{_PURPOSE} alteration"), rows, 1, step=epoch)[:, 0] % len(ALTERATIONS)
    pixels = images[rows].to(torch.float32)
    noise = normal(stream_key(f"{_PURPOSE} noise"), rows, pixels[0].numel(), step=epoch).to(torch.float32)
    noise = noise.reshape(pixels.shape)
    out = pixels.clone()
    for number, alter in enumerate(ALTERATIONS):
        mine = which == number
        if bool(mine.any()):
            out[mine] = alter(pixels[mine], noise[mine])
    return out.round().clamp(0, 255), which


def self_loss(images: torch.Tensor, labels: torch.Tensor, classes: int) -> Loss:
    """How was it altered, and of which class is it? The first ``classes`` outputs are the classes'."""

    def loss(network: FeatureNetwork, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        pixels, which = altered(images, rows, epoch)
        scores = network.scores(pixels)
        value = nn.functional.cross_entropy(scores[:, classes:], which)
        return value + nn.functional.cross_entropy(scores[:, :classes], labels[rows]) if classes else value

    return loss


def train_self(images: torch.Tensor, labels: torch.Tensor, classes: int, on_epoch: OnProgress = no_progress) -> bytes:
    """File of the weights of an extractor trained on uint8 [N, C, S, S] and int64 [N]; the same on every call on one
    machine. classes: how many there are; fewer than two are none."""
    classes = classes if classes >= 2 else 0
    shape = {"channels": images.shape[1], "resolution": images.shape[2], "classes": classes}
    state = train(
        lambda: _network(shape),
        self_loss(images, labels, classes),
        len(images),
        epochs_of(len(images)),
        _PURPOSE,
        on_epoch=on_epoch,
    )
    network = _network(shape)
    network.load_state_dict(state)
    _to_unit_variance(network.eval(), images)
    # One key, since safetensors writes several in any order.
    content: bytes = safetensors.torch.save(network.state_dict(), {_KEY: json.dumps(shape)})
    return content


def epochs_of(count: int) -> int:
    """Passes over so many images."""
    return max(1, min(SEEN // count, 100))


def _network(shape: dict[str, int]) -> FeatureNetwork:
    outputs = shape["classes"] + len(ALTERATIONS)
    with torch.random.fork_rng(devices=[]):
        return FeatureNetwork(channels=shape["channels"], resolution=shape["resolution"], outputs=outputs)


@torch.inference_mode()
def _to_unit_variance(network: FeatureNetwork, images: torch.Tensor) -> None:
    """Scale the features so that their variance over the images is 1 on average, and the logits back: FIDs of a size
    that does not depend on how training went."""
    values = torch.cat([network(part) for part in images.split(500)]).double()
    scale = float(values.var(dim=0, correction=0).mean().sqrt().clamp(min=1e-6))
    network.hidden.weight.div_(scale)
    network.hidden.bias.div_(scale)
    network.logits.weight.mul_(scale)


def shape_of(content: bytes, where: str) -> dict[str, int]:
    """channels, resolution and classes that a file of weights is of, from its head alone. Raises IntegrityError."""
    try:
        [length] = struct.unpack("<Q", content[:8])
        shape = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_KEY])
        if sorted(shape) != ["channels", "classes", "resolution"] or any(type(v) is not int for v in shape.values()):
            raise ValueError("other keys")
        if not (1 <= shape["channels"] <= 64 and 1 <= shape["resolution"] <= 4096 and 0 <= shape["classes"] <= 1 << 16):
            raise ValueError("out of range")
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{where}: not weights that --extractor self trained: {error!r}") from error
    checked: dict[str, int] = shape
    return checked


def self_misfit(content: bytes, where: str, channels: int, resolution: int) -> str | None:
    """What weights at ``where`` are for, in words, where that is not images of this size; else None."""
    shape = shape_of(content, where)
    size, own = shape["resolution"], shape["channels"]
    return None if (own, size) == (channels, resolution) else f"images of {size}x{size}x{own}, which it was trained on"


def read_self_trained(path: Path) -> tuple[FeatureNetwork, int]:
    """The network of a file of weights, and how many classes its first outputs are of."""
    content = path.read_bytes()
    shape = shape_of(content, str(path))
    network = _network(shape)
    try:
        network.load_state_dict(safetensors.torch.load(content))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{path}: not weights that --extractor self trained: {error}") from error
    return network, shape["classes"]
