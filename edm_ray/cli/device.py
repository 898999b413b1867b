"""``--device``: what networks run on."""

from __future__ import annotations

from edm_ray.errors import InputError

DEVICES = ("cpu", "cuda")


def check_device(device: str, *, here: bool) -> None:
    """Refuse what is not known, and ``here`` (used by this process) a GPU that this machine has not."""
    if device not in DEVICES:
        raise InputError(f"--device {device}: give cpu or cuda")
    if not here or device == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"--device cuda: this machine gives torch {torch.__version__} no GPU; give --device cpu")
