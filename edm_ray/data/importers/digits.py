"""The handwritten digits that scikit-learn ships: 1,797 real 8x8 scans (UCI, Alpaydin and Kaynak), 17 grey levels."""

from __future__ import annotations

import numpy as np

from edm_ray.data.importers.source import Record, SourceSpec, fingerprint
from edm_ray.errors import InputError

NUM_HELD_OUT = 500


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 1, 8, 8] (grey levels 0..16 scaled to 0..255) and int64 labels [1797]."""
    from sklearn.datasets import load_digits as sklearn_digits

    raw = sklearn_digits()
    return np.rint(raw.images * (255.0 / 16.0)).astype(np.uint8)[:, None], raw.target.astype(np.int64)


def split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fixed split into "train" (1,297) and "heldout" (500): every row is used once, classes in the same shares.

    The rows of a class are dealt out evenly along the file, since neighbouring rows come from the same writer.
    """
    images, labels = load_digits()
    share = NUM_HELD_OUT / len(labels)
    rank_in_class = np.empty(len(labels), np.int64)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        rank_in_class[rows] = np.arange(len(rows))
    # The phase differs by class, so that rounding up and down balances and the total comes out near the share.
    phase = labels / 10.0
    held_out = np.floor((rank_in_class + 1) * share + phase) > np.floor(rank_in_class * share + phase)
    surplus = int(held_out.sum()) - NUM_HELD_OUT
    flip = np.flatnonzero(held_out)[:surplus] if surplus > 0 else np.flatnonzero(~held_out)[: -surplus or 0]
    held_out[flip] = surplus < 0
    return {"train": (images[~held_out], labels[~held_out]), "heldout": (images[held_out], labels[held_out])}


class Digits:
    """One split of the digits as a source."""

    notes: tuple[str, ...] = ()

    def __init__(self, spec: SourceSpec) -> None:
        splits = split_digits()
        if spec.split not in splits:
            raise InputError(f"--split {spec.split}: digits have {' and '.join(splits)}")
        self.images, self.labels = splits[spec.split]
        self.class_names: tuple[str, ...] = () if spec.unlabelled else tuple(str(digit) for digit in range(10))
        self.fingerprint = fingerprint("digits", spec.split)

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        return Record(f"{index:08d}.png", int(self.labels[index]) if self.class_names else 0, self.images[index])
