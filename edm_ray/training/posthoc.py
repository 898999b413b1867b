"""An average of any width after training, from the stored snapshots of a few (Karras et al. 2024, section 3.2).

The profile of a power-function average at time t is p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. The
snapshots' profiles are combined so that their sum is nearest, in least squares, to the profile that is wanted; the same
combination of the snapshots' parameters is the average wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edm_ray.errors import InputError, IntegrityError
from edm_ray.models.weights import tensors_of, weights_bytes
from edm_ray.storage import uris
from edm_ray.storage.commit import MANIFEST, commit, read_file, read_manifest
from edm_ray.storage.numbered import numbers
from edm_ray.training.ema import gamma_of
from edm_ray.training.run import identity_of, refuse_other_run

KIND = "edm_ray ema snapshot"
NAME = "nimg-{:012d}"
Array = npt.NDArray[np.float64]
Profile = tuple[float, float]
"""(time t, exponent gamma)."""


def profile_product(a: Profile, b: Profile) -> float:
    """Integral of the product of two profiles, in closed form."""
    (time_a, gamma_a), (time_b, gamma_b) = a, b
    total = gamma_a + gamma_b + 1.0
    log = total * np.log(min(time_a, time_b)) - (gamma_a + 1) * np.log(time_a) - (gamma_b + 1) * np.log(time_b)
    return float((gamma_a + 1) * (gamma_b + 1) / total * np.exp(log))


def combination(have: Sequence[Profile], want: Profile) -> Array:
    """Weights of the profiles that are there, so that their sum is nearest to the one wanted: float64 [len(have)]."""
    gram = np.array([[profile_product(a, b) for b in have] for a in have])
    target = np.array([profile_product(a, want) for a in have])
    weights: Array = np.linalg.lstsq(gram, target, rcond=1e-14)[0]
    return weights


def snapshot_uri(run_uri: str, images_seen: int | None = None) -> str:
    folder = uris.join(run_uri, "ema-snapshots")
    return folder if images_seen is None else uris.join(folder, NAME.format(images_seen))


def save_snapshot(
    run_uri: str,
    images_seen: int,
    averages: Mapping[float, Mapping[str, torch.Tensor]],
    dtype: torch.dtype = torch.float32,
    run: str = "",
) -> None:
    """Commit the power-function averages (sigma_rel -> named tensors) of this moment: one file a width. run: identity
    of the run.

    float32 tensors are stored in ``dtype``, but where float16 cannot hold them. The same call gives the same bytes.
    """
    files = [
        (
            f"sigma_rel-{width:g}.safetensors",
            weights_bytes(
                {name: _narrow(tensor, dtype) for name, tensor in average.items()}, {"sigma_rel": f"{width:g}"}
            ),
        )
        for width, average in averages.items()
    ]
    facts: dict[str, Any] = {"images_seen": images_seen, "sigma_rels": list(averages)}
    files.append(("about.json", json.dumps(facts).encode()))
    commit(snapshot_uri(run_uri, images_seen), files, replace=True, kind=KIND, run=run, **facts)


def _narrow(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    narrow = tensor.to(dtype)
    return narrow if bool(torch.isfinite(narrow).all()) else tensor


def synthesise(run_uri: str, sigma_rel: float, images_seen: int | None = None) -> tuple[dict[str, torch.Tensor], int]:
    """Parameters averaged with width sigma_rel at ``images_seen`` (default: the last snapshot), and that moment.

    Sums are in float64, one snapshot at a time. Raises InputError when there are no snapshots, or the width lies
    outside of those that were kept (least squares does not extrapolate well).
    """
    found = []
    run = identity_of(run_uri)
    for number in numbers(snapshot_uri(run_uri), NAME):
        uri = snapshot_uri(run_uri, number)
        manifest = read_manifest(uri)
        if manifest is not None and manifest.get("kind") == KIND:
            refuse_other_run(uri, str(manifest.get("run", "")), run)
            moment, widths = manifest.get("images_seen"), manifest.get("sigma_rels")
            if type(moment) is not int or not isinstance(widths, list) or not all(type(w) is float for w in widths):
                raise IntegrityError(f"{uris.join(uri, MANIFEST)}: damaged: moment and widths of a snapshot are needed")
            found += [(uri, manifest, moment, width) for width in widths]
    if not found:
        raise InputError(
            f"{run_uri}: no snapshots of power-function averages; train with --set ema.sigma_rels='[0.05, 0.10]'"
        )
    widths = sorted({width for *_, width in found})
    if not widths[0] <= sigma_rel <= widths[-1]:
        raise InputError(f"--sigma-rel {sigma_rel}: {run_uri} allows {widths[0]} to {widths[-1]}, the widths it kept")
    moments = sorted({moment for *_, moment, _ in found})
    at = moments[-1] if images_seen is None else images_seen
    if at not in moments:
        raise InputError(f"--nimg {at}: {run_uri} has snapshots at {', '.join(map(str, moments))}")
    found = [entry for entry in found if entry[2] <= at]
    weights = combination([(moment, gamma_of(width)) for *_, moment, width in found], (float(at), gamma_of(sigma_rel)))
    total: dict[str, torch.Tensor] = {}
    kept: dict[str, torch.Tensor] = {}
    changes: set[str] = set()
    for (uri, manifest, _, width), weight in zip(found, weights.tolist(), strict=True):
        file = f"sigma_rel-{width:g}.safetensors"
        state = tensors_of(read_file(uri, file, manifest), uris.join(uri, file))
        for name, stored in state.items():
            tensor = stored.float() if stored.dtype == torch.float16 else stored
            total[name] = total.get(name, torch.zeros_like(tensor, dtype=torch.float64)) + weight * tensor.double()
            if name in kept and not torch.equal(kept[name], tensor):
                changes.add(name)
            kept[name] = tensor
    # Constants (buffers) stay as they are to the last bit, though the weights add up to 1 only nearly.
    return {name: total[name].to(kept[name].dtype) if name in changes else kept[name] for name in kept}, at
