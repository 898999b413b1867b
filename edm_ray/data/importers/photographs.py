"""Crops of the two photographs that scikit-learn ships (a Chinese temple, a dahlia; 640x427, CC BY): 32x32 RGB or so,
without a download. Two photographs only: good to try things out, no measure of what a model can do.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from edm_ray.data.importers.source import Record, SourceSpec, fingerprint
from edm_ray.errors import InputError

LARGEST = 213
"""Half of the photographs' height: a crop shows at most half of it, and a third of the width."""


class Photographs:
    """Crop i is a pure function of (split, i): photograph i mod 2, square of log-uniform side, anywhere inside.

    Crops overlap, also those of different splits.
    """

    def __init__(self, spec: SourceSpec) -> None:
        from sklearn.datasets import load_sample_images

        if spec.resolution is None or not 4 <= spec.resolution <= LARGEST:
            raise InputError(
                f"photographs: give --resolution 4 to {LARGEST} (the size of a crop), got {spec.resolution}"
            )
        if spec.crops < 1:
            raise InputError(f"--crops {spec.crops}: give 1 or more")
        self.spec, self.resolution = spec, spec.resolution
        shipped = load_sample_images()
        self.photographs = [Image.fromarray(pixels) for pixels in shipped.images]
        names = tuple(str(name).replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] for name in shipped.filenames)
        self.class_names: tuple[str, ...] = () if spec.unlabelled else names
        self.fingerprint = fingerprint("photographs", spec.split, spec.resolution, spec.crops)
        self.notes: tuple[str, ...] = ("crops of two photographs only: for trying things out",)

    def __len__(self) -> int:
        return self.spec.crops

    def record(self, index: int) -> Record:
        import torch

        from edm_ray.seeding import stream_key, words

        key = stream_key(f"photographs {self.spec.split}")
        scale, across, down = words(key, torch.tensor([index]), 3)[0].tolist()
        which = index % len(self.photographs)
        photograph = self.photographs[which]
        side = round(self.resolution * (LARGEST / self.resolution) ** (scale / 2**32))
        left = across * (photograph.width - side + 1) >> 32
        top = down * (photograph.height - side + 1) >> 32
        crop = photograph.crop((left, top, left + side, top + side))
        tile = crop.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        pixels = np.asarray(tile).transpose(2, 0, 1)
        return Record(f"{index:08d}.png", which if self.class_names else 0, pixels)
