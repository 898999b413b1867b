"""torch-fidelity's metrics computed in float64, and how far float64 arithmetic can move them.

It hands float32 features to NumPy. Its KID is then a difference of float32 means of a kernel: where kernel values are
5.5e8 and the KID is 17,000, those means are multiples of 32, or 0.2 % of the KID, and which multiple comes out depends
on the CPU's instructions. So its features are compared by themselves, and its metrics in float64 on features that both
sides share to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision

BITS = 14
EPSILON = 2.0**-52
FORWARD = 64 * 2.0**-23
"""A float32 forward pass, relative to its largest output: each of some tens of layers in sequence adds a rounding error
of 2^-24 or so, and the order of its sums is the CPU's."""

Features = dict[str, torch.Tensor]


def metrics_in_float64(
    hand_on: Callable[[Features], Features], **arguments: Any
) -> tuple[dict[str, float], list[Features]]:
    """`calculate_metrics(**arguments)` of torch-fidelity, with its features replaced by hand_on(features) on the way to
    its metrics. Returns (the metrics, what it extracted from each input)."""
    ensure_torchvision()
    import torch_fidelity.metrics as theirs

    extract, extracted = theirs.extract_featuresdict_from_input_id_cached, []

    def wrapped(*args: Any, **kwargs: Any) -> Features:
        extracted.append(extract(*args, **kwargs))
        return hand_on(extracted[-1])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "extract_featuresdict_from_input_id_cached", wrapped)
        metrics = theirs.calculate_metrics(cuda=False, save_cpu_ram=True, cache=False, verbose=False, **arguments)
    return metrics, extracted


def on_grid(features: torch.Tensor) -> np.ndarray:
    """int32, as the product stores features."""
    return np.rint(features.double().numpy() * 2.0**BITS).astype(np.int32)


def values_of(grid: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(grid / 2.0**BITS)


def feature_bound(features: torch.Tensor) -> float:
    """Between features on the grid and those of another float32 forward pass, in steps of the grid."""
    return 0.5 + FORWARD * float(features.abs().max()) * 2.0**BITS


def fid_bound(a: np.ndarray, b: np.ndarray) -> float:
    """Of a FID that takes eigenvalues of a product of covariances [d, d]: each is off by EPSILON times the product's
    norm, its root by at most the root of that (where it should be zero; there are d minus the rank of those)."""
    return 2 * len(a) * float(np.sqrt(EPSILON * np.linalg.norm(a @ b, 2)))


def kid_bound(*sets: np.ndarray) -> float:
    """Of one KID: sums of d products, cubed, then added up pairwise; all of it relative to the largest kernel value, to
    which the KID itself is a small difference."""
    values = [grid / 2.0**BITS for grid in sets]
    d = values[0].shape[1]
    largest = max(float((x * x).sum(1).max()) / d + 1 for x in values) ** 3
    return 3 * (d + 20) * EPSILON * largest
