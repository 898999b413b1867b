from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.data.importers.digits import split_digits
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors.digits import DigitsClassifier, save_digits_classifier, train_digits_classifier
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.grids import image_grid, save_grid


@pytest.fixture(scope="module")
def digits():
    return {k: (torch.from_numpy(i), torch.from_numpy(y)) for k, (i, y) in split_digits().items()}


@pytest.fixture(scope="module")
def state(digits):
    return train_digits_classifier(*digits["train"])


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("w") / "digits.safetensors"
    save_digits_classifier(state, path)
    return path


def test_the_digits_classifier_reads_held_out_digits(digits, state):
    model = DigitsClassifier()
    model.load_state_dict(state)
    images, labels = digits["heldout"]
    assert float((model.classify(images) == labels).float().mean()) >= 0.95


def test_the_digits_classifier_is_the_same_every_time_and_touches_no_global_randomness(digits, state):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = train_digits_classifier(*digits["train"])
    assert all(torch.equal(again[name], state[name]) for name in state)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_of_features_does_not_depend_on_the_batch(digits, weights):
    extractor = load_extractor("digits", weights)
    images = digits["heldout"][0][:230]
    whole = extractor.extract(images)
    assert whole.dtype == np.int32 and whole.shape == (230, 64)
    for part in (slice(0, 1), slice(7, 30), slice(99, 230)):
        assert np.array_equal(extractor.extract(images[part]), whole[part])


def test_the_identity_follows_the_weights(state, weights, tmp_path):
    other = tmp_path / "other.safetensors"
    save_digits_classifier({**state, "hidden.bias": state["hidden.bias"] + 1}, other)
    assert load_extractor("digits", weights).identity == load_extractor("digits", weights).identity
    assert load_extractor("digits", weights).identity != load_extractor("digits", other).identity


def test_wrong_weights_and_wrong_images_are_refused_with_the_fix(weights, tmp_path):
    with pytest.raises(IntegrityError, match="sha256 is"):
        load_extractor("digits", weights, "0" * 64)
    with pytest.raises(InputError, match="give --weights"):
        load_extractor("inception", None)
    with pytest.raises(InputError, match="did you mean 'inception'"):
        load_extractor("inceptoin", weights)
    with pytest.raises(InputError, match="1x8x8, got"):
        load_extractor("digits", weights).extract(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(IntegrityError, match="not weights"):
        load_extractor("digits", tmp_path / "junk")


def test_a_hostile_inception_file_is_refused_and_nothing_runs(tmp_path):
    sentinel = tmp_path / "sentinel"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {sentinel}",)

    path = tmp_path / "weights.pth"
    torch.save({"x": Hostile()}, path)
    for content in (path.read_bytes(), pickle.dumps(Hostile())):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match="not a plain file of tensors"):
            load_extractor("inception", path)
    assert not sentinel.exists()


def test_inception_features_are_those_of_torch_fidelity(inception_weights, monkeypatch):
    """With random weights in the official file format, at the full 299 pixels."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 299)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(inception_weights)
    )
    extractor = load_extractor("inception", inception_weights)
    extractor.micro_batch = 2  # the other 23 would be padding
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.eval()(images.expand(-1, 3, -1, -1))[0].double().numpy()
    assert np.abs(extractor.extract(images) / 2.0**14 - expected).max() < 1e-3 * max(1.0, np.abs(expected).max())


def test_a_grid_shows_the_images_in_order_and_says_what_made_them(tmp_path):
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.full((1, 1, 2, 2), 100, np.uint8)
    grid = np.asarray(image_grid(images, columns=2, scale=3))
    assert grid.shape == (12, 12)
    assert (grid[0, 0], grid[0, 6], grid[6, 0]) == (0, 100, 200)
    spaced = np.asarray(image_grid(images, columns=2, scale=3, gap=5))
    assert spaced.shape == (17, 17)
    assert (spaced[0, 0], spaced[0, 11], spaced[11, 0]) == (0, 100, 200)
    assert len(np.unique(spaced[:, 6:11])) == 1 and spaced[0, 6] == spaced[16, 16]
    save_grid(str(tmp_path / "g.png"), images, 2, {"seeds": "0..2"})
    assert Image.open(tmp_path / "g.png").text["seeds"] == "0..2"
