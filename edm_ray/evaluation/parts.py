"""Features of real images in parts: ranges of a data set's rows, each read and put through the extractor.

Parts are cut by the number of rows alone and moments are exact sums, so a reference has the same bits whoever measures
which part, and in what order. Parts of a reference lie in OUT/parts until it is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_ray.data.format import Labels, Pixels
from edm_ray.data.manifest import DataSet
from edm_ray.data.verify import read_verified
from edm_ray.errors import InputError
from edm_ray.evaluation.chunks import FeatureRows
from edm_ray.evaluation.device import kind_of
from edm_ray.evaluation.fid_worker import Measurement, MeasureSets, SetResult
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.moments import Moments
from edm_ray.evaluation.reference import ExtractorSpec
from edm_ray.evaluation.reference_features import ReferenceFeatures
from edm_ray.execution import activity
from edm_ray.execution.executor import Executor, Item, Needs, OnProgress, make_all, no_progress
from edm_ray.storage import artifacts
from edm_ray.storage.artifacts import Artifact
from edm_ray.storage.commit import sha256

LEAST_ROWS = 500
MOST_PARTS = 64
"""A part with 2,048 features is 34 MB, so all of them together stay near 2 GB however large the data set."""
FOLDER = "parts"
PART_CPUS = 0.9
"""A little of each CPU is left for dispatchers and FID workers, which mostly wait."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Features of rows [first, stop) of a data set."""

    kind = "part"
    dataset: str
    """Hash of the data set."""
    extractor: str
    """Identity of the extractor."""
    device: str
    first: int
    stop: int
    chosen: str
    """Hash of the numbers of those rows whose features are kept."""
    moments: bool
    """Whether it holds the moments of all its rows too."""

    @property
    def identity(self) -> dict[str, Any]:
        facts = {"dataset": self.dataset, "extractor": self.extractor, "device": self.device, "chosen": self.chosen}
        return {**facts, "rows": [self.first, self.stop], "moments": self.moments, "torch": torch.__version__}

    @property
    def work(self) -> float:
        """Rows."""
        return float(self.stop - self.first)

    def __str__(self) -> str:
        return f"features of rows {self.first}..{self.stop - 1} of the data set"


def ranges_of(rows: int) -> list[tuple[int, int]]:
    """[first, stop) of the parts that ``rows`` rows are cut into."""
    size = max(LEAST_ROWS, -(-rows // MOST_PARTS))
    return [(first, min(first + size, rows)) for first in range(0, rows, size)]


def require_pictures(dataset: DataSet) -> None:
    if not dataset.codec.is_pixels:
        raise InputError(
            f"{dataset.uri}: holds latents, a reference is of pictures: prepare the pictures themselves and give those"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceParts:
    """The recipe of parts of one data set with one extractor."""

    dataset: DataSet
    extractor: ExtractorSpec
    chosen: np.ndarray
    """int64 rows, ascending, whose features are kept."""
    store: str
    moments: bool = True

    @property
    def needs(self) -> Needs:
        return Needs(
            what="the reference" if self.moments else "features of real images",
            memory=3 * len(self.extractor.weights) + (1 << 29),
            cpus=PART_CPUS,
            most=len(ranges_of(self.dataset.rows if self.moments else len(self.chosen))),
            reads=(self.dataset.uri,),
        )

    def parts(self, ranges: Sequence[tuple[int, int]], extractor: str, device: str) -> list[Part]:
        """extractor: its identity."""
        return [
            Part(
                dataset=self.dataset.hash,
                extractor=extractor,
                device=device,
                first=first,
                stop=stop,
                chosen=sha256(self.rows(first, stop).tobytes()),
                moments=self.moments,
            )
            for first, stop in ranges
        ]

    def rows(self, first: int, stop: int) -> np.ndarray:
        """The chosen ones among [first, stop)."""
        rows: np.ndarray = self.chosen[(self.chosen >= first) & (self.chosen < stop)]
        return rows

    def setup(self, device: str) -> PartWorker:
        return PartWorker(self, device)

    def is_stored(self, artifact: Artifact) -> bool:
        return artifacts.is_stored(self.store, artifact)

    def collect(self, parts: Sequence[Part], scale_bits: int) -> tuple[Moments, ReferenceFeatures | None]:
        """Parts that are stored together, one in memory at a time."""
        merged: Moments | None = None
        kept = []
        for part in parts:
            arrays = artifacts.read(self.store, part).arrays
            moments = Moments(
                n=part.stop - part.first,
                total=arrays["total"],
                outer=arrays["outer"],
                scale_bits=scale_bits,
                extractor=part.extractor,
            )
            merged = moments if merged is None else Moments.merge(merged, moments)
            kept.append(arrays["features"])
        assert merged is not None, "a data set has one row or more"
        rows = ReferenceFeatures(features=np.concatenate(kept), rows=self.chosen) if len(self.chosen) else None
        return merged, rows


class PartWorker:
    """The extractor, loaded once; the shard read last is kept for the next part."""

    def __init__(self, recipe: ReferenceParts, device: str) -> None:
        self.recipe, self.kind = recipe, kind_of(device)
        self.extractor = recipe.extractor.load(device)
        self._shard: tuple[str, Pixels, Labels] = ("", np.empty(0, np.uint8), np.empty(0, np.int64))

    def make(self, item: Item) -> None:
        for part in item:
            pixels, labels = self._read(part)
            features = self.extractor.extract(torch.from_numpy(pixels))
            rows = self.recipe.rows(part.first, part.stop) - part.first
            arrays = {"features": features[rows], "labels": labels[rows]}
            if part.moments:
                moments = Moments.of(features, self.extractor.identity, self.extractor.scale_bits)
                arrays |= {"total": moments.total, "outer": moments.outer}
            artifacts.write(self.recipe.store, part, arrays, made_on=self.kind)

    def _read(self, part: Part) -> tuple[Pixels, Labels]:
        pixels, labels = [], []
        for shard in self.recipe.dataset.shards:
            first, stop = max(part.first, shard.first_row), min(part.stop, shard.first_row + shard.rows)
            if first < stop:
                if self._shard[0] != shard.name:
                    self._shard = (shard.name, *read_verified(self.recipe.dataset, shard))
                inside = slice(first - shard.first_row, stop - shard.first_row)
                pixels.append(self._shard[1][inside])
                labels.append(self._shard[2][inside])
        return np.concatenate(pixels), np.concatenate(labels)


@dataclass(frozen=True, kw_only=True)
class RealImages:
    """The first images of a data set as a set to be measured. Their places in an order class by class stand for seeds,
    so that every jackknife group holds all classes alike."""

    parts: tuple[Part, ...]

    @property
    def identity(self) -> dict[str, Any]:
        return {"parts": [artifacts.key_of(part) for part in self.parts]}

    @property
    def size(self) -> int:
        return sum(part.stop - part.first for part in self.parts)

    def rows(self, store: str) -> Iterator[FeatureRows]:
        stored = [artifacts.read(store, part) for part in self.parts]
        labels = np.concatenate([content.arrays["labels"] for content in stored])
        places = np.empty(len(labels), np.int64)
        places[np.argsort(labels, kind="stable")] = np.arange(len(labels))
        for part, content in zip(self.parts, stored, strict=True):
            yield FeatureRows(
                features=content.arrays["features"],
                seeds=places[part.first : part.stop],
                made_on=content.notes["made_on"],
            )

    def __str__(self) -> str:
        return f"{self.parts[-1].stop} real images"


def require_real(dataset: DataSet, num: int) -> None:
    """Raises InputError unless a (held-out) data set has pictures, and so many of them."""
    require_pictures(dataset)
    if dataset.rows < num:
        raise InputError(f"{dataset.uri}: {dataset.rows} images, {num} are needed: FIDs are compared at equal n only")


def measure_real(
    dataset: DataSet,
    num: int,
    plans: Sequence[Plan],
    extractors: Sequence[ExtractorSpec],
    store: str,
    executor: Executor,
    on_part: OnProgress = no_progress,
) -> list[SetResult]:
    """The first ``num`` images of a (held-out) data set by each plan, with the extractor beside it: what a perfect
    generator would score at that n. Features are taken where the executor works. Raises InputError when there are
    fewer images."""
    require_real(dataset, num)
    rows, ranges = np.arange(num, dtype=np.int64), ranges_of(num)
    recipes = [
        ReferenceParts(dataset=dataset, extractor=spec, chosen=rows, store=store, moments=False) for spec in extractors
    ]
    parts = [
        recipe.parts(ranges, plan.reference.moments.extractor, executor.device)
        for recipe, plan in zip(recipes, plans, strict=True)
    ]
    measuring = MeasureSets(plans=tuple(plans), store=store, most=len(plans))
    sets = [
        Measurement(plan=key, images=RealImages(parts=tuple(own)))
        for key, own in zip(measuring.keys, parts, strict=True)
    ]
    activity.stage(f"features of {num:,} real images")
    with executor.session(*recipes):
        for place, (recipe, own) in enumerate(zip(recipes, parts, strict=True)):
            # Opened together, so that the FID worker starts while features are taken.
            with executor.open(recipe, measuring) as (extracting, fids):
                make_all(extracting, [(part,) for part in own], on_part)
                make_all(fids, [(sets[place],)])
    return [measuring.result(one) for one in sets]
