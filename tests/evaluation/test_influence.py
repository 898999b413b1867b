"""Influences of images on the FID, against what calculus and Gaussians say."""

from __future__ import annotations

import numpy as np
import pytest

from edm_ray.evaluation.fid import FidReference, interval_95, paired_difference, standard_error
from edm_ray.evaluation.influence import GROUPS, Influence, fid_of_features, group_influences
from edm_ray.evaluation.moments import Moments

BITS = 14


def _grid(values):
    return np.rint(values * 2**BITS).astype(np.int32)


def _features(n, d, mean=0.0, std=1.0, seed=0):
    return _grid(np.random.default_rng(seed).normal(size=(n, d)) * std + mean)


def _reference(d, n=20_000, seed=99):
    return FidReference(Moments.of(_features(n, d, seed=seed), "x", BITS))


def _influence(features, reference):
    moments = Moments.of(features, "x", BITS)
    return Influence(moments, reference, int(np.abs(features).max()))


def _weighted(features, reference, weights):
    """FID of images that count with these weights, with the n - 1 of the covariance."""
    x, n = features / 2.0**BITS, len(features)
    weights = weights / weights.sum()
    mean = weights @ x
    covariance = n / (n - 1) * (x - mean).T @ ((x - mean) * weights[:, None])
    root = np.sqrt(np.linalg.eigvalsh(reference.root.T @ covariance @ reference.root)).sum()
    gap = mean - reference.mean
    return gap @ gap + np.trace(covariance) + reference.trace - 2 * root


def test_an_influence_is_the_derivative_of_the_fid_by_the_images_weight():
    rng = np.random.default_rng(1)
    features, reference = _grid(rng.gamma(2, size=(300, 6)) @ rng.normal(size=(6, 6))), _reference(6)
    phi = _influence(features, reference).of(features)
    even, step = np.full(300, 1 / 300), 1e-5
    for image in (0, 17, 299):
        towards = np.eye(300)[image] - even
        slope = (_weighted(features, reference, even + step * towards)) - (
            _weighted(features, reference, even - step * towards)
        )
        assert phi[image] - phi.mean() == pytest.approx(slope / (2 * step), rel=1e-6)


def test_the_error_of_gaussian_features_is_the_delta_methods():
    """FID = sum of (mean gap)^2 + (std - 1)^2, var(mean) = std^2 / n and var(std) = std^2 / 2n."""
    n, gap, std = 40_000, np.array([0.5, 0.0, -0.2]), np.array([1.5, 1.2, 0.7])
    features = _features(n, 3, gap, std)
    reference = FidReference(Moments.of(_features(1_000_000, 3, seed=99), "x", BITS))
    analytic = np.sqrt(((2 * gap * std) ** 2 + 2 * ((std - 1) * std) ** 2).sum() / n)
    phi = _influence(features, reference).of(features)
    assert phi.std() / np.sqrt(n) == pytest.approx(analytic, rel=0.02)
    assert fid_of_features(features, np.arange(n), reference).se == pytest.approx(analytic, rel=0.25)


def test_influences_have_the_same_bits_whatever_images_they_come_with(monkeypatch):
    features, seeds, reference = _features(500, 24, mean=2.0), np.arange(70, 570), _reference(24)
    influence = _influence(features, reference)
    whole, together = influence.of(features), group_influences(influence, [(features, seeds)])
    assert sum(together) == pytest.approx(0, abs=1e-12) and len(together) == GROUPS
    order = np.random.default_rng(3).permutation(500)
    assert np.array_equal(influence.of(features[order]), whole[order])
    for cuts in ([1, 2, 3], [100, 333], list(range(1, 500))):
        pieces = list(zip(np.split(features[order], cuts), np.split(seeds[order], cuts), strict=True))
        assert group_influences(influence, pieces) == together
    monkeypatch.setattr("edm_ray.evaluation.influence.ROWS_AT_ONCE", 7)
    assert np.array_equal(influence.of(features), whole)


def test_the_product_of_integers_is_exact():
    """Of features as large as their type allows too."""
    features = np.random.default_rng(0).integers(-(2**31) + 1, 2**31 - 1, (3, 5)).astype(np.int32)
    reference = FidReference(Moments.of(_features(50, 5), "x", BITS))
    influence = Influence(Moments.of(features // 2**12, "x", BITS), reference, int(np.abs(features.astype(int)).max()))
    exact = features.astype(object) @ influence.table.astype(np.int64).astype(object)
    assert max(abs(int(value)) for value in exact.flatten()) < 2**53
    assert np.array_equal(features.astype(float) @ influence.table, exact.astype(float))


def _redraws(n, d, count, **other):
    reference = _reference(d)
    for number in range(count):
        noise = np.random.default_rng([n, number]).normal(size=(n, d))
        pair = [_grid(noise * std + 0.1) for std in (1.2, other.get("std", 1.23))]
        yield [fid_of_features(features, np.arange(n), reference) for features in pair]


def test_intervals_hold_the_truth_in_95_percent_of_redraws():
    """(mean gap)^2 + (std - 1)^2 in each of five coordinates; and the difference of two samplers on the same seeds."""
    found = list(_redraws(400, 5, 400))
    truth = 5 * (0.1**2 + 0.2**2)
    change = truth - 5 * (0.1**2 + 0.23**2)
    single = paired = 0
    for a, b in found:
        low, high = interval_95(a.debiased, a.se, len(a.influence))
        single += low <= truth <= high
        low, high = interval_95(*paired_difference(a, b), len(a.influence))
        paired += low <= change <= high
    assert 0.92 <= single / len(found) <= 0.98 and 0.92 <= paired / len(found) <= 0.98


def test_fewer_images_than_features_have_errors_of_the_true_size():
    found = [a for a, _ in _redraws(40, 64, 60)]
    spread = np.std([each.fid for each in found], ddof=1)
    assert np.mean([each.se for each in found]) == pytest.approx(spread, rel=0.35)


def test_classes_that_every_group_holds_alike_are_no_error():
    """Ten seeds in a row share one of ten classes, as with balanced labels; classes far apart."""
    seeds, rng, reference = np.arange(3000), np.random.default_rng(0), _reference(4)
    within = rng.normal(size=(3000, 4)) * 0.3
    classes = rng.normal(size=(10, 4)) * 2
    balanced = fid_of_features(_grid(within + classes[seeds // 10 % 10]), seeds, reference)
    drawn = fid_of_features(_grid(within + classes[rng.integers(0, 10, 3000)]), seeds, reference)
    assert balanced.se < 0.5 * drawn.se


def test_one_group_has_no_error():
    with pytest.raises(ValueError, match="2 groups"):
        standard_error([0.0])


def test_images_that_are_all_alike_have_an_fid():
    found = fid_of_features(np.full((50, 3), 2**BITS, np.int32), np.arange(50), _reference(3))
    assert np.isfinite([found.fid, found.se, *found.influence]).all() and found.fid > 3
