"""What each image does to the FID (its influence): standard errors, and paired differences of samplers.

FID = |mu - m|^2 + tr(S + S_r - 2 (L^T S L)^(1/2)), S_r = L L^T, has the gradient 2 (mu - m) in mu and
G = I - L (L^T S L)^(-1/2) L^T in S. So the weight of image i in the FID of n images moves it by

    phi_i = 2 (mu - m)^T (x_i - mu) + n / (n - 1) (x_i - mu)^T G (x_i - mu),  less the mean of all,

and the variance of the FID is that of phi over n (the infinitesimal jackknife: Jaeckel 1972, Efron 1982). Where
L^T S L is singular (fewer images than features) its inverse root is taken on the eigenvalues above rounding: the images
lie in that span, and out of it the root has no derivative.

An image's influence has the same bits whatever images it comes with: the product that all need is one of integers below
2^53, rounded to them once, to about 30 bits; the sums over an image's features are its own.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edm_ray.evaluation.fid import FidEstimate, FidReference, debiased_fid, standard_error
from edm_ray.evaluation.moments import Array, GroupSums, Moments, one_thread

GROUPS = 73
"""Groups of images (seed mod 73) whose influences are kept: as many degrees of freedom, less one. With balanced labels
ten seeds in a row share one of C classes; 73 is prime and far from the multiples of 10 C for most C, so each group
holds all classes about alike, and their differences are no error."""
ROWS_AT_ONCE = 1000
_BITS = 52

Rows = tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]
"""Features [n, d] of images, and their seeds [n]."""


class Influence:
    """phi, but for a constant, of the images that have these moments. largest: of their features on the grid."""

    def __init__(self, moments: Moments, reference: FidReference, largest: int) -> None:
        reference.moments._require_like(moments)
        mean, n = moments.mean, moments.n
        self.unit = 2.0**-moments.scale_bits
        self.share = n / (n - 1)
        with one_thread():
            values, vectors = np.linalg.eigh(reference.root.T @ moments.covariance @ reference.root)
            kept = values > max(float(values[-1]), 0.0) * len(values) * np.finfo(np.float64).eps
            # |turned^T (x - mu)|^2 = (x - mu)^T (I - G) (x - mu)
            turned = reference.root @ (vectors[:, kept] * values[kept] ** -0.25)
            slope = 2.0 * (mean - reference.mean) - 2.0 * self.share * mean
            columns = np.column_stack([turned, slope])
            most = max(largest, 1) * np.abs(columns).sum(axis=0)
            self.scale = 2.0 ** np.floor(_BITS - np.log2(np.where(most > 0, most, 1.0)))
            self.table: Array = np.rint(columns * self.scale)
            self.centre: Array = mean @ (self.table[:, :-1] / self.scale[:-1])

    def of(self, features: npt.NDArray[np.int32]) -> Array:
        """Of images [n, d] -> [n]."""
        parts = [self._block(features[i : i + ROWS_AT_ONCE]) for i in range(0, len(features), ROWS_AT_ONCE)]
        return np.concatenate(parts) if parts else np.empty(0)

    def _block(self, features: npt.NDArray[np.int32]) -> Array:
        x = features.astype(np.float64)
        product = x @ self.table  # of integers, exact
        product *= self.unit / self.scale
        length = np.square(x * self.unit).sum(axis=1)
        inside = np.square(product[:, :-1] - self.centre).sum(axis=1)
        found: Array = product[:, -1] + self.share * (length - inside)
        return found


def group_influences(influence: Influence, parts: Iterable[Rows]) -> tuple[float, ...]:
    """Sums of phi / n over groups of images, which come in parts of any size and order; n numbers are held."""
    found = [(influence.of(features), seeds) for features, seeds in parts]
    phi, seeds = (np.concatenate(pieces) for pieces in zip(*found, strict=True))
    order = np.argsort(seeds, kind="stable")
    phi, group = phi[order], seeds[order] % GROUPS
    sums = np.bincount(group, (phi - phi.mean()) / len(phi), GROUPS)
    return tuple(sums[np.bincount(group, minlength=GROUPS) > 0].tolist())


def fid_of_parts(sums: GroupSums, parts: Iterable[Rows], reference: FidReference) -> FidEstimate:
    """FID of the images of these parts, which ``sums`` has seen. Raises InputError for fewer than two groups."""
    groups = sums.groups()
    everything = Moments.merge(*groups)
    fid, debiased = debiased_fid(groups, everything, reference)
    shares = group_influences(Influence(everything, reference, sums.largest), parts)
    return FidEstimate(
        fid=fid,
        debiased=debiased,
        se=standard_error(shares),
        n=everything.n,
        influence=shares,
        reference=reference.hash,
        extractor=reference.moments.extractor,
    )


def fid_of_features(
    features: npt.NDArray[np.int32], seeds: npt.NDArray[np.int64], reference: FidReference, num_groups: int = 10
) -> FidEstimate:
    """The same of int32 [n, d] features of the images with these seeds, on the grid of the reference's extractor."""
    moments = reference.moments
    sums = GroupSums(num_groups, moments.extractor, moments.scale_bits)
    sums.add(features, seeds)
    return fid_of_parts(sums, [(features, seeds)], reference)
