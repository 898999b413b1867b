"""The registry of feature extractors: uint8 images in, fixed-point features out. Every FID depends on which."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from edm_ray.errors import InputError, IntegrityError, nearest
from edm_ray.evaluation.extractors.base import Extractor
from edm_ray.evaluation.extractors.digits import DigitsClassifier
from edm_ray.evaluation.extractors.dinov2 import INPUT, MEAN, STD, dinov2_from_state
from edm_ray.evaluation.extractors.published_weights import PUBLISHED, elsewhere
from edm_ray.evaluation.extractors.self_trained import read_self_trained
from edm_ray.evaluation.extractors.torchvision_shim import ensure_torchvision
from edm_ray.evaluation.extractors.trained import DIM, FeatureNetwork


def load_extractor(name: str, weights: str | Path | None, sha256: str | None = None, device: str = "cpu") -> Extractor:
    """A registered extractor with weights from a local file, whose hash is checked before it is read as anything."""
    kind = extractor_kind(name)
    if weights is None:
        how = elsewhere(PUBLISHED[name]) if name in PUBLISHED else kind.weights
        raise InputError(f"extractor {name}: weights are missing; {how}")
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"extractor {name}: {path}: no such file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if sha256 is not None and found != sha256:
        raise IntegrityError(f"{path}: sha256 is {found}, expected {sha256}: not the weights that were asked for")
    return kind.load(path, found, device)


def extractor_kind(name: str) -> Kind:
    """Raises InputError naming what there is."""
    if name not in EXTRACTORS:
        raise InputError(f"--extractor {name}: unknown{nearest(name, EXTRACTORS)}; there are: {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]


def misfit(name: str, channels: int, resolution: int) -> str | None:
    """What the extractor takes, in words, where it does not take images of this size; else None."""
    kind = extractor_kind(name)
    return None if kind.fits(channels, resolution) else kind.takes


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a .safetensors file or a plain file of torch.save; nothing in it is executed.

    Raises IntegrityError for anything else.
    """
    content = path.read_bytes()
    if content[8:9] == b"{":  # safetensors: eight bytes of length, then JSON
        try:
            return dict(safetensors.torch.load(content))
        except safetensors.SafetensorError as error:
            raise IntegrityError(f"{path}: not a whole safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "TorchScript" in str(error):
            raise IntegrityError(
                f"{path}: a TorchScript archive holds a program; refused. Where you trust it, take out its tensors: "
                "torch.save(torch.jit.load(FILE).state_dict(), 'weights.pth')"
            ) from error
        raise IntegrityError(f"{path}: not a plain file of tensors; refused: {_first_line(error)}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise IntegrityError(f"{path}: not a state dict (names and tensors)")
    return state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def three_channels(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Grey images become RGB with three equal channels; other numbers of channels are refused."""

    def accepts(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] not in (1, 3):
            raise InputError(f"extractor {name} takes 1 or 3 channels, got {images.shape[1]}")
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images

    return accepts


def _trained(name: str, network: FeatureNetwork, digest: str, device: str, classes: int) -> Extractor:
    """classes: the first so many outputs are logits of classes; 0: there are none."""
    network.eval().requires_grad_(False)
    weight, bias = (tensor[:classes].double().clone() for tensor in (network.logits.weight, network.logits.bias))
    shape = (network.channels, network.resolution, network.resolution)
    network.to(device)

    def accepts(images: torch.Tensor) -> torch.Tensor:
        if tuple(images.shape[1:]) != shape:
            own = "x".join(map(str, shape))
            raise InputError(f"extractor {name} takes images of {own}, got {tuple(images.shape[1:])}; use inception")
        return images

    def head(features: torch.Tensor) -> torch.Tensor:
        return torch.relu(features) @ weight.T + bias

    return Extractor(name, network, DIM, 14, 100, digest, accepts, head if classes else None, device)


def _digits(path: Path, digest: str, device: str) -> Extractor:
    network = DigitsClassifier()
    try:
        network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise IntegrityError(f"{path}: not weights of the digits extractor: {_first_line(error)}") from error
    return _trained("digits", network, digest, device, classes=network.logits.out_features)


def _self(path: Path, digest: str, device: str) -> Extractor:
    network, classes = read_self_trained(path)
    return _trained("self", network, digest, device, classes)


def _inception(path: Path, digest: str, device: str) -> Extractor:
    """Inception-v3 of the 2015 TensorFlow graph, as torch-fidelity has it: 2,048 pooled features."""
    state = read_state(path)
    ensure_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles what it is given, so it is given a file of our own.
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "weights.pth"
        torch.save(state, own)
        try:
            module: Any = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(own)
            )
        except RuntimeError as error:
            raise IntegrityError(f"{path}: not weights of this Inception network: {_first_line(error)}") from error
    module.eval()
    # "logits_unbiased" of torch-fidelity: the last layer without its bias, so a linear map of the features.
    weight = module.fc.weight.detach().double().cpu().clone()
    module.to(device)
    accepts = three_channels("inception")
    return Extractor("inception", lambda x: module(x)[0], 2048, 14, 25, digest, accepts, lambda x: x @ weight.T, device)


def _clip(path: Path, digest: str, device: str) -> Extractor:
    """The image half of CLIP (Radford et al. 2021), resized and normalised as in torch-fidelity."""
    state = read_state(path)
    if "visual.proj" not in state and "visual.attnpool.positional_embedding" not in state:
        raise IntegrityError(f"{path}: not weights of CLIP: no tensor 'visual.proj' and no 'visual.attnpool...'")
    ensure_torchvision()
    from torch_fidelity import feature_extractor_clip as theirs
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    if "visual.proj" in state:
        # Only its width is read; files of the image half alone do not have it.
        state.setdefault("text_projection", torch.zeros(1, state["visual.proj"].shape[1]))
    # Its constructor unpickles a TorchScript archive; the rest of it is used as it is.
    module: Any = theirs.FeatureExtractorCLIP.__new__(theirs.FeatureExtractorCLIP)
    FeatureExtractorBase.__init__(module, "clip", ["clip"])
    try:
        module.model = theirs.build_model(state, torch.float32)
    except (KeyError, RuntimeError) as error:
        raise IntegrityError(f"{path}: not weights of CLIP: {_first_line(error)}") from error
    module.feature_extractor_internal_dtype = torch.float32
    module.resolution = module.model.visual.input_resolution
    module.requires_grad_(False).eval().to(device)
    dim = int(module.model.visual.output_dim)
    return Extractor("clip", lambda x: module(x)[0], dim, 14, 25, digest, three_channels("clip"), None, device)


def _dinov2(path: Path, digest: str, device: str) -> Extractor:
    """FD-DINOv2 (Stein et al. 2023): class token of DINOv2, images resized and normalised as in torch-fidelity."""
    network = dinov2_from_state(read_state(path), str(path)).to(device)
    ensure_torchvision()
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    mean, std = (255.0 * torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))

    def features(images: torch.Tensor) -> torch.Tensor:
        large = resize(images.to(torch.float32), size=(INPUT, INPUT), align_corners=False)
        values: torch.Tensor = network((large - mean) / std)
        return values

    dim = network.cls_token.shape[-1]
    return Extractor("dinov2", features, dim, 14, 25, digest, three_channels("dinov2"), None, device)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A registered extractor."""

    load: Callable[[Path, str, str], Extractor]
    """(file of weights, its sha256, device) -> extractor."""
    weights: str = ""
    """Where weights come from that nobody publishes, as messages say it."""
    takes: str = "images of 1 or 3 channels"
    fits: Callable[[int, int], bool] = lambda channels, resolution: channels in (1, 3)
    """Of (channels, resolution)."""


EXTRACTORS = {
    "inception": Kind(load=_inception),
    "self": Kind(
        load=_self,
        weights="edm-ray reference --extractor self trains them; give --weights with the file that it kept",
        takes="any square images",
        fits=lambda channels, resolution: True,
    ),
    "digits": Kind(
        load=_digits,
        weights="edm-ray reference --extractor digits trains them; give --weights with the file that it kept",
        takes="images of 8x8x1",
        fits=lambda channels, resolution: (channels, resolution) == (1, 8),
    ),
    "clip": Kind(
        load=_clip,
        weights="give --weights PATH or s3://..., a state dict of OpenAI's CLIP (ViT or ResNet): .safetensors, or .pth "
        "saved with torch.save (what OpenAI publishes is a program, and refused)",
    ),
    "dinov2": Kind(load=_dinov2),
}
