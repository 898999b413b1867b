"""First and second influence of an image on the FID, and what follows from them: error, bias, corrected error.

With L L^T the reference's covariance, S that of the images, A = L^T S L = V diag(a) V^T and z = V^T L^T (x - mu):

    phi(x)       = 2 (mu - m)^T (x - mu) + |x - mu|^2 - sum_j z_j^2 / sqrt(a_j), less its mean
    phi(x, y)    = 2 sum_j z_j(x) z_j(y) / sqrt(a_j) + sum_jk v_jk E_jk(x) E_jk(y)
    E_jk(x)      = z_j z_k - A_jk,   v_jk = 1 / (sqrt(a_j a_k) (sqrt(a_j) + sqrt(a_k)))

FID(images) = FID(all) + mean phi(x_i) + mean_ij phi(x_i, x_j) / 2 + ... Only eigenvalues above rounding take part: with
n < d the root is singular and has no derivative out of the images' span.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Target:
    """Moments of a reference, with a root L [d, r] of its covariance."""

    mean: Array
    root: Array
    trace: float

    @classmethod
    def of(cls, mean: Array, covariance: Array) -> Target:
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1], vectors[:, ::-1]
        kept = values > values[0] * len(values) * np.finfo(float).eps
        return cls(mean, vectors[:, kept] * np.sqrt(values[kept]), float(np.trace(covariance)))

    def fids(self, means: Array, covariances: Array) -> Array:
        """FIDs [G] of moments [G, d], [G, d, d]."""
        values = np.linalg.eigvalsh(self.root.T @ covariances @ self.root)
        gap = means - self.mean
        cross = np.sqrt(np.maximum(values, 0)).sum(axis=-1)
        return (gap**2).sum(axis=-1) + np.trace(covariances, axis1=-2, axis2=-1) + self.trace - 2 * cross


@dataclass(frozen=True)
class Influence:
    """What the images of one sampler tell of their FID."""

    fid: float
    first: Array
    """phi(x_i) [n], mean zero."""
    pair: Array
    """phi(x_i, x_i+1) [n]: of n pairs of which each image is in two."""
    bias: float
    """Of the FID by the second order: E phi(x, x) / 2n, with the covariance's n - 1 accounted for."""

    @classmethod
    def of(cls, x: Array, target: Target) -> Influence:
        n, mean = len(x), x.mean(axis=0)
        dx, gap = x - mean, mean - target.mean
        covariance = dx.T @ dx / (n - 1)
        values, vectors = np.linalg.eigh(target.root.T @ covariance @ target.root)
        kept = values > max(values[-1], 0) * len(values) * np.finfo(float).eps
        a, z = values[kept], dx @ (target.root @ vectors[:, kept])
        root = np.sqrt(a)
        trace = float(np.trace(covariance))
        fid = float(gap @ gap) + trace + target.trace - 2 * float(root.sum())
        square = z**2
        slope = square @ (1 / root)
        first = 2 * dx @ gap + n / (n - 1) * ((dx**2).sum(axis=1) - slope)
        v = 1 / (root[:, None] * root[None, :] * (root[:, None] + root[None, :]))
        after = np.roll(z, -1, axis=0)
        u = z * after
        pair = 2 * u @ (1 / root) + ((u @ v) * u).sum(axis=1)
        pair += 0.5 * (root.sum() - slope - np.roll(slope, -1))
        fourth = ((square @ v) * square).sum(axis=1).mean() - 0.5 * root.sum()
        return cls(fid, first - first.mean(), pair, (trace + 0.5 * fourth) / n)

    def __sub__(self, other: Influence) -> Influence:
        """Of the difference of two samplers on the same seeds."""
        return Influence(self.fid - other.fid, self.first - other.first, self.pair - other.pair, self.bias - other.bias)

    @property
    def se(self) -> float:
        return math.sqrt((self.first**2).sum() / (n := len(self.first)) / (n - 1))

    def grouped_se(self, groups: int) -> float:
        """The same from sums over groups of images (seed mod ``groups``)."""
        n = len(self.first)
        sums = np.bincount(np.arange(n) % groups, self.first, groups)
        return math.sqrt(groups / (groups - 1) * (sums**2).sum()) / n

    @property
    def corrected_se(self) -> float:
        """Less the second order's variance, which the plug-in counts twice (as the jackknife does: Efron and Stein
        1981); never less than half of the plug-in's variance remains, which is what is true where nothing but the
        second order is left."""
        n, plain = len(self.first), self.se**2
        second = float((self.pair**2).mean()) / (2 * n * n)
        return math.sqrt(max(plain - second, plain / 2))


@dataclass(frozen=True)
class Jackknife:
    """By leaving out groups of images (seed mod groups)."""

    fid: float
    left_out: Array

    @classmethod
    def of(cls, x: Array, target: Target, groups: int) -> Jackknife:
        n = len(x)
        own = [x[k::groups] for k in range(groups)]
        sums = np.stack([each.sum(axis=0) for each in own])
        outer = np.stack([each.T @ each for each in own])
        total, whole = sums.sum(axis=0), outer.sum(axis=0)
        means = np.concatenate([total[None], total - sums])
        outers = np.concatenate([whole[None], whole - outer])
        count = np.array([n, *(n - len(each) for each in own)], float)
        means /= count[:, None]
        covariances = (outers - count[:, None, None] * means[:, :, None] * means[:, None, :]) / (count - 1)[
            :, None, None
        ]
        fids = target.fids(means, covariances)
        return cls(float(fids[0]), fids[1:])

    def __sub__(self, other: Jackknife) -> Jackknife:
        return Jackknife(self.fid - other.fid, self.left_out - other.left_out)

    @property
    def bias(self) -> float:
        return (len(self.left_out) - 1) * (float(self.left_out.mean()) - self.fid)

    @property
    def se(self) -> float:
        k = len(self.left_out)
        return math.sqrt((k - 1) / k * ((self.left_out - self.left_out.mean()) ** 2).sum())
