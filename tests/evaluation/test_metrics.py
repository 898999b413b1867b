"""KID, Inception Score, precision and recall: equal to torch-fidelity, and to what is known without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.registry import load_extractor
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.fid import frechet_distance
from edm_ray.evaluation.inception_score import inception_score
from edm_ray.evaluation.kid import group_kernel_sums, kid, subset_kids, unbiased_mmd2
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.precision_recall import precision_recall
from tests.evaluation.double import (
    BITS,
    FORWARD,
    feature_bound,
    fid_bound,
    kid_bound,
    metrics_in_float64,
    on_grid,
    values_of,
)


def _features(n, d=16, mean=0.0, std=1.0, seed=0):
    values = np.random.default_rng(seed).normal(size=(n, d)) * std + mean
    return np.rint(values * 2**BITS).astype(np.int32)


def _values(features):
    return features / 2.0**BITS


@pytest.mark.slow
def test_all_metrics_are_those_of_torch_fidelity_on_the_same_images(inception_weights, two_sets, tmp_path):
    extractor = load_extractor("inception", inception_weights)
    for name, images in zip("ab", two_sets):
        (tmp_path / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / name / f"{i:03d}.png")
    theirs, extracted = metrics_in_float64(
        lambda features: {
            "2048": values_of(on_grid(features["2048"])),
            "logits_unbiased": torch.from_numpy(extractor.logits(on_grid(features["2048"]))),
        },
        input1=str(tmp_path / "a"),
        input2=str(tmp_path / "b"),
        fid=True,
        kid=True,
        isc=True,
        prc=True,
        batch_size=25,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        kid_subset_size=16,
        kid_subsets=20,
        isc_splits=3,
    )
    weights = torch.load(inception_weights, weights_only=True)["fc.weight"]
    for images, features in zip(two_sets, extracted, strict=True):
        values, logits = features["2048"], features["logits_unbiased"]
        found, off = extractor.extract(torch.from_numpy(images)), feature_bound(values)
        assert np.abs(found - values.double().numpy() * 2.0**BITS).max() <= off
        # A logit moves by a feature's error times the sum of a class's weights, and by its own float32 pass.
        off = off / 2.0**BITS * float(weights.abs().sum(1).max()) + FORWARD * float(logits.abs().max())
        assert 200 * off < logits.abs().max()
        assert np.abs(extractor.logits(found) - logits.double().numpy()).max() <= off
    a, b = (on_grid(features["2048"]) for features in extracted)
    moments = [Moments.of(features, extractor.identity, extractor.scale_bits) for features in (a, b)]
    fid, off = theirs["frechet_inception_distance"], fid_bound(*(m.covariance for m in moments))
    assert fid > max(1, 1000 * off) and frechet_distance(*moments) == pytest.approx(fid, rel=0, abs=off)
    result, off = kid(a, np.arange(len(a)), b, BITS, 4, subsets=20, subset_size=16), kid_bound(a, b)
    assert 1000 * off < result.std < result.mean
    assert result.mean == pytest.approx(theirs["kernel_inception_distance_mean"], rel=0, abs=off)
    assert result.std == pytest.approx(theirs["kernel_inception_distance_std"], rel=0, abs=off)
    score = inception_score(extractor.logits(a), splits=3)
    assert theirs["inception_score_mean"] > 1.2
    assert score.mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert score.std == pytest.approx(theirs["inception_score_std"], rel=1e-12)
    shares = precision_recall(a, b)
    assert 0 < shares.precision < 1 and 0 < shares.recall < 1
    # Counts of 24 and 25, which torch-fidelity divides in float32.
    assert shares.precision == pytest.approx(theirs["precision"], rel=1e-6)
    assert shares.recall == pytest.approx(theirs["recall"], rel=1e-6)
    assert shares.f_score == pytest.approx(theirs["f_score"], rel=1e-6)


def test_kid_equals_torch_fidelity_in_double_precision():
    ensure_torchvision()
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = _features(300, mean=0.2), _features(200, seed=1)
    expected = kid_features_to_metric(
        torch.from_numpy(_values(a)), torch.from_numpy(_values(b)), kid_subset_size=50, kid_subsets=30, verbose=False
    )
    result = kid(a, np.arange(300), b, BITS, 10, subsets=30, subset_size=50)
    assert result.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-11)
    assert result.std == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-11)


def test_precision_and_recall_equal_torch_fidelity_on_many_features():
    ensure_torchvision()
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = _features(500, d=4), _features(400, d=4, mean=0.5, std=0.7, seed=1)
    expected = prc_features_to_metric(
        torch.from_numpy(_values(a)), torch.from_numpy(_values(b)), verbose=False, save_cpu_ram=True
    )
    result = precision_recall(a, b)
    assert result.precision == pytest.approx(expected["precision"], rel=1e-6)
    assert result.recall == pytest.approx(expected["recall"], rel=1e-6)
    assert (result.n, result.n_reference, result.neighbourhood) == (500, 400, 3)


def test_kid_is_the_sum_over_pairs_written_out():
    """The definition, by two loops."""
    a, b = _features(7, 3, seed=3), _features(5, 3, mean=1.0, seed=4)
    x, y = _values(a), _values(b)

    def k(u, v):
        return (float(u @ v) / 3 + 1) ** 3

    same_x = sum(k(u, v) for i, u in enumerate(x) for j, v in enumerate(x) if i != j) / (7 * 6)
    same_y = sum(k(u, v) for i, u in enumerate(y) for j, v in enumerate(y) if i != j) / (5 * 4)
    expected = same_x + same_y - 2 * sum(k(u, v) for u in x for v in y) / 35
    assert unbiased_mmd2(a.astype(float), b.astype(float), BITS) == pytest.approx(expected, rel=1e-12)
    assert kid(a, np.arange(7), b, BITS, 3).all_pairs == pytest.approx(expected, rel=1e-12)


def test_kid_of_equal_distributions_is_zero_within_its_interval_at_any_n():
    reference = _features(2000, seed=99)
    for n in (100, 400):
        results = [kid(_features(n, seed=s), np.arange(n), reference, BITS, 10, subsets=1) for s in range(24)]
        values, se = np.array([r.all_pairs for r in results]), np.mean([r.se for r in results])
        assert abs(values.mean()) < 4 * values.std(ddof=1) / np.sqrt(24) + 0.01
        assert se == pytest.approx(values.std(ddof=1), rel=0.5)


def test_kid_without_a_group_is_the_kid_of_the_others(monkeypatch):
    """The jackknife's shortcut against computing it anew, over several blocks."""
    monkeypatch.setattr("edm_ray.evaluation.kid.BLOCK", 17)
    a, b = _features(60, seed=1), _features(50, mean=0.3, seed=2)
    within, across, inside = group_kernel_sums(a, np.arange(60) % 5, 5, b, BITS)
    left = np.arange(60) % 5 != 2
    keep = np.array([1.0, 1, 0, 1, 1])
    shortcut = keep @ within @ keep / (48 * 47) + inside / (50 * 49) - 2 * (keep @ across) / (48 * 50)
    assert shortcut == pytest.approx(unbiased_mmd2(a[left].astype(float), b.astype(float), BITS), rel=1e-10)


def test_kid_subsets_depend_on_nothing_but_their_seed():
    a, b = _features(40), _features(30, seed=1)
    first = subset_kids(a, b, BITS, 5, 10)
    np.random.seed(1)  # noqa: NPY002 (NumPy's global state, which must not matter)
    assert np.array_equal(first, subset_kids(a, b, BITS, 5, 10))
    assert not np.array_equal(first, subset_kids(a, b, BITS, 5, 10, seed=7))


def test_precision_sees_unreal_images_and_recall_sees_missing_ones():
    """Two clusters of real images; one set covers one of them, one set covers both and adds nonsense."""
    left, right, away = (_features(100, 4, mean=m, std=0.1, seed=s) for s, m in enumerate((-5.0, 5.0, 50.0)))
    real = np.concatenate([_features(100, 4, mean=m, std=0.1, seed=s) for s, m in ((7, -5.0), (8, 5.0))])
    half = precision_recall(left, real)
    assert half.precision > 0.7 and half.recall < 0.55
    noisy = precision_recall(np.concatenate([left, right, away, away + 100000]), real)
    assert noisy.precision < 0.55 and noisy.recall > 0.7
    same = precision_recall(real, real)
    assert (same.precision, same.recall, same.f_score) == (1.0, 1.0, 1.0)


def test_precision_and_recall_do_not_depend_on_the_block_size(monkeypatch):
    a, b = _features(300, d=5), _features(200, d=5, mean=0.3, seed=1)
    whole = precision_recall(a, b)
    monkeypatch.setattr("edm_ray.evaluation.precision_recall.BLOCK_BYTES", 8 * 300 * 7)
    assert precision_recall(a, b) == whole


def test_precision_and_recall_are_exact_at_a_tie():
    """A point exactly on the edge of a ball is inside, whatever the scale."""
    line = np.array([[0], [1], [2], [3]], np.int32) * 1_000_003
    assert precision_recall(np.array([[6], [6], [6], [6]], np.int32) * 1_000_003, line).precision == 1.0
    assert precision_recall(np.array([[6], [6], [6], [6]], np.int32) * 1_000_003 + 1, line).precision == 0.0


def test_the_inception_score_counts_classes():
    """Certain images: as many as there are classes seen alike; undecided ones: 1."""
    certain = np.eye(8)[np.arange(800) % 8] * 1e4
    assert inception_score(certain, splits=2).mean == pytest.approx(8, rel=0.02)
    assert inception_score(np.zeros((50, 8))).mean == pytest.approx(1.0)
    one_class = np.tile(np.eye(8)[0] * 1e4, (50, 1))
    assert inception_score(one_class).mean == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: kid(_features(9), np.arange(9), _features(30), BITS, 3, subset_size=10), "2 <= size <= 9"),
        (lambda: precision_recall(_features(3), _features(30)), "need 4 images or more, got 3"),
        (lambda: inception_score(np.zeros((5, 3))), "needs 10 images or more, got 5"),
    ],
)
def test_too_few_images_are_refused_with_the_numbers(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_inner_products_that_could_be_inexact_are_refused():
    huge = np.full((5, 4096), 2**31 - 1, np.int32)
    for metric in (lambda: kid(huge, np.arange(5), huge, BITS, 2), lambda: precision_recall(huge, huge)):
        with pytest.raises(OverflowError, match="2\\^53"):
            metric()
