"""The network of the demo: it reads 8x8 digits, and was trained in seconds on them and their classes."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from edm_ray.evaluation.extractors.trained import FeatureNetwork, class_loss, train

CLASSES = 10
_EPOCHS = 12


class DigitsClassifier(FeatureNetwork):
    """uint8 [B, 1, 8, 8] -> features float32 [B, 64]; `logits` on top of them."""

    def __init__(self) -> None:
        super().__init__(channels=1, resolution=8, outputs=CLASSES)

    def classify(self, pixels: torch.Tensor) -> torch.Tensor:
        """Most likely digit: int64 [B]."""
        digit: torch.Tensor = self.scores(pixels).argmax(dim=1)
        return digit


def train_digits_classifier(images: torch.Tensor, labels: torch.Tensor, seed: int = 0) -> dict[str, torch.Tensor]:
    """State of a classifier trained on uint8 [N, 1, 8, 8] and int64 [N]; the same on every call."""
    return train(DigitsClassifier, class_loss(images, labels), len(images), _EPOCHS, "digits", seed)


def save_digits_classifier(state: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(safetensors.torch.save(state))
