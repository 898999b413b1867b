"""Crops of photographs that packages ship: 32x32 RGB or so, without a download. `photographs` are scikit-learn's two (a
Chinese temple, a dahlia; 640x427, CC BY), `more-photographs` also six of scikit-image's, where that is installed. A few
photographs only: good to try things out, no measure of what a model can do.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from edm_ray.data.importers.source import Record, SourceSpec, fingerprint
from edm_ray.errors import InputError

LARGEST = 213
"""Half of the height of most: a crop shows at most half of it, and a third of the width."""
MORE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg")
"""Colour photographs in scikit-image's package, 300x451 to 1000x872 (others it downloads)."""
MOST_CROPS = 10_000_000


class Photographs:
    """Crop i is a pure function of (split, i): photograph i mod N, square of log-uniform side, anywhere inside.

    Crops overlap, also those of different splits.
    """

    def __init__(self, spec: SourceSpec) -> None:
        if spec.resolution is None or not 4 <= spec.resolution <= LARGEST:
            raise InputError(
                f"{spec.kind}: give --resolution 4 to {LARGEST} (the size of a crop), got {spec.resolution}"
            )
        if not 1 <= spec.crops <= MOST_CROPS:
            raise InputError(f"--num {spec.crops}: give 1 to {MOST_CROPS:,}")
        self.spec, self.resolution = spec, spec.resolution
        shipped = from_scikit_learn()
        parts: tuple[object, ...] = (spec.kind, spec.split, spec.resolution, spec.crops)
        if spec.kind == "more-photographs":
            shipped |= from_scikit_image()
            # What another version ships would be another data set.
            parts += tuple(hashlib.sha256(picture.tobytes()).hexdigest() for picture in shipped.values())
        self.photographs = list(shipped.values())
        self.class_names: tuple[str, ...] = () if spec.unlabelled else tuple(shipped)
        self.labels = (
            np.arange(spec.crops) % len(self.photographs) if self.class_names else np.zeros(spec.crops, np.int64)
        )
        self.fingerprint = fingerprint(*parts)
        self.notes: tuple[str, ...] = (f"crops of {len(shipped)} photographs only: for trying things out",)

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


def from_scikit_learn() -> dict[str, Image.Image]:
    """Name -> photograph, RGB."""
    from sklearn.datasets import load_sample_images

    shipped = load_sample_images()
    names = [str(name).replace("\\", "/").rsplit("/", 1)[-1].split(".")[0] for name in shipped.filenames]
    return {name: Image.fromarray(pixels) for name, pixels in zip(names, shipped.images, strict=True)}


def from_scikit_image() -> dict[str, Image.Image]:
    """Name -> photograph, RGB, from the files of the installed package. (Its own functions may download.)"""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise InputError("more-photographs: they are scikit-image's; pip install scikit-image, or take `photographs`")
    folder = Path(found.submodule_search_locations[0]) / "data"
    if missing := [name for name in MORE if not (folder / name).is_file()]:
        raise InputError(f"more-photographs: {folder} lacks {', '.join(missing)}; scikit-image 0.22 to 0.26 have them")
    return {name.split(".")[0]: Image.open(folder / name).convert("RGB") for name in MORE}
