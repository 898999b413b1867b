"""Class labels as the denoisers take them."""

from __future__ import annotations

import torch

from edm_ray.errors import InputError


def one_hot_labels(classes: torch.Tensor, label_dim: int) -> torch.Tensor:
    """Class numbers int64 [B] -> float32 [B, label_dim]. Raises InputError for classes outside 0..label_dim-1."""
    if classes.ndim != 1 or classes.dtype != torch.int64:
        raise InputError(f"class_labels={classes.dtype} {tuple(classes.shape)} is not allowed: int64 [B]")
    wrong = (classes < 0) | (classes >= label_dim)
    if bool(wrong.any()):
        raise InputError(f"class_labels={int(classes[wrong][0])} is not allowed: a class in 0..{label_dim - 1}")
    return torch.nn.functional.one_hot(classes, label_dim).to(torch.float32)
