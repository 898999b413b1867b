"""What a caller may give where a task needs a model or a reference: a place, or what was opened from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edm_ray.errors import InputError
from edm_ray.evaluation.reference import ExtractorSpec, Reference, open_reference
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.models.directory import Model, open_model
from edm_ray.storage import uris


@dataclass(frozen=True, kw_only=True)
class OpenedReference:
    """A reference directory that was read and checked."""

    uri: str
    reference: Reference
    extractor: ExtractorSpec

    def describe(self) -> str:
        return self.reference.describe()


def model_of(given: str | Model | ModelDenoiser, guide: str | None = None) -> Model:
    """A place, an opened model, or a denoiser that `load_model` built. guide: the place of the model that guides it."""
    if isinstance(given, str):
        return open_model(uris.absolute(given), guide and uris.absolute(guide))
    if isinstance(given, ModelDenoiser) and given.source is None:
        raise InputError("this denoiser comes from no model directory: keep it with edm.save_model, and give that")
    model: Model = given.source if isinstance(given, ModelDenoiser) else given
    return model if guide is None else model.with_guide(open_model(uris.absolute(guide)))


def reference_of(given: str | OpenedReference) -> OpenedReference:
    if isinstance(given, OpenedReference):
        return given
    uri = uris.absolute(given)
    reference, extractor = open_reference(uri)
    return OpenedReference(uri=uri, reference=reference, extractor=extractor)


def require_fit(reference: OpenedReference, model: Model) -> None:
    """Raises InputError where the reference's extractor does not take what the model makes."""
    channels, size = model.config.network.img_channels, model.config.network.img_resolution
    if not model.codec.is_pixels:
        return  # what a decoder makes of latents is seen when it does
    if (takes := reference.extractor.misfit(channels, size)) is not None:
        raise InputError(
            f"--reference {reference.uri}: its extractor {reference.extractor.name} takes {takes}; {model.uri} makes "
            f"images of {size}x{size}x{channels}; give a reference of such images"
        )


def other_data(reference: OpenedReference, model: Model) -> str:
    """A note for people, where the model was trained on other data than the reference is of; empty where it was not, or
    nobody knows."""
    trained, measured = model.about.get("dataset_hash"), reference.reference.dataset_hash
    if not isinstance(trained, str) or trained == measured:
        return ""
    return f"note: the model was trained on {model.about.get('dataset')}, this reference is of other data"


def references_of(given: str | OpenedReference | Sequence[str | OpenedReference]) -> list[OpenedReference]:
    several = [given] if isinstance(given, (str, OpenedReference)) else list(given)
    if not several:
        raise InputError("give --reference REFERENCE: what `edm-ray reference --data DATASET --out REFERENCE` writes")
    return [reference_of(one) for one in several]
