"""All metrics of one set of images from one pass over their features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edm_ray.errors import InputError, nearest
from edm_ray.evaluation.fid import FidEstimate, FidReference, fid_reference, interval_95
from edm_ray.evaluation.inception_score import InceptionScore, inception_score
from edm_ray.evaluation.influence import Rows, fid_of_parts
from edm_ray.evaluation.kid import KidEstimate, kid
from edm_ray.evaluation.moments import GroupSums
from edm_ray.evaluation.precision_recall import PrecisionRecall, precision_recall
from edm_ray.evaluation.reference import ExtractorSpec, Reference, open_reference
from edm_ray.evaluation.reference_features import ReferenceFeatures, open_reference_features
from edm_ray.storage.commit import sha256

METRICS = ("fid", "kid", "isc", "prc")
FRECHET_NAMES = {"dinov2": "FD-DINOv2", "clip": "FD-CLIP"}
"""By extractor; what is not here is called FID."""


def parse_metrics(text: str) -> tuple[str, ...]:
    """ "fid,kid" -> ("fid", "kid"), in the order of METRICS; fid is always among them."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    for name in asked:
        if name not in METRICS:
            raise InputError(f"--metrics {name}: unknown{nearest(name, METRICS)}; there are: {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name == "fid" or name in asked)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be measured, against what, with all that this takes; it travels to any node."""

    metrics: tuple[str, ...]
    reference: Reference
    reference_features: ReferenceFeatures | None = None
    """For KID, precision and recall."""
    head: ExtractorSpec | None = None
    """For the Inception Score: the extractor, whose last layer turns features into logits."""
    groups: int = 10

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers, beside the images."""
        rows = self.reference_features
        return {
            "metrics": list(self.metrics),
            "reference": self.reference.moments.hash,
            "reference_features": None if rows is None else sha256(rows.features.tobytes()),
            "head": None if self.head is None else [self.head.name, self.head.sha256],
            "groups": self.groups,
        }


def plan_measurement(metrics: tuple[str, ...], uri: str, reference: Reference, spec: ExtractorSpec) -> Plan:
    """Gather what the metrics need from the reference directory at ``uri``; InputError for what it cannot give."""
    needs_rows = [name for name in ("kid", "prc") if name in metrics]
    if "isc" in metrics and not spec.load().has_head:
        raise InputError(f"--metrics isc: extractor {spec.name} has no classes; use a reference with inception")
    return Plan(
        metrics=metrics,
        reference=reference,
        reference_features=open_reference_features(uri, needs_rows[0]) if needs_rows else None,
        head=spec if "isc" in metrics else None,
    )


def plan_all(metrics: tuple[str, ...], references: Sequence[str]) -> tuple[list[Plan], list[ExtractorSpec]]:
    """A plan and an extractor for each reference directory. The Inception Score is of those extractors that have
    classes; InputError when none has, or when a reference is named twice."""
    opened = [open_reference(uri) for uri in references]
    hashes = [(reference.moments.hash, reference.dataset) for reference, _ in opened]
    if twice := [uri for i, uri in enumerate(references) if hashes[i] in hashes[:i]]:
        raise InputError(f"--reference {twice[0]}: the same reference is given twice")
    heads = [spec.load().has_head for _, spec in opened] if "isc" in metrics else []
    plans = []
    for place, (uri, (reference, spec)) in enumerate(zip(references, opened, strict=True)):
        left_out = any(heads) and not heads[place]
        own = tuple(name for name in metrics if not (left_out and name == "isc"))
        plans.append(plan_measurement(own, uri, reference, spec))
    return plans, [spec for _, spec in opened]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table that people see."""

    metric: str
    value: float
    low: float | None
    """95 % interval around ``value``; None where none is known."""
    high: float | None
    n: int
    n_reference: int | None
    note: str = ""
    smaller_is_better: bool = True


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The metrics of one set of images. Comparable only with those of equal n, reference and extractor."""

    fid: FidEstimate
    kid: KidEstimate | None = None
    isc: InceptionScore | None = None
    prc: PrecisionRecall | None = None
    n_reference: int | None = None
    """Images behind the reference's moments; None where nobody published it."""
    frechet: str = "FID"
    """What the Frechet distance of this extractor's features is called."""

    def to_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name) for name in METRICS}
        return {name: part.to_dict() for name, part in parts.items() if part is not None}

    @classmethod
    def from_dict(cls, content: dict[str, Any], plan: Plan) -> Measured:
        """What `to_dict` gave, measured by this plan."""
        kinds: dict[str, Any] = {"kid": KidEstimate, "isc": InceptionScore, "prc": PrecisionRecall}
        return cls(
            fid=FidEstimate.from_dict(content["fid"]),
            n_reference=plan.reference.images,
            frechet=FRECHET_NAMES.get(plan.reference.extractor_name, "FID"),
            **{name: _fields(kinds[name], part) for name, part in content.items() if name != "fid"},
        )

    def rows(self) -> list[Row]:
        """FID with its bias taken off, KID, Inception Score, precision and recall: those that were measured."""
        fid, groups = self.fid, len(self.fid.influence)
        spread = interval_95(fid.fid, fid.se, groups)
        debiased = interval_95(fid.debiased, fid.se, groups)
        seen, m = fid.n, self.n_reference
        rows = [
            Row(metric=self.frechet, value=fid.fid, low=spread[0], high=spread[1], n=seen, n_reference=m),
            Row(
                metric=f"{self.frechet}, bias removed",
                value=fid.debiased,
                low=debiased[0],
                high=debiased[1],
                n=seen,
                n_reference=m,
                note=_about_debiased(*debiased),
            ),
        ]
        if self.kid is not None:
            k = self.kid
            low, high = interval_95(k.all_pairs, k.se, k.groups)
            subsets = f"mean of {k.subsets} subsets of {k.subset_size}, their std {k.std:.3g}"
            rows += [
                Row(
                    metric="KID, all pairs",
                    value=k.all_pairs,
                    low=low,
                    high=high,
                    n=k.n_paired,
                    n_reference=k.n_reference,
                ),
                Row(metric="KID", value=k.mean, low=None, high=None, n=k.n, n_reference=k.n_reference, note=subsets),
            ]
        if self.isc is not None:
            s = self.isc
            spread = interval_95(s.mean, s.se, s.splits)
            note = f"{s.splits} splits, their std {s.std:.3g}; of {s.classes} classes"
            rows.append(
                Row(
                    metric="Inception Score",
                    value=s.mean,
                    low=spread[0],
                    high=spread[1],
                    n=s.n,
                    n_reference=None,
                    note=note,
                    smaller_is_better=False,
                )
            )
        if self.prc is not None:
            for name, value in (("Precision", self.prc.precision), ("Recall", self.prc.recall)):
                rows.append(
                    Row(
                        metric=name,
                        value=value,
                        low=None,
                        high=None,
                        n=self.prc.n,
                        n_reference=self.prc.n_reference,
                        note=f"k = {self.prc.neighbourhood}",
                        smaller_is_better=False,
                    )
                )
        return rows


def _about_debiased(low: float, high: float) -> str:
    """A FID is at least 0, its estimate without bias is not: what that means, by its 95 % interval."""
    if high < 0:
        return "below 0, as no FID is: too few images to take the bias off"
    if low <= 0:
        return "its interval holds 0: no difference from the reference is seen"
    return "estimate for infinitely many images"


def _fields(kind: Any, content: dict[str, Any]) -> Any:
    """Of a metric's `to_dict`, which says more than its fields."""
    return kind(**{field.name: content[field.name] for field in dataclasses.fields(kind)})


def measure(features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64], plan: Plan) -> Measured:
    """The plan's metrics of int32 [n, d] features of the images with these seeds [n]."""
    return measure_rows(lambda: [(features, seeds)], plan)


def measure_rows(parts: Callable[[], Iterable[Rows]], plan: Plan, decomposed: FidReference | None = None) -> Measured:
    """The same of images that come in parts, each once; ``parts`` is called twice, since the influences of images need
    the moments of all. For FID alone memory does not grow with the images but by one number each; the other metrics
    look at all rows together. decomposed: the plan's reference, where the caller keeps it."""
    moments = plan.reference.moments
    sums = GroupSums(plan.groups, moments.extractor, moments.scale_bits)
    together: list[Rows] = []
    for features, seeds in parts():
        sums.add(features, seeds)
        if plan.metrics != ("fid",):
            together.append((features, seeds))
    others: dict[str, Any] = {}
    if together:
        features, seeds = (np.concatenate(pieces) for pieces in zip(*together, strict=True))
        others = _others(features, seeds, plan)
    return Measured(
        fid=fid_of_parts(sums, parts(), decomposed or fid_reference(moments)),
        n_reference=plan.reference.images,
        frechet=FRECHET_NAMES.get(plan.reference.extractor_name, "FID"),
        **others,
    )


def _others(features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64], plan: Plan) -> dict[str, Any]:
    """The plan's metrics that are no FID."""
    found: dict[str, Any] = {}
    real = plan.reference_features
    if "kid" in plan.metrics:
        assert real is not None
        found["kid"] = kid(features, seeds, real.features, plan.reference.moments.scale_bits, plan.groups)
    if "prc" in plan.metrics:
        assert real is not None
        found["prc"] = precision_recall(features, real.features)
    if "isc" in plan.metrics:
        assert plan.head is not None
        found["isc"] = inception_score(plan.head.load().logits(features))
    return found


def estimate_fid(
    features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64], reference: Reference, num_groups: int
) -> FidEstimate:
    """FID alone of int32 [n, d] features of the images with these seeds, its bias from ``num_groups`` groups."""
    return measure(features, seeds, Plan(metrics=("fid",), reference=reference, groups=num_groups)).fid


@dataclass(frozen=True, kw_only=True)
class ProtocolRow:
    """A metric over several sets of images of equal size: honest mean and interval, and the paper's minimum beside."""

    metric: str
    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    best: float
    """The best of the sets: the paper's protocol ("calculated three times, the minimum is reported")."""
    n: int
    n_reference: int | None

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def over_sets(sets: Sequence[Measured]) -> list[ProtocolRow]:
    """Mean over the sets with a 95 % interval from their standard errors (or none), and the best of them."""
    result = []
    for rows in zip(*[measured.rows() for measured in sets], strict=True):
        values = tuple(row.value for row in rows)
        mean = float(np.mean(values))
        low = high = None
        if all(row.high is not None for row in rows):
            # The sets are independent: the half-width of their mean is the root of the sum of squares over their count.
            halves = [row.high - row.value for row in rows if row.high is not None]
            half = float(np.sqrt(np.square(halves).sum())) / len(rows)
            low, high = mean - half, mean + half
        first = rows[0]
        best = min(values) if first.smaller_is_better else max(values)
        result.append(
            ProtocolRow(
                metric=first.metric,
                values=values,
                mean=mean,
                low=low,
                high=high,
                best=best,
                n=first.n,
                n_reference=first.n_reference,
            )
        )
    return result
