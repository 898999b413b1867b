"""The number people look for: the FID between two sets of images, wherever they lie."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_ray.data.importers.detect import detect_kind
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.errors import InputError
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.measure import Plan
from edm_ray.evaluation.parts import measure_real
from edm_ray.evaluation.reference import KIND
from edm_ray.execution.executor import Executor
from edm_ray.execution.local import Local
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, read_manifest
from edm_ray.tasks.given import OpenedReference, reference_of
from edm_ray.tasks.models import write_dataset
from edm_ray.tasks.prepare import prepare
from edm_ray.tasks.reference import reference

FEWEST = 100


def fid(
    a: Any,
    b: Any,
    *,
    extractor: str = "inception",
    weights: str | None = None,
    num: int | None = None,
    on: Executor = Local(),  # noqa: B008 (frozen)
    **prepare_options: Any,
) -> FidEstimate:
    """FID of the images ``a`` against ``b``, with its standard error; ``float()`` of it is the number.

    a, b: uint8 images [N, C, H, W] (an array or a tensor), a data set, or whatever `prepare` reads (a folder, a zip, a
    Parquet file, ...); b may be a reference too, which then says which extractor. num: so many images of a, from the
    first (default: all). prepare_options: of `prepare`, for folders whose pictures are of unequal sizes, e.g.
    ``resolution=32``. Raises InputError (a ValueError) for fewer than 100 images, or images that do not fit.
    """
    with tempfile.TemporaryDirectory() as folder:
        _require_source(b)
        images = _dataset(a, Path(folder) / "a", on, prepare_options)
        count, name = images.rows if num is None else num, _name(a, "a")
        if count < FEWEST:
            raise InputError(f"{name}: {count} images; an FID of fewer than {FEWEST} images says nothing")
        if count > images.rows:
            raise InputError(f"{name}: {images.rows} images, {count} were asked for")
        against = _reference(b, Path(folder), extractor, weights, on, prepare_options)
        plan = Plan(metrics=("fid",), reference=against.reference)
        [result] = measure_real(images, count, [plan], [against.extractor], str(Path(folder) / "features"), on)
    return result.measured.fid


def _reference(
    given: Any, folder: Path, extractor: str, weights: str | None, on: Executor, options: dict[str, Any]
) -> OpenedReference:
    if isinstance(given, OpenedReference):
        return given
    if isinstance(given, (str, Path)) and _kind(str(given)) == KIND:
        return reference_of(str(given))
    dataset = _dataset(given, folder / "b", on, options)
    if dataset.rows < FEWEST:
        raise InputError(
            f"{_name(given, 'b')}: {dataset.rows} images; an FID against fewer than {FEWEST} images says nothing"
        )
    return reference(dataset.uri, str(folder / "reference"), on=on, extractor=extractor, weights=weights, features=0)


def _dataset(given: Any, place: Path, on: Executor, options: dict[str, Any]) -> DataSet:
    """As a data set: an opened one, one on disk, or one made of images or of a source."""
    if isinstance(given, DataSet):
        return given
    if isinstance(given, (str, Path)):
        source = uris.absolute(str(given))
        if read_manifest(source) is not None:
            return open_dataset(source)
        detect_kind(source)  # refuses what is no source, before anything is written
        return prepare(source, str(place), on=Local(), unlabelled=True, **options)
    images = given.detach().cpu().numpy() if isinstance(given, torch.Tensor) else np.asarray(given)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
        raise InputError(f"images={images.dtype} {images.shape} is not allowed: uint8 [N, C, H, H]")
    return write_dataset(images, None, str(place), name=place.name)


def _require_source(given: Any) -> None:
    """Raises InputError for a place without images, before those of the other side are read."""
    if isinstance(given, (str, Path)) and read_manifest(source := uris.absolute(str(given))) is None:
        detect_kind(source)


def _name(given: Any, role: str) -> str:
    """How a message calls it."""
    return str(given) if isinstance(given, (str, Path)) else role


def _kind(uri: str) -> Any:
    place = uris.absolute(uri)
    if not uris.exists(uris.join(place, MANIFEST)):
        return None
    manifest = read_manifest(place)
    return None if manifest is None else manifest.get("kind")
