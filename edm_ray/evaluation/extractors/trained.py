"""Small networks whose penultimate layer is a feature extractor, trained here on the images themselves: FIDs without
anybody's weights.

Trained from fixed seeds with one thread, so one machine gives the same bits every time; saved and hashed like any other
weights. Their FIDs are comparable with each other only, like those of any extractor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from edm_ray.execution.executor import OnProgress, no_progress
from edm_ray.seeding import stream_key, uniform

DIM = 64
GRID = 4
"""Side of the map of 64 channels that the features are a linear map of."""
SIDE = 32
"""Larger images are brought to about this by the stride of the first convolution."""
FIRST, INNER = 32, 64
BATCH = 64
Loss = Callable[["FeatureNetwork", torch.Tensor, int], torch.Tensor]
"""(network, rows [B] int64, epoch) -> loss of these images."""


class FeatureNetwork(nn.Module):
    """uint8 [B, C, S, S] -> features float32 [B, 64]; `logits` on top of them, [B, outputs]."""

    def __init__(self, channels: int, resolution: int, outputs: int) -> None:
        super().__init__()
        self.channels, self.resolution = channels, resolution
        stride = max(1, resolution // SIDE)
        kernel = 3 if stride == 1 else 2 * stride
        self.pools = max(1, math.ceil(math.log2(math.ceil(resolution / stride) / GRID)))
        """The last so many convolutions are followed by one; the last one leaves GRID x GRID."""
        self.depth = max(2, self.pools)
        self.conv0 = nn.Conv2d(channels, FIRST, kernel, stride, padding=(kernel - stride + 1) // 2)
        for i in range(1, self.depth):
            self.add_module(f"conv{i}", nn.Conv2d(FIRST if i == 1 else INNER, INNER, 3, padding=1))
        self.hidden = nn.Linear(INNER * GRID * GRID, DIM)
        self.logits = nn.Linear(DIM, outputs)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(torch.float32) / 127.5 - 1.0
        for i in range(self.depth):
            x = torch.relu(self.get_submodule(f"conv{i}")(x))
            if i == self.depth - 1 and x.shape[-1] != 2 * GRID:
                x = nn.functional.adaptive_max_pool2d(x, GRID)
            elif i >= self.depth - self.pools:
                x = nn.functional.max_pool2d(x, 2)
        features: torch.Tensor = self.hidden(x.flatten(1))
        return features

    def scores(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits, float32 [B, outputs]."""
        result: torch.Tensor = self.logits(torch.relu(self(pixels)))
        return result


def class_loss(images: torch.Tensor, labels: torch.Tensor) -> Loss:
    """Which class is it? images uint8 [N, C, S, S], labels int64 [N]."""

    def loss(network: FeatureNetwork, rows: torch.Tensor, epoch: int) -> torch.Tensor:
        return nn.functional.cross_entropy(network.scores(images[rows]), labels[rows])

    return loss


def train(
    network: Callable[[], FeatureNetwork],
    loss: Loss,
    count: int,
    epochs: int,
    purpose: str,
    seed: int = 0,
    on_epoch: OnProgress = no_progress,
) -> dict[str, torch.Tensor]:
    """State of the network after so many passes over ``count`` images in keyed orders; the same on every call, one
    thread, no global random state touched."""
    with _one_thread():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key(f"{purpose} classifier", seed) >> 1)
            model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        everyone = torch.arange(count, dtype=torch.int64)
        for epoch in range(epochs):
            order = uniform(stream_key(f"{purpose} order", seed), everyone, 1, step=epoch)[:, 0].argsort()
            for rows in order.split(BATCH):
                value = loss(model, rows, epoch)
                optimizer.zero_grad(set_to_none=True)
                value.backward()
                optimizer.step()
            on_epoch(epoch + 1, epochs)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split among threads: with another number of them the last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
