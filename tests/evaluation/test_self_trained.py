"""`--extractor self`: features trained on the images themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors import self_trained
from edm_ray.evaluation.extractors.registry import load_extractor, misfit
from edm_ray.evaluation.extractors.self_trained import ALTERATIONS, altered, epochs_of, train_self
from edm_ray.evaluation.extractors.trained import FeatureNetwork
from edm_ray.evaluation.reference import open_reference
from edm_ray.tasks.models import write_dataset


def pictures(count: int, channels: int, size: int, seed: int = 0) -> np.ndarray:
    """Coloured waves: uint8 [count, channels, size, size]."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, 6, size)
    phase, pitch = rng.uniform(0, 6, (2, count, channels, 1, 1)), rng.uniform(0.3, 2.0, (2, count, channels, 1, 1))
    waves = np.sin(pitch[0] * grid[:, None] + phase[0]) * np.cos(pitch[1] * grid[None, :] + phase[1])
    return (128 + 100 * waves).clip(0, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(self_trained, "SEEN", 1500)


@pytest.fixture
def data(tmp_path):
    """Two data sets of coloured pictures of 16x16, one with two classes."""
    labels = np.arange(150) % 2
    write_dataset(pictures(150, 3, 16), labels, str(tmp_path / "one"), name="one", class_names=("a", "b"))
    write_dataset(pictures(150, 3, 16, seed=1), None, str(tmp_path / "two"), name="two")
    return tmp_path


def train(count=120, channels=3, size=16, classes=0):
    images = torch.from_numpy(pictures(count, channels, size))
    return images, train_self(images, torch.arange(count) % max(classes, 1), classes)


def test_the_same_images_give_the_same_bits_and_others_give_others():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images, content = train(classes=2)
    threads = torch.get_num_threads()
    assert train(classes=2)[1] == content != train(classes=0)[1]
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert train_self(images.flip(3), torch.arange(120) % 2, 2) != content


@pytest.mark.parametrize(("channels", "size"), [(1, 4), (1, 7), (1, 8), (3, 16), (1, 28), (3, 48), (3, 64), (4, 100)])
def test_features_are_64_numbers_for_pictures_of_any_size(channels, size, tmp_path):
    network = FeatureNetwork(channels, size, 8)
    assert network(torch.zeros(2, channels, size, size, dtype=torch.uint8)).shape == (2, 64)


def test_features_have_unit_variance_over_the_images_and_the_head_still_reads_them(tmp_path):
    images, content = train(count=200, classes=2)
    (tmp_path / "w").write_bytes(content)
    extractor = load_extractor("self", tmp_path / "w")
    features = extractor.extract(images)
    assert (features / 2.0**14).var(axis=0).mean() == pytest.approx(1.0, rel=1e-3)
    assert extractor.logits(features).shape == (200, 2)
    network, classes = self_trained.read_self_trained(tmp_path / "w")
    assert classes == 2
    expected = network.eval().scores(images)[:, :2].detach().double().numpy()
    assert np.abs(extractor.logits(features) - expected).max() < 1e-2 * np.abs(expected).max()
    (tmp_path / "w").write_bytes(train()[1])
    assert not load_extractor("self", tmp_path / "w").has_head


def test_it_learns_to_tell_alterations_apart(monkeypatch):
    monkeypatch.setattr(self_trained, "SEEN", 6000)
    images, content = train(count=300)
    import safetensors.torch

    network = FeatureNetwork(3, 16, len(ALTERATIONS))
    network.load_state_dict(safetensors.torch.load(content))
    pixels, which = altered(images, torch.arange(300), 999)
    assert float((network.eval().scores(pixels).argmax(1) == which).float().mean()) > 3 / len(ALTERATIONS)


def test_a_row_is_altered_alike_whatever_else_is_in_the_batch():
    images = torch.from_numpy(pictures(40, 3, 8))
    whole, kinds = altered(images, torch.arange(40), 2)
    some = torch.tensor([7, 3, 31])
    part, part_kinds = altered(images, some, 2)
    assert torch.equal(part, whole[some]) and torch.equal(part_kinds, kinds[some])
    assert len(kinds.unique()) > 4 and not torch.equal(altered(images, torch.arange(40), 3)[1], kinds)


def test_the_work_is_bounded():
    assert epochs_of(240) <= 100 and epochs_of(1) <= 100
    assert epochs_of(10**9) == 1 and self_trained.MOST <= 1 << 16


def test_a_reference_says_that_its_fids_compare_within_one_data_set(data, capsys):
    out = str(data / "r")
    assert main(["reference", "--data", str(data / "one"), "--out", out, "--extractor", "self"]) == 0
    said = capsys.readouterr().out
    assert "comparable within one data set only" in said and "passes over the images" in said
    reference, spec = open_reference(out)
    assert "comparable within one data set only" in reference.describe()
    assert spec.load().has_head
    # The same command finds it; another reference made with its weights measures the same features.
    assert main(["reference", "--data", str(data / "one"), "--out", out, "--extractor", "self"]) == 0
    assert "there already" in capsys.readouterr().out
    again = ["--extractor", "self", "--weights", f"{out}/extractor-weights"]
    assert main(["reference", "--data", str(data / "two"), "--out", str(data / "r2"), *again]) == 0
    assert open_reference(str(data / "r2"))[0].moments.extractor == reference.moments.extractor


def test_fids_of_two_data_sets_own_features_are_not_compared(data):
    from edm_ray.evaluation.fid import FidReference
    from edm_ray.evaluation.moments import Moments

    for name in ("one", "two"):
        main(["reference", "--data", str(data / name), "--out", str(data / f"r-{name}"), "--extractor", "self"])
    (one, spec), (two, _) = (open_reference(str(data / f"r-{name}")) for name in ("one", "two"))
    assert one.moments.extractor != two.moments.extractor
    features = spec.load().extract(torch.from_numpy(pictures(100, 3, 16)))
    mine = Moments.of(features, one.moments.extractor, 14)
    assert FidReference(one.moments).distance(mine) > 0
    with pytest.raises(ValueError, match="extractor"):
        FidReference(two.moments).distance(mine)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_an_extractor_that_does_not_fit_the_data_is_refused_in_words(data, digits_dir, capsys, dry):
    (data / "w").write_bytes(train(channels=1, size=8)[1])
    (data / "junk").write_bytes(b"{}")
    mine = ["--weights", str(data / "w")]
    for name, options, says in (
        ("one", ["--extractor", "digits"], "holds images of 16x16x3; it takes images of 8x8x1"),
        ("one", ["--extractor", "digits", *mine], "holds images of 16x16x3; it takes images of 8x8x1"),
        ("one", ["--extractor", "self", *mine], "it takes images of 8x8x1, which it was trained on"),
        ("one", ["--extractor", "self", "--weights", str(data / "junk")], "not weights that --extractor self trained"),
        ("one", ["--extractor", "slef"], "did you mean 'self'"),
        ("one", ["--extractor", "clip"], "give --weights"),
    ):
        out = data / "nothing"
        assert main(["reference", "--data", str(data / name), "--out", str(out), *options, *dry]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert says in line and not out.exists()


def test_every_extractor_says_which_channels_it_takes():
    """Data sets have 1 or 3; pictures that are measured otherwise may have more."""
    for name in ("inception", "clip", "dinov2"):
        assert misfit(name, 4, 32) == "images of 1 or 3 channels" and misfit(name, 1, 32) is misfit(name, 3, 8) is None
    assert misfit("digits", 1, 8) is misfit("self", 5, 9) is None and misfit("digits", 1, 9) == "images of 8x8x1"


def test_a_reference_that_does_not_fit_the_model_is_refused_before_anything_is_sampled(data, digits_dir, capsys):
    run = data / "run"
    train_it = ["--preset", "tiny", "--workers", "0", "--set", "total_kimg=0.064", "batch_size=32"]
    assert main(["train", "--data", str(digits_dir / "train"), "--out", str(run), *train_it]) == 0
    assert main(["reference", "--data", str(data / "one"), "--out", str(data / "r"), "--extractor", "self"]) == 0
    capsys.readouterr()
    both = ["--model", str(run / "model"), "--reference", str(data / "r"), "--out", str(data / "e"), "--dry-run"]
    space = ["--space", "tune_spaces/digits.yaml"]
    for command in (["evaluate", *both, "--num", "100"], ["sweep", *both, *space]):
        assert main(command) == 2
        line = capsys.readouterr().err
        assert "its extractor self takes images of 16x16x3" in line and "makes images of 8x8x1" in line


@pytest.mark.parametrize("damage", [b"", b"x" * 7, b"\xff" * 64])
def test_what_is_no_file_of_weights_is_refused(tmp_path, damage):
    (tmp_path / "w").write_bytes(damage)
    with pytest.raises(IntegrityError, match="not weights"):
        load_extractor("self", tmp_path / "w")
    (tmp_path / "w").write_bytes(train()[1][:-8])
    with pytest.raises(InputError, match="not weights"):
        load_extractor("self", tmp_path / "w")
