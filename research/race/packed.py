"""FIDs from sums over groups of images, many at once: features' sum, then the lower triangle of their products' sum."""

from __future__ import annotations

import numpy as np

from edm_ray.evaluation.fid import FidEstimate, standard_error
from edm_ray.evaluation.influence import GROUPS

JACKKNIFE = 10
"""Groups that the bias is estimated from."""


class Packed:
    """A reference's moments, and what takes sums [G, d + d (d + 1) / 2] apart."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean, self.dim = mean, len(mean)
        self.triangle = np.tril_indices(self.dim)
        values, vectors = np.linalg.eigh(covariance)
        self.root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        self.trace = float(np.trace(covariance))

    def pack(self, features: np.ndarray) -> np.ndarray:
        """Sums over images [n, d]."""
        return np.concatenate([features.sum(axis=0), (features.T @ features)[self.triangle]])

    def moments(self, sums: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means [G, d] and covariances [G, d, d] of so many images [G]."""
        outer = np.zeros((len(sums), self.dim, self.dim))
        outer[:, self.triangle[0], self.triangle[1]] = sums[:, self.dim :]
        outer = outer + np.tril(outer, -1).transpose(0, 2, 1)
        total, count = sums[:, : self.dim], np.asarray(images, dtype=np.float64)[:, None]
        covariance = (outer - total[:, :, None] * total[:, None, :] / count[:, :, None]) / (count[:, :, None] - 1)
        return total / count, covariance

    def fids(self, sums: np.ndarray, images: np.ndarray) -> np.ndarray:
        """FIDs [G]."""
        means, covariance = self.moments(sums, images)
        values = np.linalg.eigvalsh(self.root @ covariance @ self.root)
        traces = np.trace(covariance, axis1=1, axis2=2) + self.trace - 2 * np.sqrt(np.maximum(values, 0)).sum(axis=1)
        return ((means - self.mean) ** 2).sum(axis=1) + traces

    def estimate(self, sums: np.ndarray, images: np.ndarray, reference: str, extractor: str) -> FidEstimate:
        """Of the images of all groups [G], as edm_ray has it: the bias from ten of them, errors from the influences
        of up to 73."""
        whole, n = sums.sum(axis=0), int(images.sum())
        ten = np.arange(len(sums)) % JACKKNIFE
        out = np.stack([sums[ten == k].sum(axis=0) for k in range(JACKKNIFE)])
        counts = np.bincount(ten, images, JACKKNIFE)
        values = self.fids(np.concatenate([whole[None], whole - out]), np.concatenate([[n], n - counts]))
        fid, left_out = float(values[0]), values[1:]
        shares = self.influences(sums, images) / n
        groups = min(GROUPS, len(sums))
        influence = np.bincount(np.arange(len(sums)) % groups, shares, groups).tolist()
        return FidEstimate(
            fid=fid,
            debiased=float(JACKKNIFE * fid - (JACKKNIFE - 1) * left_out.mean()),
            se=standard_error(influence),
            n=n,
            influence=tuple(influence),
            reference=reference,
            extractor=extractor,
        )

    def influences(self, sums: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Sums over the images of each group [G]; zero in all."""
        n = int(images.sum())
        means, covariances = self.moments(sums.sum(axis=0)[None], np.array([n]))
        mean, covariance = means[0], covariances[0]
        values, vectors = np.linalg.eigh(self.root @ covariance @ self.root)
        kept = values > values[-1] * self.dim * np.finfo(float).eps
        turned = self.root @ vectors[:, kept]
        slope = np.eye(self.dim) - turned / np.sqrt(values[kept]) @ turned.T
        weights = ((2 - np.eye(self.dim)) * slope)[self.triangle]
        total = sums[:, : self.dim]
        square = sums[:, self.dim :] @ weights - 2 * total @ (slope @ mean) + images * (mean @ slope @ mean)
        first = 2 * (total - images[:, None] * mean) @ (mean - self.mean) + n / (n - 1) * square
        return first - first.sum() * images / n
