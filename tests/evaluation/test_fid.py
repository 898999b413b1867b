from __future__ import annotations

import numpy as np
import pytest

from edm_ray.errors import InputError
from edm_ray.evaluation.fid import (
    FidEstimate,
    FidReference,
    frechet_distance,
    paired_difference,
)
from edm_ray.evaluation.influence import fid_of_features
from edm_ray.evaluation.moments import GroupSums, Moments

RNG = np.random.default_rng(0)
BITS = 14


def _features(n, d, mean=0.0, std=1.0, seed=0):
    return np.rint((np.random.default_rng(seed).normal(size=(n, d)) * std + mean) * 2**BITS).astype(np.int32)


def _moments(features, extractor="x"):
    return Moments.of(features, extractor, BITS)


def test_any_partition_and_order_of_the_images_gives_the_same_bits():
    features = _features(1000, 32, mean=3.0)
    whole = _moments(features)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cuts = np.sort(rng.choice(np.arange(1, 1000), 7, replace=False))
        parts = [_moments(part) for part in np.split(features[rng.permutation(1000)], cuts)]
        rng.shuffle(parts)
        merged = Moments.merge(*parts)
        assert np.array_equal(merged.total, whole.total) and np.array_equal(merged.outer, whole.outer)
        assert merged.hash == whole.hash


def test_taking_a_group_out_equals_never_having_had_it():
    features = _features(100, 8)
    left = Moments.merge(_moments(features[:60]), _moments(features[60:])).without(_moments(features[60:]))
    assert left.hash == _moments(features[:60]).hash


def test_groups_that_come_in_any_parts_have_the_same_bits(monkeypatch):
    features, seeds = _features(700, 16, mean=1.0), np.arange(40, 740)
    together = GroupSums(7, "x", BITS)
    together.add(features, seeds)
    whole = together.groups()
    monkeypatch.setattr("edm_ray.evaluation.moments.ROWS_AT_ONCE", 30)
    for sizes in ([700], [1] * 700, [13, 600, 87]):
        sums, first = GroupSums(7, "x", BITS), 0
        for size in sizes:
            sums.add(features[first : first + size], seeds[first : first + size])
            assert max(sum(map(len, rows)) for rows in sums.waiting) < 30, "no more rows wait than are said to"
            first += size
        assert [group.hash for group in sums.groups()] == [group.hash for group in whole]
        assert sums.largest == np.abs(features).max()
    left_out = Moments.of(features[seeds % 7 == 3], "x", BITS)
    assert whole[3].hash == left_out.hash


def test_sums_that_could_be_inexact_are_refused():
    with pytest.raises(OverflowError, match="2\\^53"):
        _moments(np.full((3, 2), 2**31 - 1, np.int32).repeat(1000, axis=0))


def test_mean_and_covariance_are_those_of_numpy():
    features = _features(500, 16, mean=-2.0, std=3.0)
    values = features / 2.0**BITS
    assert np.allclose(_moments(features).mean, values.mean(0), rtol=1e-13)
    assert np.allclose(_moments(features).covariance, np.cov(values, rowvar=False), rtol=1e-9, atol=1e-12)


def test_fid_is_that_of_torch_fidelity():
    from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision

    ensure_torchvision()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    a, b = _moments(_features(400, 64, 0.1, 1.2, seed=1)), _moments(_features(300, 64, seed=2))
    theirs = fid_statistics_to_metric(
        {"mu": a.mean, "sigma": a.covariance}, {"mu": b.mean, "sigma": b.covariance}, verbose=False
    )["frechet_inception_distance"]
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-6)


def test_fid_of_known_gaussians_is_the_closed_form():
    """Independent coordinates: sum of (mean gap)^2 + (std gap)^2."""
    a = _moments(_features(400_000, 3, mean=0.5, std=2.0, seed=3))
    b = _moments(_features(400_000, 3, mean=0.0, std=1.0, seed=4))
    assert frechet_distance(a, b) == pytest.approx(3 * (0.25 + 1.0), rel=0.01)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def _estimate(seed, n=500, reference=None, std=1.0):
    features = _features(n, 8, std=std, seed=seed)
    return fid_of_features(features, np.arange(n), reference)


def test_an_estimate_tells_the_true_spread_and_removes_the_bias():
    reference = FidReference(_moments(_features(200_000, 8, seed=99)))
    estimates = [_estimate(seed, reference=reference, std=1.1) for seed in range(60)]
    truth = 8 * 0.1**2
    fids = np.array([e.fid for e in estimates])
    assert fids.mean() > truth * 1.2  # the plain FID is biased upwards at this n
    assert np.mean([e.debiased for e in estimates]) == pytest.approx(truth, rel=0.1)
    assert np.mean([e.se for e in estimates]) == pytest.approx(fids.std(ddof=1), rel=0.35)


def test_a_paired_difference_is_sharper_than_an_unpaired_one():
    reference = FidReference(_moments(_features(50_000, 8, seed=99)))
    a, b = (_estimate(1, reference=reference, std=std) for std in (1.10, 1.11))
    gap, se = paired_difference(a, b)
    assert gap < 0 and se < 0.2 * np.hypot(a.se, b.se)
    assert paired_difference(a, a) == (0.0, 0.0)


@pytest.mark.parametrize("change", [{"n": 1}, {"reference": "other"}, {"extractor": "other"}])
def test_fids_that_are_not_comparable_are_refused(change):
    import dataclasses

    a = FidEstimate(fid=1, debiased=1, se=1, n=10, influence=(-1, 1), reference="r", extractor="e")
    with pytest.raises(InputError, match=next(iter(change))):
        paired_difference(a, dataclasses.replace(a, **change))
    assert FidEstimate.from_dict(a.to_dict()) == a


def test_moments_of_two_extractors_are_never_mixed():
    a, b = _moments(_features(10, 2)), _moments(_features(10, 2), "y")
    with pytest.raises(InputError, match="cannot be compared"):
        frechet_distance(a, b)
    with pytest.raises(InputError, match="cannot be compared"):
        Moments.merge(a, b)


def test_moments_survive_their_file():
    a = _moments(_features(10, 2))
    assert Moments.from_bytes(a.to_bytes(), "f").hash == a.hash
    with pytest.raises(InputError, match="not a file of moments"):
        Moments.from_bytes(b"nonsense", "f")


def test_small_eigenvalues_are_not_lost():
    """Spread over eleven orders of magnitude, against the singular values of the product of two triangular roots."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(64, 64)) * np.logspace(0, -3.5, 64)[:, None]
    a, b = (
        Moments.of(np.rint(rng.normal(size=(4000, 64)) @ mix * scale * 2**16).astype(np.int32), "x", 16)
        for scale in (1.0, 1.2)
    )
    s, r = a.covariance, b.covariance
    cross = np.linalg.svd(np.linalg.cholesky(s).T @ np.linalg.cholesky(r), compute_uv=False).sum()
    gap = a.mean - b.mean
    expected = gap @ gap + np.trace(s) + np.trace(r) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)
