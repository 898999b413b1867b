"""Shared: an Inception network with random but sensible weights in the official file format, and its features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision

SIZE = 107
"""The network resizes images to 299 pixels; with 107 it is the same network, eight times as fast. Set on the class, so
for both sides alike. `test_inception_features_are_those_of_torch_fidelity` uses 299."""


def random_inception_state(images: np.ndarray) -> dict[str, torch.Tensor]:
    """Weights of a fixed seed, activations normalised by one pass over images, as training would have left them."""
    ensure_torchvision()
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    network = theirs.FeatureExtractorInceptionV3.__new__(theirs.FeatureExtractorInceptionV3)
    load, load_state_dict = torch.load, torch.nn.Module.load_state_dict
    try:  # built without its download: it "loads" nothing
        torch.load = lambda *_, **__: {}
        torch.nn.Module.load_state_dict = lambda self, *a, **k: None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network.__init__("inception-v3-compat", ["logits_unbiased"], feature_extractor_weights_path=__file__)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            network.train()
            with torch.no_grad():
                network(torch.from_numpy(images))
                network.fc.weight.mul_(10.0)  # otherwise every image is of every class
    finally:
        torch.load, torch.nn.Module.load_state_dict = load, load_state_dict
    return network.state_dict()


@pytest.fixture(scope="session")
def small_inception():
    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    before = FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE
    FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE = SIZE
    yield
    FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE = before


@pytest.fixture(scope="session")
def inception_weights(small_inception, two_sets, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_inception_state(np.concatenate(two_sets)), path)
    return path


@pytest.fixture(scope="session")
def two_sets() -> tuple[np.ndarray, np.ndarray]:
    """Coloured patterns, 24 and 25 of them: uint8 [n, 3, 32, 32]. The two sets overlap and differ."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 3 * np.pi, 32)
    sets = []
    for count, noise in ((24, 20.0), (25, 35.0)):
        phase, pitch = rng.uniform(0, 6, (2, count, 3, 1, 1)), rng.uniform(0.2, 2.0, (2, count, 3, 1, 1))
        waves = np.sin(pitch[0] * grid[:, None] + phase[0]) * np.cos(pitch[1] * grid[None, :] + phase[1])
        pixels = 128 + 90 * waves + noise * rng.normal(size=(count, 3, 32, 32))
        sets.append(pixels.clip(0, 255).astype(np.uint8))
    return sets[0], sets[1]
