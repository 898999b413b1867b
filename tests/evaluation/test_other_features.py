"""FD-DINOv2 and FD-CLIP are those of torch-fidelity's `calculate_metrics` on the same PNG files.

Its DINOv2 comes from a download and its CLIP out of a TorchScript archive; both are given our small networks of random
weights there, so what is compared is all the rest: reading, resizing, normalising, and the metrics. (The networks
themselves: test_dinov2.py, test_extractors.py.)
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.evaluation.extractors.dinov2 import dinov2_from_state
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.fid import frechet_distance
from edm_ray.evaluation.kid import kid
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.precision_recall import precision_recall
from tests.evaluation.double import BITS, feature_bound, fid_bound, kid_bound, metrics_in_float64, on_grid, values_of
from tests.evaluation.test_dinov2 import _state as dinov2_state
from tests.evaluation.test_extractors import clip_state

LOUDER = {
    "dinov2": {"patch_embed.proj.weight": 20.0, "norm.weight": 30.0},
    "clip": {"visual.conv1.weight": 100.0, "visual.proj": 200.0},
}


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """More images than features, so that covariances have full rank and rounding stays what it is."""
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 3 * np.pi, 32)
    made = []
    for noise in (20.0, 35.0):
        phase, pitch = rng.uniform(0, 6, (2, 200, 3, 1, 1)), rng.uniform(0.2, 2.0, (2, 200, 3, 1, 1))
        waves = np.sin(pitch[0] * grid[:, None] + phase[0]) * np.cos(pitch[1] * grid[None, :] + phase[1])
        made.append((128 + 90 * waves + noise * rng.normal(size=(200, 3, 32, 32))).clip(0, 255).astype(np.uint8))
    return made[0], made[1]


@pytest.fixture(scope="module")
def folders(sets, tmp_path_factory) -> list[str]:
    places = []
    for images in sets:
        places.append(tmp_path_factory.mktemp("pngs"))
        for i, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(places[-1] / f"{i:03d}.png")
    return [str(place) for place in places]


@pytest.mark.parametrize("name", ["dinov2", "clip"])
def test_the_distance_is_that_of_torch_fidelity(name, sets, folders, tmp_path, monkeypatch):
    ensure_torchvision()
    from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2

    monkeypatch.setattr("edm_ray.evaluation.extractors.registry.INPUT", 56)  # for both sides, and eight times as fast
    monkeypatch.setattr(FeatureExtractorDinoV2, "INPUT_IMAGE_SIZE", 56)
    # Made to see more and say it louder than random weights do: features must differ by more than their rounding.
    state = dinov2_state() if name == "dinov2" else clip_state()
    for part, factor in LOUDER[name].items():
        state[part] = state[part] * factor
    torch.save(state, tmp_path / "weights.pth")
    extractor = load_extractor(name, tmp_path / "weights.pth")
    monkeypatch.setattr("torch.hub.load", lambda *_: dinov2_from_state(dict(state), "x"))
    archive = {**state, "text_projection": torch.zeros(1, 24)}
    monkeypatch.setattr("torch.jit.load", lambda *_, **__: SimpleNamespace(state_dict=lambda: archive))
    theirs, extracted = metrics_in_float64(
        lambda features: {layer: values_of(on_grid(values)) for layer, values in features.items()},
        input1=folders[0],
        input2=folders[1],
        fid=True,
        kid=True,
        prc=True,
        batch_size=extractor.micro_batch,
        feature_extractor={"dinov2": "dinov2-vit-s-14", "clip": "clip-vit-b-32"}[name],
        feature_extractor_weights_path=None if name == "dinov2" else "archive.pt",
        kid_subset_size=100,
        kid_subsets=10,
    )
    raw = [values for features in extracted for values in features.values()]
    for images, values in zip(sets, raw, strict=True):
        found = extractor.extract(torch.from_numpy(images))
        assert np.abs(found - values.double().numpy() * 2.0**BITS).max() <= feature_bound(values)
    a, b = map(on_grid, raw)
    moments = [Moments.of(features, extractor.identity, extractor.scale_bits) for features in (a, b)]
    fid, off = theirs["frechet_inception_distance"], fid_bound(*(m.covariance for m in moments))
    assert fid > max(0.1, 1000 * off) and frechet_distance(*moments) == pytest.approx(fid, rel=0, abs=off)
    ours, off = kid(a, np.arange(len(a)), b, extractor.scale_bits, 10, subsets=10, subset_size=100), kid_bound(a, b)
    assert 1000 * off < ours.mean and ours.mean == pytest.approx(
        theirs["kernel_inception_distance_mean"], rel=0, abs=off
    )
    shares = precision_recall(a, b)
    # Counts of 200, which torch-fidelity divides in float32.
    assert shares.recall > 0 and shares.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert shares.recall == pytest.approx(theirs["recall"], rel=1e-6)
