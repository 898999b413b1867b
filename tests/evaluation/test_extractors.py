"""CLIP with random weights; logits as a function of stored features; features that a reference keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from edm_ray.cli import main
from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.measure import parse_metrics, plan_measurement
from edm_ray.evaluation.reference import open_reference
from edm_ray.evaluation.reference_features import FEATURES_FILE, ReferenceFeatures, chosen_rows, open_reference_features
from tests.evaluation.double import BITS, feature_bound


def clip_state(width=64, layers=2, patch=16, grid=4, dim=24) -> dict[str, torch.Tensor]:
    """Tensors of a small CLIP vision transformer under the official names; float16, as the official files are."""
    ensure_torchvision()
    from torch_fidelity.feature_extractor_clip import CLIPVisual

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CLIPVisual(dim, patch * grid, layers, width, patch)
        state = {name: torch.randn_like(t) * 0.1 for name, t in network.state_dict().items()}
    return {name: tensor.half() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    safetensors.torch.save_file(clip_state(), path)
    return path


def test_clip_features_are_those_of_torch_fidelitys_network(clip_file):
    from torch_fidelity.feature_extractor_clip import build_model
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    extractor = load_extractor("clip", clip_file)
    assert extractor.dim == 24 and not extractor.has_head
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    network = build_model({**clip_state(), "text_projection": torch.zeros(1, 24)}, torch.float32)
    mean = 255 * torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = 255 * torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    large = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(64, 64), align_corners=False)
    with torch.no_grad():
        expected = network.visual((large - mean) / std).numpy()
    assert np.abs(expected).max() > 0.1
    off = feature_bound(torch.from_numpy(expected))
    assert np.abs(extractor.extract(images) - expected.astype(np.float64) * 2.0**BITS).max() <= off
    grey = images[:, :1]
    assert np.array_equal(extractor.extract(grey), extractor.extract(grey.repeat(1, 3, 1, 1)))


def test_clip_files_that_are_something_else_are_refused(tmp_path, clip_file):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(IntegrityError, match="not weights of CLIP: no tensor"):
        load_extractor("clip", path)
    safetensors.torch.save_file({k: v for k, v in clip_state().items() if "ln_post" not in k}, path)
    with pytest.raises(IntegrityError, match="not weights of CLIP"):
        load_extractor("clip", path)
    path.write_bytes(clip_file.read_bytes()[:-50])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_extractor("clip", path)


def test_a_torchscript_archive_is_refused_with_the_fix(tmp_path):
    """OpenAI's own files are programs."""
    path = tmp_path / "ViT.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(IntegrityError, match=r"TorchScript.*state_dict\(\)"):
        load_extractor("clip", path)


def test_logits_follow_from_stored_features_as_torch_fidelity_computes_them(inception_weights, two_sets):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.from_numpy(two_sets[0][:3])
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    ).eval()
    with torch.no_grad():
        expected = network(images)[0].numpy()
    extractor = load_extractor("inception", inception_weights)
    logits = extractor.logits(extractor.extract(images))
    assert logits.dtype == np.float64 and logits.shape == (3, 1008)
    assert np.abs(logits - expected).max() < 1e-3 * np.abs(expected).max()


def test_an_extractor_without_classes_has_no_inception_score(clip_file):
    with pytest.raises(InputError, match="needs inception or digits"):
        load_extractor("clip", clip_file).logits(np.zeros((1, 24), np.int32))


def test_the_kept_rows_are_a_function_of_their_numbers_and_nested():
    small, large = chosen_rows(5000, 50), chosen_rows(5000, 400)
    assert len(small) == 50 and set(small) <= set(large) and np.array_equal(large, np.unique(large))
    assert np.array_equal(chosen_rows(5000, 50), small)
    assert np.array_equal(chosen_rows(30, 50), np.arange(30))
    # Spread over the whole: classes often lie one after another.
    assert abs(large.mean() - 2500) < 4 * 5000 / np.sqrt(12 * 400)


@pytest.fixture(scope="module")
def reference_dir(digits_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "r"
    command = ["reference", "--data", str(digits_dir / "train"), "--out", str(path), "--extractor", "digits"]
    assert main([*command, "--features", "200"]) == 0
    return path


def test_a_reference_keeps_the_stated_number_of_features(reference_dir, digits_dir):
    from edm_ray.data.manifest import open_dataset
    from edm_ray.data.reader import open_reader

    kept = open_reference_features(str(reference_dir), "kid")
    assert json.loads((reference_dir / "manifest.json").read_text())["features"] == 200 == len(kept.rows)
    _, spec = open_reference(str(reference_dir))
    with open_reader(open_dataset(str(digits_dir / "train"))) as pixels:
        images = np.array(pixels.images[kept.rows])
    assert np.array_equal(spec.load().extract(torch.from_numpy(images)), kept.features)


def test_a_reference_without_features_refuses_kid_and_names_the_fix(digits_dir, reference_dir, tmp_path):
    out = str(tmp_path / "r")
    weights = ["--weights", str(reference_dir / "extractor-weights")]
    data = ["reference", "--data", str(digits_dir / "train"), "--out", out, "--extractor", "digits", *weights]
    assert main([*data, "--features", "0"]) == 0
    reference, spec = open_reference(out)
    for metrics in ("kid", "prc"):
        with pytest.raises(InputError, match=f"--metrics {metrics}: needs features .* --features 10000"):
            plan_measurement(parse_metrics(metrics), out, reference, spec)
    assert plan_measurement(parse_metrics("isc"), out, reference, spec).reference_features is None


def test_a_changed_byte_in_the_kept_features_is_noticed(reference_dir, tmp_path):
    path = reference_dir / FEATURES_FILE
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(IntegrityError, match="sha256 differs"):
            open_reference_features(str(reference_dir), "kid")
    finally:
        path.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a file of features"):
        ReferenceFeatures.from_bytes(b"nonsense", "f")


def test_metrics_are_named_in_one_order_and_unknown_ones_refused():
    assert parse_metrics("prc, kid") == ("fid", "kid", "prc")
    with pytest.raises(InputError, match="did you mean 'kid'"):
        parse_metrics("fid,kidd")
