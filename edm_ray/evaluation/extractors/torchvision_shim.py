"""Let torch-fidelity import torchvision on a CPU-only torch, where torchvision's compiled operators do not load."""

from __future__ import annotations

import sys

import torch

_kept_alive: list[torch.library.Library] = []


def ensure_torchvision() -> str:
    """Make ``import torchvision`` work; returns "native" or "shim". Call before the first import of torch_fidelity.

    With a torch that matches, nothing is patched. Otherwise the two operator schemas that the
    pure-Python part asks for are declared (never called by the extractors).
    """
    try:
        import torchvision

        return "native"
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
    if torch.cuda.is_available():
        raise RuntimeError(
            "torchvision does not match this CUDA build of torch; install the pair that belongs together"
        )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # declared by an earlier try
            continue
    _kept_alive.append(library)
    import torchvision  # noqa: F401

    return "shim"
