"""All metrics of one set together, their table, and the paper's protocol beside mean and interval. No Ray."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from edm_ray.cli.tables import measured_table, protocol_table, show
from edm_ray.evaluation.fid import FidReference, fid_reference, interval_95
from edm_ray.evaluation.influence import GROUPS
from edm_ray.evaluation.kid import kid
from edm_ray.evaluation.measure import Plan, estimate_fid, measure, measure_rows, over_sets
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.precision_recall import precision_recall
from edm_ray.evaluation.reference import Reference
from edm_ray.evaluation.reference_features import ReferenceFeatures

BITS, N = 14, 300


def _features(seed, n=N, std=1.0):
    return np.rint(np.random.default_rng(seed).normal(size=(n, 6)) * std * 2**BITS).astype(np.int32)


class _Head:
    """Stands for an extractor that knows classes."""

    def load(self):
        return self

    def logits(self, features):
        return features[:, :4] / 2.0**BITS


@pytest.fixture(scope="module")
def plan():
    real = _features(99, 500)
    reference = Reference(
        moments=Moments.of(real, "x", BITS), dataset="d", dataset_hash="h", extractor_name="x", weights_sha256="w"
    )
    kept = ReferenceFeatures(features=real[:200], rows=np.arange(200))
    return Plan(metrics=("fid", "kid", "isc", "prc"), reference=reference, reference_features=kept, head=_Head())


@pytest.fixture(scope="module")
def sets(plan):
    return [measure(_features(seed, std=1.2), np.arange(seed * N, seed * N + N), plan) for seed in range(3)]


def test_one_pass_gives_what_each_metric_gives_alone(plan, sets):
    features, seeds, kept = _features(1, std=1.2), np.arange(N, 2 * N), plan.reference_features.features
    assert sets[1].fid == estimate_fid(features, seeds, plan.reference, 10)
    assert sets[1].kid == kid(features, seeds, kept, BITS, 10)
    assert sets[1].prc == precision_recall(features, kept)
    assert measure(features, seeds, dataclasses.replace(plan, metrics=("fid",))).kid is None


@pytest.mark.parametrize("metrics", [("fid",), ("fid", "kid", "isc", "prc")])
def test_images_that_come_in_parts_are_measured_alike(plan, metrics):
    features, seeds, plan = _features(1, std=1.2), np.arange(N), dataclasses.replace(plan, metrics=metrics)
    parts = [(features[i : i + 70], seeds[i : i + 70]) for i in range(0, N, 70)]
    assert measure_rows(lambda: iter(parts), plan) == measure(features, seeds, plan)


@pytest.mark.slow
def test_fid_of_parts_needs_no_more_memory_for_more_images(monkeypatch):
    """Parts are made as they are asked for; what is held at most is measured by tracemalloc."""
    import tracemalloc

    monkeypatch.setattr("edm_ray.evaluation.moments.ROWS_AT_ONCE", 200)

    d, reference = 256, np.random.default_rng(0).normal(size=(600, 256))
    moments = Moments.of(np.rint(reference * 2**BITS).astype(np.int32), "x", BITS)
    known = Reference(moments=moments, dataset="d", dataset_hash="h", extractor_name="x", weights_sha256="w")
    plan = Plan(metrics=("fid",), reference=known)
    fid_reference(moments)
    peaks = []
    for count in (100, 400):

        def made(count=count):
            for i in range(count):
                yield np.random.default_rng(i).integers(0, 1 << 14, (100, d), np.int32), np.arange(100) + 100 * i

        tracemalloc.start()
        measure_rows(made, plan)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0] < 0.9 * 400 * 100 * d * 4


def test_the_distance_of_other_features_has_another_name(plan):
    reference = dataclasses.replace(plan.reference, extractor_name="dinov2")
    rows = measure(_features(1), np.arange(N), dataclasses.replace(plan, metrics=("fid",), reference=reference)).rows()
    assert [row.metric for row in rows] == ["FD-DINOv2", "FD-DINOv2, bias removed"]


def test_every_number_says_its_n_and_that_of_the_reference(sets):
    rows = {row.metric: row for row in sets[0].rows()}
    assert list(rows) == ["FID", "FID, bias removed", "KID, all pairs", "KID", "Inception Score", "Precision", "Recall"]
    assert all(row.n == N for row in rows.values())
    assert [row.n_reference for row in rows.values()] == [500, 500, 200, 200, None, 200, 200]
    fid = sets[0].fid
    assert (rows["FID"].low, rows["FID"].high) == interval_95(fid.fid, fid.se, GROUPS)
    assert rows["FID"].high - rows["FID"].value == pytest.approx(1.9935 * fid.se, rel=1e-4)  # t of 72 degrees, 97.5 %
    assert json.loads(json.dumps(sets[0].to_dict()))["kid"]["subset_size"] == 200


@pytest.mark.parametrize(
    ("debiased", "said", "told"),
    [
        (0.5, "estimate for infinitely many images", "debiased 0.500"),
        (-0.1, "its interval holds 0: no difference from the reference is seen", "debiased -0.100 (-0.299 to 0.099)"),
        (-22.8, "below 0, as no FID is: too few images to take the bias off", "debiased -22.800 (-22.999 to -22.601)"),
    ],
)
def test_an_fid_without_bias_that_reaches_zero_says_what_that_means(sets, debiased, said, told):
    fid = dataclasses.replace(sets[0].fid, debiased=debiased, se=0.1)
    rows = {row.metric: row for row in dataclasses.replace(sets[0], fid=fid).rows()}
    assert rows["FID, bias removed"].note == said and fid.describe().endswith(told)


def test_real_images_of_the_reference_itself_are_not_told_from_it(plan):
    """Their FID without bias is about 0, below it as often as above."""
    features = np.random.default_rng(5).permutation(_features(99, 500))[:300]
    fid = measure(features, np.arange(300), dataclasses.replace(plan, metrics=("fid",))).fid
    assert interval_95(fid.debiased, fid.se, GROUPS)[0] <= 0 and " to " in fid.describe()


def test_the_papers_protocol_is_the_best_of_the_sets_beside_mean_and_interval(sets):
    rows = {row.metric: row for row in over_sets(sets)}
    fids = [measured.fid.fid for measured in sets]
    assert rows["FID"].values == tuple(fids) and rows["FID"].best == min(fids) < rows["FID"].mean
    assert rows["FID"].mean == pytest.approx(np.mean(fids)) and rows["FID"].low < rows["FID"].mean < rows["FID"].high
    halves = [interval_95(0.0, measured.fid.se, GROUPS)[1] for measured in sets]
    assert rows["FID"].high - rows["FID"].mean == pytest.approx(np.linalg.norm(halves) / 3)
    assert rows["Inception Score"].best == max(rows["Inception Score"].values)
    assert rows["Precision"].low is None


def test_tables_show_the_columns_apart(capsys, sets):
    show(measured_table(sets[0], "samples against d (n=500), extractor x"))
    show(protocol_table(over_sets(sets), "d (n=500), extractor x", N))
    text = capsys.readouterr().out
    for part in (
        "extractor x",
        "95 % interval",
        "n reference",
        "paper protocol",
        "(min)",
        "(max)",
        "k = 3",
        "3 sets of",
    ):
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_a_reference_is_decomposed_once_a_process(monkeypatch, plan):
    moments, made = plan.reference.moments, []
    again = Moments.from_bytes(moments.to_bytes(), "f")
    first = fid_reference(moments)
    monkeypatch.setattr(FidReference, "__init__", lambda self, moments: made.append(moments))
    assert fid_reference(again) is first and not made


def test_fid_of_a_rank_deficient_reference_is_that_of_the_full_root():
    """20 images of 64 features: the root has 19 columns."""
    rng = np.random.default_rng(0)
    a, b = (np.rint(rng.normal(size=(n, 64)) * 2**BITS).astype(np.int32) for n in (20, 200))
    few, many = Moments.of(a, "x", BITS), Moments.of(b, "x", BITS)
    assert FidReference(few).root.shape == (64, 19)
    assert FidReference(few).distance(many) == pytest.approx(FidReference(many).distance(few), rel=1e-7)
