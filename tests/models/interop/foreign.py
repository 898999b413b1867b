"""Writes network pickles of the structure the official code writes, from scratch and with our own random tensors.

The official classes are not needed: what goes into a file is a persistent object's meta (type, version, the source
text that normal loading executes, class name, state), torch tensors and containers, and NumPy scalars.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edm_ray.models.interop import from_official
from edm_ray.models.interop.official import WRAPPERS
from edm_ray.networks.layers import Dropout, LabelDropout
from edm_ray.networks.unet import UNetBlock

SONG = {
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "model_type": "SongUNet",
}
NCSN = {
    **SONG, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
ADM = {
    "model_channels": 64, "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4],
    "model_type": "DhariwalUNet",
}  # fmt: skip
IMAGES = {"img_resolution": 8, "img_channels": 3}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "vp": ("VPPrecond", {**IMAGES, **SONG, "label_dim": 4, "augment_dim": 9, "beta_min": 0.2}),
    "ve": ("VEPrecond", {**IMAGES, **NCSN}),
    "edm-song": ("EDMPrecond", {**IMAGES, **SONG, "augment_dim": 9, "use_fp16": False, "decoder_type": "skip"}),
    "edm-adm": ("EDMPrecond", {**IMAGES, **ADM, "label_dim": 4, "sigma_data": 0.4, "dropout": 0.13}),
    "iddpm": ("iDDPMPrecond", {**IMAGES, **ADM, "label_dim": 4}),
}


def randomised(denoiser: nn.Module, seed: int = 0) -> nn.Module:
    """Evaluation mode, with random numbers where the paper's networks start at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return denoiser.eval()


def source_denoiser(case: str) -> nn.Module:
    return randomised(from_official(*CASES[case]))


class Persistent:
    """Reduces as the official persistent classes do."""

    def __init__(self, class_name: str, state: dict[str, Any], module_src: str) -> None:
        self.meta = {
            "type": "class", "version": 6, "module_src": module_src, "class_name": class_name, "state": state,
        }  # fmt: skip

    def __reduce__(self) -> Any:
        return (sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,))


@contextlib.contextmanager
def foreign_modules() -> Iterator[Any]:
    """`torch_utils.persistence` and `dnnlib.util`, as a pickler looks them up."""

    def _reconstruct_persistent_obj(meta: Any) -> Any:
        raise AssertionError("the file was unpickled")

    class EasyDict(dict):
        pass

    modules = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = (
        "torch_utils.persistence", "_reconstruct_persistent_obj",
    )  # fmt: skip
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["torch_utils"].persistence = modules["torch_utils.persistence"]
    modules["dnnlib.util"].EasyDict = EasyDict
    modules["dnnlib"].util = modules["dnnlib.util"]
    sys.modules.update(modules)
    try:
        yield EasyDict
    finally:
        for name in modules:
            del sys.modules[name]


def canary_source(canary: Path) -> str:
    """Source text that leaves a file behind when it is executed."""
    return f"import pathlib\npathlib.Path({str(canary)!r}).write_text('executed')\n" + "#" * 20_000


def foreign(module: nn.Module, class_name: str, module_src: str, **extra: Any) -> Any:
    """A module of ours as the official code would pickle it."""
    state = {
        "training": False,
        "_parameters": OrderedDict(module._parameters),
        "_buffers": OrderedDict(module._buffers),
        "_non_persistent_buffers_set": set(),
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(
            (name, foreign(child, type(child).__name__, module_src))
            for name, child in module._modules.items()
            if not isinstance(child, (Dropout, LabelDropout))
        ),
        "_init_args": (),
        **extra,
    }
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules = state["_modules"]
        return container
    if isinstance(module, UNetBlock):
        state["skip_scale"], state["num_heads"] = np.sqrt(0.5), 1
        state["_orig_module_name"] = "training.networks"
    return Persistent(class_name, state, module_src)


def foreign_network(case: str, denoiser: nn.Module, module_src: str = "", **extra: Any) -> Any:
    class_name, kwargs = CASES[case]
    model_type = kwargs.get("model_type", WRAPPERS[class_name]["model_type"])
    network = foreign(denoiser, class_name, module_src, _init_kwargs=kwargs, **IMAGES, **extra)
    network.meta["state"]["_modules"]["model"].meta["class_name"] = model_type
    return network


def snapshot(case: str, denoiser: nn.Module, module_src: str = "", protocol: int = 4, **extra: Any) -> bytes:
    """A network-snapshot pickle: ema, loss_fn, augment_pipe, dataset_kwargs."""
    with foreign_modules() as easy_dict:
        content = {
            "ema": foreign_network(case, denoiser, module_src, **extra),
            "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "_init_args": (), "_init_kwargs": {}}, module_src),
            "augment_pipe": None,
            "dataset_kwargs": easy_dict(path="/somewhere/cifar10-32x32.zip", use_labels=True, max_size=50000),
        }
        return pickle.dumps(content, protocol=protocol)


def training_state(case: str, denoiser: nn.Module, module_src: str = "") -> bytes:
    """A training-state file: torch.save of the whole module under 'net', and an optimizer's state."""
    stream = io.BytesIO()
    optimizer = torch.optim.Adam(denoiser.parameters())
    with foreign_modules():
        torch.save(
            {"net": foreign_network(case, denoiser, module_src), "optimizer_state": optimizer.state_dict()}, stream
        )
    return stream.getvalue()
