"""Inception Score (Salimans et al. 2016, section 4): exp of the mean divergence KL(p(y|x) || p(y)), of images alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from edm_ray.errors import InputError
from edm_ray.evaluation.moments import Array

SPLITS, SHUFFLE_SEED = 10, 2020
"""As in torch-fidelity."""


@dataclass(frozen=True, kw_only=True)
class InceptionScore:
    """Between 1 and the number of classes; higher is better. It knows no reference."""

    mean: float
    """Mean over the splits."""
    std: float
    """Standard deviation over the splits; the splits do not overlap, so std / sqrt(splits) is the mean's error."""
    splits: int
    classes: int
    n: int

    @property
    def se(self) -> float:
        return float(self.std / np.sqrt(max(1, self.splits - 1)))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def inception_score(logits: Array, splits: int = SPLITS) -> InceptionScore:
    """Score of float64 logits [n, classes], in ``splits`` parts of a shuffle that is a function of n, the same as
    torch-fidelity's. Raises InputError for fewer images than splits."""
    n = len(logits)
    if not 2 <= splits <= n:
        raise InputError(f"the Inception Score in {splits} splits needs {max(2, splits)} images or more, got {n}")
    order = np.random.RandomState(SHUFFLE_SEED).permutation(n)
    logits = logits[order]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    scores = np.empty(splits)
    for i in range(splits):
        part = log_p[i * n // splits : (i + 1) * n // splits]
        p = np.exp(part)
        # A class that no image of the split has (probability 0 in float64) adds nothing.
        marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores[i] = np.exp((p * (part - marginal)).sum(axis=1).mean())
    return InceptionScore(
        mean=float(scores.mean()), std=float(scores.std()), splits=splits, classes=logits.shape[1], n=n
    )
