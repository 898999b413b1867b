"""From a picture as found to the pixels of the data set; nothing is converted unless it was asked for.

Order: size limit, animation, orientation (EXIF is applied: what a viewer shows), mode and transparency, centre crop,
Lanczos resize, padding. Colour profiles are ignored; CMYK is converted without one.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from edm_ray.data.format import Pixels
from edm_ray.data.importers.files import LFS_ADVICE, LFS_POINTER
from edm_ray.data.importers.source import Record, RecordError
from edm_ray.errors import InputError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
PILLOW_LIMIT = 178_956_970
"""Pillow itself refuses more pixels than this."""
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    resolution: int | None = None
    """Centre-crop pictures to squares and resize them (Lanczos) to this many pixels a side. Without it all must be
    square and of one size."""
    crop: Literal["centre", "none"] = "centre"
    """centre: crop pictures that are not square; none: refuse them."""
    mode: Literal["keep", "rgb", "grey"] = "keep"
    """keep: take 8-bit greyscale and RGB unchanged and refuse anything else; rgb, grey: convert everything (palette,
    CMYK; of 16 bits the high byte)."""
    alpha: Literal["refuse", "white", "black", "drop"] = "refuse"
    """Transparent pictures: refuse them, put them on white or black, or drop the alpha channel."""
    animated: Literal["refuse", "first"] = "refuse"
    """first: take the first frame of animations and of files with several pages; refuse: refuse such files."""
    pad: int | None = None
    """Pad pictures with zeros to this many pixels a side, centred (MNIST: 32)."""
    max_pixels: int = 89_478_485
    """Refuse pictures with more pixels than this before decompressing them."""

    def check(self) -> None:
        """Raises InputError for numbers out of range."""
        for name in ("resolution", "pad"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 8192:
                raise InputError(f"--{name} {value}: give 1 to 8192 pixels")
        if not 1 <= self.max_pixels <= PILLOW_LIMIT:
            raise InputError(f"--max-pixels {self.max_pixels}: give 1 to {PILLOW_LIMIT}")


def to_pixels(record: Record, options: PictureOptions) -> Pixels:
    """A record's picture as uint8 [C, R, R]. Raises RecordError naming it when it cannot be used as asked."""
    try:
        if isinstance(record.picture, np.ndarray):
            return _finish(_plain_mode(_from_pixels(record.picture), options), options)
        if not record.picture:
            raise RecordError("the file is empty")
        if record.picture.startswith(LFS_POINTER):
            raise RecordError(LFS_ADVICE)
        return _finish(_decode(record.picture, options), options)
    except RecordError as error:
        raise RecordError(f"{record.name}: {error}", error.change) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged bytes
        raise RecordError(f"{record.name}: not a readable picture: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"none of {', '.join(FORMATS)}; convert it to PNG"
    return f"{error}" or type(error).__name__


def _from_pixels(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _open(content: bytes, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        # The limit below is ours; Pillow's own warning would only be a second voice.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > max_pixels:
        image.close()
        raise RecordError(
            f"{image.width}x{image.height} is more than {max_pixels:,} pixels: refused as a decompression "
            "bomb; give --max-pixels N if it is meant",
        )
    return image


def _decode(content: bytes, options: PictureOptions) -> Image.Image:
    with _open(content, options.max_pixels) as image:
        # MPO: the JPEG of a camera with a preview behind it; the first picture is the picture.
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1 and options.animated == "refuse":
            raise RecordError(
                f"holds {getattr(image, 'n_frames', 0)} frames; give --animated first to take the first",
                {"animated": "first"},
            )
        bits = _bits(content, image)
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image.copy()
    if bits > 16:
        raise RecordError(f"picture of {bits} bits a channel has no known range; convert it to 8 bits first")
    if bits > 8 and options.mode == "keep":
        kept = "to keep the high byte of each value" if bits == 16 else "to keep the 8 high bits of each value"
        raise RecordError(f"picture of {bits} bits a channel; give --mode rgb or grey {kept}", {"mode": "rgb"})
    return _plain_mode(upright, options, bits)


def _bits(content: bytes, image: Image.Image) -> int:
    """Of a channel; 32 where the range of the values is not known. Pillow opens 16-bit colour as plain RGB without a
    word."""
    if image.format == "PNG":
        return max(8, content[24])
    if (tags := getattr(image, "tag_v2", None)) is not None:
        bits, signs = (tags.get(tag, default) for tag, default in ((_BITS_PER_SAMPLE, 8), (_SAMPLE_FORMAT, _UNSIGNED)))
        known = all(sign == _UNSIGNED for sign in (signs if isinstance(signs, tuple) else (signs,)))
        return max(8, *(bits if isinstance(bits, tuple) else (bits,))) if known else 32
    return {"F": 32, "I": 16}.get(image.mode, 16 if image.mode.startswith("I;16") else 8)


def deep_range(record: Record, options: PictureOptions) -> tuple[int, int, int] | None:
    """Bits, least and greatest value of greyscale of more than 8 bits; None for every other picture."""
    if isinstance(record.picture, np.ndarray):
        return None
    with _open(record.picture, options.max_pixels) as image:
        bits = _bits(record.picture, image)
        if bits <= 8 or not (image.mode == "I" or image.mode.startswith("I;16")):
            return None
        low, high = image.getextrema()
    return bits, int(low), int(high)  # type: ignore[arg-type]


def _plain_mode(image: Image.Image, options: PictureOptions, bits: int = 8) -> Image.Image:
    """Mode L or RGB, as asked."""
    image = _without_alpha(image, options)
    if options.mode == "keep":
        if image.mode not in ("L", "RGB"):
            raise RecordError(
                f"picture of mode {image.mode}; 8-bit greyscale (L) and RGB are kept as they are, anything else needs "
                "--mode rgb or --mode grey",
                {"mode": "rgb"},
            )
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() >= 1 << bits:
            raise RecordError(f"picture of mode {image.mode} (32 bits) has no known range; convert it to 8 bits first")
        image = Image.fromarray((values.astype(np.int64) >> (bits - 8)).astype(np.uint8))
    target = "RGB" if options.mode == "rgb" else "L"
    return image if image.mode == target else image.convert(target)


def _without_alpha(image: Image.Image, options: PictureOptions) -> Image.Image:
    if not image.has_transparency_data:
        return image
    if image.mode in ("RGBA", "LA") and image.getchannel("A").getextrema() == (255, 255):
        return image.convert(image.mode.removesuffix("A"))  # opaque everywhere: nothing is lost
    if options.alpha == "refuse":
        raise RecordError(
            f"picture of mode {image.mode} with transparency; say what becomes of it: --alpha white, black or drop",
            {"alpha": "white"},
        )
    if image.mode in ("P", "PA") and options.mode == "keep":
        raise RecordError(f"picture of mode {image.mode}; give --mode rgb", {"mode": "rgb"})
    grey = image.mode in ("L", "LA", "La")
    layered = image.convert("RGBA")
    if options.alpha != "drop":
        layered = Image.alpha_composite(Image.new("RGBA", image.size, options.alpha), layered)
    return layered.convert("RGB").convert("L") if grey else layered.convert("RGB")


def _finish(image: Image.Image, options: PictureOptions) -> Pixels:
    """Crop, resize, pad; the result is square."""
    if image.width != image.height and (options.crop == "none" or options.resolution is None):
        sized = options.resolution is not None
        fix = "--crop centre" if sized else "--resolution R to crop and resize"
        change = {"crop": "centre"} if sized else {"resolution": 32}
        raise RecordError(f"{image.width}x{image.height} is not square; give {fix}", change)
    if options.resolution is not None and image.size != (options.resolution, options.resolution):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        image = square.resize((options.resolution, options.resolution), Image.Resampling.LANCZOS)
    pixels: Pixels = np.asarray(image)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if options.pad is not None:
        space = options.pad - pixels.shape[1]
        if space < 0:
            raise RecordError(f"--pad {options.pad}: the picture has {pixels.shape[1]} pixels already")
        before = space // 2
        pixels = np.pad(pixels, ((0, 0), (before, space - before), (before, space - before)))
    return pixels
