"""Which importer a source needs: said by ``--kind``, else seen from its name and what is in it."""

from __future__ import annotations

from collections.abc import Callable

from edm_ray.data.importers.digits import Digits
from edm_ray.data.importers.photographs import Photographs
from edm_ray.data.importers.source import Source, SourceSpec
from edm_ray.errors import InputError, nearest

BUILT_IN: dict[str, Callable[[SourceSpec], Source]] = {"digits": Digits, "photographs": Photographs}
KINDS: dict[str, Callable[[SourceSpec], Source]] = {**BUILT_IN}


def open_source(spec: SourceSpec) -> Source:
    if spec.kind not in KINDS:
        raise InputError(f"--kind {spec.kind}: unknown{nearest(spec.kind, KINDS)}; there are: {', '.join(KINDS)}")
    return KINDS[spec.kind](spec)


def detect_kind(uri: str) -> str:
    if uri in KINDS:
        return uri
    raise InputError(f"{uri}: not a known source")
