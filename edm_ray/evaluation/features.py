"""Feature extractors: uint8 images in, fixed-point features out. A registry, because every FID depends on which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
import torch

from edm_ray.errors import InputError, IntegrityError, nearest
from edm_ray.evaluation.digits_classifier import DIM, DigitsClassifier
from edm_ray.evaluation.torchvision_shim import ensure_torchvision

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
# Part of every identity: raise it when the features of the same weights change.
CODE_VERSION = 1


class Extractor:
    """One extractor with its weights loaded."""

    def __init__(
        self,
        name: str,
        network: Callable[[torch.Tensor], torch.Tensor],
        dim: int,
        scale_bits: int,
        micro_batch: int,
        weights_sha256: str,
        accepts: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.name, self.dim, self.scale_bits, self.micro_batch = name, dim, scale_bits, micro_batch
        self.weights_sha256 = weights_sha256
        self._network, self._accepts = network, accepts

    @property
    def identity(self) -> str:
        """Hash of all that decides the features."""
        parts = (self.name, self.weights_sha256, self.dim, self.scale_bits, self.micro_batch, CODE_VERSION)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @torch.inference_mode()
    def extract(self, images: torch.Tensor) -> npt.NDArray[np.int32]:
        """uint8 [B, C, H, W] -> int32 [B, dim]: features times 2^scale_bits, rounded.

        The network always sees one padded micro-batch shape, so a row does not depend on what else is in the batch.
        """
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(f"images must be uint8 [B, C, H, W], got {images.dtype} {tuple(images.shape)}")
        rows = []
        for part in self._accepts(images).split(self.micro_batch):
            missing = self.micro_batch - len(part)
            padded = torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 0, 0, missing))
            values = self._network(padded)[: len(part)].to(torch.float64)
            if not bool(torch.isfinite(values).all()):
                raise FloatingPointError(f"extractor {self.name}: features are not finite")
            rows.append(torch.round(values * 2.0**self.scale_bits).to(torch.int32).numpy())
        return np.concatenate(rows) if rows else np.empty((0, self.dim), np.int32)


def load_extractor(name: str, weights: str | Path | None, sha256: str | None = None) -> Extractor:
    """A registered extractor with weights from a local file, whose hash is checked before it is read as anything."""
    if name not in EXTRACTORS:
        raise InputError(f"--extractor {name}: unknown{nearest(name, EXTRACTORS)}; there are: {', '.join(EXTRACTORS)}")
    if weights is None:
        raise InputError(
            f"extractor {name}: weights are missing; give --weights PATH or s3://... For inception that is "
            f"torch-fidelity's {INCEPTION_FILE} (release v0.2.0). For 8x8 digits there is --extractor digits"
        )
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"extractor {name}: {path}: no such file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise IntegrityError(f"{path}: sha256 is {found}, expected {sha256}: not the weights that were asked for")
    return EXTRACTORS[name](path, found)


def _digits(path: Path, digest: str) -> Extractor:
    network = DigitsClassifier()
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{path}: not weights of the digits extractor: {str(error).splitlines()[0]}") from error
    network.eval().requires_grad_(False)

    def accepts(images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[1:]) != (1, 8, 8):
            raise InputError(f"extractor digits takes images of 1x8x8, got {tuple(images.shape[1:])}; use inception")
        return images

    return Extractor("digits", network, DIM, 14, 100, digest, accepts)


def _inception(path: Path, digest: str) -> Extractor:
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise IntegrityError(f"{path}: not a plain file of tensors; refused: {str(error).splitlines()[0]}") from error
    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    module: Any = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    module.eval()

    def accepts(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"extractor inception takes 1 or 3 channels, got {images.shape[1]}")
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    return Extractor("inception", lambda x: module(x)[0], 2048, 14, 25, digest, accepts)


EXTRACTORS: dict[str, Callable[[Path, str], Extractor]] = {"inception": _inception, "digits": _digits}
