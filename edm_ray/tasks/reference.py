"""Reference: the exact feature moments of a data set, which FIDs are measured against."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.data.reader import Reader, open_reader
from edm_ray.errors import InputError
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.extractors.digits import CLASSES, train_digits_classifier
from edm_ray.evaluation.extractors.published_weights import PUBLISHED, find_weights, weights_file
from edm_ray.evaluation.extractors.registry import load_extractor, misfit
from edm_ray.evaluation.extractors.self_trained import MOST, self_misfit, train_self
from edm_ray.evaluation.parts import FOLDER, ReferenceParts, ranges_of, require_pictures
from edm_ray.evaluation.reference import FILES, ExtractorSpec, commit_reference, open_reference, reference_key
from edm_ray.evaluation.reference_features import DEFAULT_FEATURES, chosen_rows
from edm_ray.execution.executor import Executor, OnProgress, make_all, no_progress
from edm_ray.execution.local import Local
from edm_ray.storage import uris
from edm_ray.storage.commit import read_manifest
from edm_ray.storage.lease import hold
from edm_ray.tasks.given import OpenedReference, reference_of
from edm_ray.tasks.options import read_options

FEWEST = 2
OnWeights = Callable[[str, int, int], None]
"""Called with (what is done, how much of it, of how much)."""


def no_weights(what: str, done: int, total: int) -> None:
    """For callers who do not want to know."""


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """Which features of how many images."""

    extractor: str = "inception"
    """inception (the standard) or dinov2 (both found or downloaded: `edm-ray weights`), clip (needs --weights), self
    (trained on these images in minutes; its FIDs are comparable only within this data set), digits (8x8 digits)."""
    weights: str | None = None
    """Extractor weights: a path or s3:// URI. Default: EDM_RAY_WEIGHTS, the cache, torch.hub's cache, or a download."""
    sha256: str | None = None
    """Expected sha256 of the weights."""
    features: int = DEFAULT_FEATURES
    """Keep the features of this many images for KID, precision and recall (4 bytes per feature); 0: none."""
    store: str | None = None
    """Directory or s3:// URI that holds many references, each under the hash of its data set and extractor; one that is
    there already is not made again."""


@dataclass(frozen=True, kw_only=True)
class ReferenceTask:
    """A reference that was checked; `run` makes it."""

    dataset: DataSet
    out: str | None
    options: ReferenceOptions

    @property
    def is_there(self) -> bool:
        """Whether OUT holds this reference already. Raises InputError when it holds another one."""
        return self.out is not None and _holds(self.out, self.dataset, self.options.extractor)

    def check_output(self) -> None:
        """Raises InputError for a folder that holds something else."""
        if self.out is None or self.is_there:
            return
        if found := [name for name in uris.list_names(self.out) if name not in (FOLDER, *FILES)]:
            raise InputError(f"{self.out}: is not empty (found {', '.join(found[:4])}); choose another --out")

    def describe(self, on: Executor) -> list[str]:
        data, where = self.dataset, self.out or self.options.store
        return [
            f"would measure {data.rows:,} images of {data.name} with extractor {self.options.extractor}",
            f"  on {on}, into {where}",
            f"  weights: {self.origin}",
        ]

    @property
    def origin(self) -> str:
        """Where the extractor's weights come from."""
        name = self.options.extractor
        if self.options.weights is not None:
            return self.options.weights
        if name not in PUBLISHED:
            return f"trained here on these images; {OF_OWN[name]}"
        if (found := find_weights(PUBLISHED[name])) is not None:
            return str(found)
        return f"to download: {PUBLISHED[name].offer()}"

    def run(
        self, on: Executor, on_part: OnProgress = no_progress, on_weights: OnWeights = no_weights
    ) -> OpenedReference:
        """What was measured before a kill is kept in OUT/parts and not measured again.

        on_weights: told how the weights come: ("download", bytes, of) or ("training", passes, of).
        """
        if self.is_there:
            assert self.out is not None
            return reference_of(self.out)
        with hold(self.out, "reference"):  # first: who writes there now is the better answer
            self.check_output()
            return self._run(on, on_part, on_weights)

    def _run(self, on: Executor, on_part: OnProgress, on_weights: OnWeights) -> OpenedReference:
        with tempfile.TemporaryDirectory() as folder:
            path = self._weights(Path(folder), on_weights)
            # On Ray it is loaded here only to be checked and named, which needs no GPU.
            here = on.device if isinstance(on, Local) else "cpu"
            extractor = load_extractor(self.options.extractor, path, self.options.sha256, here)
            assert path is not None
            weights = path.read_bytes()
        out = self.out
        if out is None:
            key = reference_key(self.dataset, extractor)
            out = uris.join(str(self.options.store), f"{self.dataset.name}-{self.options.extractor}-{key[:16]}")
            if _holds(out, self.dataset, self.options.extractor):
                return reference_of(out)
        with hold(out, "reference"):
            self._make(out, extractor, weights, on, on_part)
        return reference_of(out)

    def _make(self, out: str, extractor: Extractor, weights: bytes, on: Executor, on_part: OnProgress) -> None:
        recipe = ReferenceParts(
            dataset=self.dataset,
            extractor=ExtractorSpec(name=extractor.name, weights=weights, sha256=extractor.weights_sha256),
            chosen=chosen_rows(self.dataset.rows, self.options.features),
            store=uris.join(out, FOLDER),
        )
        parts = recipe.parts(ranges_of(self.dataset.rows), extractor.identity, on.device)
        with on.open(recipe) as (measuring,):
            make_all(measuring, [(part,) for part in parts], on_part)
        moments, kept = recipe.collect(parts, extractor.scale_bits)
        commit_reference(out, moments, self.dataset, extractor, weights, kept)
        uris.delete_directory(recipe.store)

    def _weights(self, folder: Path, on_weights: OnWeights) -> Path | None:
        """A local file with the extractor's weights: given, trained, found or downloaded."""
        options = self.options
        if options.weights is not None or options.extractor not in TRAINED:
            try:
                return weights_file(options.extractor, options.weights, folder, partial(on_weights, "download"))
            except InputError as error:
                if options.weights is not None:
                    raise
                raise type(error)(
                    f"{error}. Or give --extractor self: trained here on these images, without a download; its FIDs "
                    "are comparable only within this data set"
                ) from None
        with open_reader(self.dataset) as pixels:
            content = TRAINED[options.extractor](self.dataset, pixels, partial(on_weights, "training"))
        local = folder / "trained.safetensors"
        local.write_bytes(content)
        return local


def _train_digits(dataset: DataSet, pixels: Reader, on_epoch: OnProgress) -> bytes:
    images, labels = torch.from_numpy(pixels.images), torch.from_numpy(pixels.labels)
    content: bytes = safetensors.torch.save(train_digits_classifier(images, labels))
    return content


def _train_self(dataset: DataSet, pixels: Reader, on_epoch: OnProgress) -> bytes:
    rows, classes = chosen_rows(dataset.rows, MOST), len(dataset.class_names)
    return train_self(torch.from_numpy(pixels.images[rows]), torch.from_numpy(pixels.labels[rows]), classes, on_epoch)


OF_OWN = {
    "digits": "its FIDs are comparable only with those of these weights",
    "self": "its FIDs are comparable only within this data set, and do not rank good samplers well",
}
"""What the FIDs of such features are worth (research/self_features)."""
TRAINED = {"digits": _train_digits, "self": _train_self}
"""Extractors that are trained here where no weights are given: (data set, its pixels, progress) -> file of weights."""


def _holds(out: str, dataset: DataSet, extractor: str) -> bool:
    if read_manifest(out) is None:
        return False
    reference, _ = open_reference(out)
    if (reference.dataset_hash, reference.extractor_name) != (dataset.hash, extractor):
        raise InputError(
            f"{out}: holds the reference of {reference.dataset} with extractor {reference.extractor_name}; "
            "choose another --out"
        )
    return True


def _require_fit(dataset: DataSet, options: ReferenceOptions) -> None:
    """Raises InputError for an extractor that is none, or does not take images such as these."""
    channels, size, weights = dataset.channels, dataset.resolution, options.weights
    takes = misfit(options.extractor, channels, size)
    if options.extractor == "self" and weights is not None:
        takes = self_misfit(uris.read_bytes(weights), weights, channels, size)
    if takes is not None:
        raise InputError(
            f"--extractor {options.extractor}: {dataset.uri} holds images of {size}x{size}x{channels}; it takes "
            f"{takes}; give another --extractor (self is trained on the images themselves)"
        )
    if weights is None and options.extractor not in (*TRAINED, *PUBLISHED):
        load_extractor(options.extractor, None)  # says where its weights come from
    classes = len(dataset.class_names)
    if options.extractor == "digits" and options.weights is None and not 2 <= classes <= CLASSES:
        raise InputError(
            f"--extractor digits: {dataset.uri} has {classes} classes; it is trained on 2 to {CLASSES}; give another "
            "--extractor (self needs no classes)"
        )


def plan_reference(data: str | DataSet, out: str | None, options: ReferenceOptions) -> ReferenceTask:
    """Open and check everything. Raises InputError for what cannot be measured."""
    if (out is None) == (options.store is None):
        raise InputError("give --out DIRECTORY for this reference, or --store DIRECTORY that holds many")
    if options.features < 0:
        raise InputError(f"--features {options.features}: give 0 or more")
    if options.weights is not None and not uris.exists(options.weights):
        raise InputError(f"--weights {options.weights}: no such file")
    dataset = data if isinstance(data, DataSet) else open_dataset(uris.absolute(data))
    require_pictures(dataset)
    if dataset.rows < FEWEST:
        raise InputError(f"{dataset.uri}: {dataset.rows} images; a reference needs {FEWEST} or more (their covariance)")
    _require_fit(dataset, options)
    store = None if options.store is None else uris.absolute(options.store)
    options = dataclasses.replace(options, store=store)
    return ReferenceTask(dataset=dataset, out=None if out is None else uris.absolute(out), options=options)


def reference(
    data: str | DataSet,
    out: str | None = None,
    *,
    on: Executor = Local(),  # noqa: B008 (frozen)
    on_part: OnProgress = no_progress,
    on_weights: OnWeights = no_weights,
    **options: Any,
) -> OpenedReference:
    """Exact feature moments of a data set, in one directory with the extractor's weights: FIDs are measured against it.

    data: a data set that `prepare` or `write_dataset` made, or its place. out: where the reference goes; one that is
    there is opened.
    options: fields of `ReferenceOptions`, e.g. ``extractor="self"``. Published weights that are not on this machine are
    downloaded; on_weights is told ("download", bytes, of), or ("training", passes, of) where features are trained.
    Raises InputError (a ValueError) for what cannot be measured.
    """
    return plan_reference(data, out, read_options(ReferenceOptions, options)).run(on, on_part, on_weights)
