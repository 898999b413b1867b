"""List the published weights of feature extractors and where they are on this machine; download those that you name.

Looks in EDM_RAY_WEIGHTS (a file or a folder), ~/.cache/edm_ray/weights and torch.hub's cache, and accepts a file only
with the published sha256. EDM_RAY_WEIGHTS_MIRROR names your own server with the same files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from edm_ray.cli.console import Reports, report, say
from edm_ray.cli.weights_progress import WeightsProgress
from edm_ray.errors import InputError, nearest
from edm_ray.evaluation.extractors.published_weights import PUBLISHED, Published, fetch_weights, find_weights, place_of


@dataclass(frozen=True, kw_only=True)
class Args(Reports):
    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Weights to download, e.g. inception; without a name, list them all."""


def run(args: Args) -> None:
    for name in args.names:
        if name not in PUBLISHED:
            raise InputError(f"{name}: no published weights{nearest(name, PUBLISHED)}; give {' or '.join(PUBLISHED)}")
    for name in args.names:
        if find_weights(PUBLISHED[name]) is None:
            say(f"{name}: downloading {PUBLISHED[name].offer()}")
        path = fetch_weights(PUBLISHED[name], WeightsProgress().download)
        say(f"{name}: {path}")
    for published in () if args.names else PUBLISHED.values():
        _say(published)
    report({name: _facts(PUBLISHED[name]) for name in args.names or PUBLISHED})


def _facts(published: Published) -> dict[str, Any]:
    found = find_weights(published)
    return {
        "what": published.what,
        "bytes": published.size,
        "licence": published.licence,
        "source": published.source,
        "sha256": published.sha256,
        "path": None if found is None else str(found),
    }


def _say(published: Published) -> None:
    found = find_weights(published)
    say(f"{published.extractor}: {published.what}")
    say(f"  size     {published.size / 2**20:,.0f} MiB, licence {published.licence}")
    say(f"  from     {published.source}")
    say(f"  sha256   {published.sha256}")
    say(f"  here     {found if found is not None else f'no; download it: edm-ray weights {published.extractor}'}")
    if found is None:
        say(f"           or put it at {place_of(published)}")
