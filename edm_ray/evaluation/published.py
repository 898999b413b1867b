"""Reference moments that others have published: a mean and a covariance, without the sums they came from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.numpy

from edm_ray.errors import InputError, IntegrityError
from edm_ray.evaluation.moments import Array, Moments, check_moments
from edm_ray.storage.documents import shortened_error


@dataclass(frozen=True, eq=False, kw_only=True)
class PublishedMoments:
    """As much of `Moments` as a reference needs. It can be measured against; nothing can be added or taken away."""

    mean: Array
    """[d]"""
    covariance: Array
    """[d, d]"""
    extractor: str
    """Identity of the extractor whose features they are said to be."""
    scale_bits: int

    @property
    def images(self) -> str:
        return "n not published"

    def _require_like(self, other: Moments) -> None:
        if (self.extractor, self.scale_bits) != (other.extractor, other.scale_bits):
            raise InputError(
                f"moments of extractor {self.extractor[:12]} and of {other.extractor[:12]} cannot be compared; "
                "import the reference again with the extractor in use"
            )

    @property
    def hash(self) -> str:
        """sha256 of the numbers."""
        digest = hashlib.sha256(f"given {self.scale_bits} {self.extractor}".encode())
        for part in (self.mean, self.covariance):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """safetensors with the two arrays."""
        content: bytes = safetensors.numpy.save({"mean": self.mean, "covariance": self.covariance})
        return content

    @classmethod
    def from_bytes(cls, content: bytes, where: str, extractor: str, scale_bits: int) -> PublishedMoments:
        try:
            arrays = safetensors.numpy.load(content)
            mean, covariance = arrays["mean"], arrays["covariance"]
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            raise IntegrityError(f"{where}: not a file of given moments: {shortened_error(error)}") from error
        check_moments((mean, covariance), where)
        return cls(mean=mean, covariance=covariance, extractor=extractor, scale_bits=scale_bits)
