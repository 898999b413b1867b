"""A small classifier of 8x8 digits whose penultimate layer is a feature extractor: FID without Inception weights.

Trained in seconds from a fixed seed, saved and hashed like any other weights. Its FIDs are comparable with each other
only, like those of any extractor.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from edm_ray.seeding import stream_key, uniform

DIM = 64
CLASSES = 10
_EPOCHS, _BATCH = 12, 64


class DigitsClassifier(nn.Module):
    """uint8 [B, 1, 8, 8] -> features float32 [B, 64]; `logits` on top of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1)
        self.hidden = nn.Linear(64 * 16, DIM)
        self.logits = nn.Linear(DIM, CLASSES)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.to(torch.float32) / 127.5 - 1.0
        x = torch.relu(self.conv0(x))
        x = torch.nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        features: torch.Tensor = self.hidden(x.flatten(1))
        return features

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """Most likely digit: int64 [B]."""
        digit: torch.Tensor = self.logits(torch.relu(self(pixels))).argmax(dim=1)
        return digit


def train_digits_classifier(images: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """State of a classifier trained on uint8 [N, 1, 8, 8] and int64 [N]; the same on every call, one thread, no global
    random state touched."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key("digits classifier", seed) >> 1)
            model = DigitsClassifier()
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        everyone = torch.arange(len(images), dtype=torch.int64)
        for epoch in range(_EPOCHS):
            order = uniform(stream_key("digits order", seed), everyone, 1, step=epoch)[:, 0].argsort()
            for rows in order.split(_BATCH):
                loss = nn.functional.cross_entropy(model.logits(torch.relu(model(images[rows]))), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_digits_classifier(state: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save(state))
