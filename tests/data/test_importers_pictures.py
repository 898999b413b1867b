from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from edm_ray.data.importers.pictures import PictureOptions, to_pixels
from edm_ray.data.importers.source import Record, RecordError
from edm_ray.errors import InputError
from tests.data.sources import blank, picture, pixels_of


def _pixels(content, **options):
    return to_pixels(Record("dir/a.png", 0, content), PictureOptions(**options))


def _saved(image, format="PNG", **save):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **save)
    return buffer.getvalue()


def _png16(values, color=0):
    """A 16-bit PNG written by hand: [H, W] greyscale or [H, W, 3] colour (Pillow writes no 16-bit colour)."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


GREY16 = np.arange(16).reshape(4, 4) * 4096 + 255
COLOUR16 = np.stack([GREY16, GREY16[::-1], GREY16.T], axis=-1)


@pytest.mark.parametrize("channels", [1, 3])
def test_8_bit_grey_and_rgb_are_kept_as_they_are(channels):
    image = pixels_of(1, channels, 8)[0]
    assert np.array_equal(_pixels(picture(image)), image)
    assert np.array_equal(to_pixels(Record("x", 0, image), PictureOptions(resolution=8)), image)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (blank(mode="RGBA"), "mode RGBA with transparency; say what becomes of it: --alpha white"),
        (blank(mode="LA"), "mode LA with transparency"),
        (_saved(Image.new("RGB", (4, 4)), transparency=(0, 0, 0)), "with transparency"),
        (blank(mode="P"), "mode P; .*--mode rgb"),
        (blank(mode="1"), "mode 1; .*--mode rgb"),
        (blank(mode="CMYK", format="JPEG"), "mode CMYK"),
        (_png16(GREY16), "16 bits a channel; give --mode rgb or grey"),
        (_png16(COLOUR16, 2), "16 bits a channel"),
        (_saved(Image.fromarray(GREY16.astype(np.uint16)), "TIFF"), "16 bits a channel"),
        (blank((6, 4)), "6x4 is not square; give --resolution"),
        (b"", "the file is empty"),
        (b"GIF89a junk", "not a readable picture"),
        (b"%!PS-Adobe-3.0 EPSF", "not a readable picture: none of PNG, JPEG"),
        (blank((64, 64))[:-30], "not a readable picture"),
        (_saved(Image.new("L", (4, 4)), "GIF", save_all=True, append_images=[Image.new("L", (4, 4), 255)]), "2 frames"),
    ],
)
def test_what_is_not_plain_is_refused_with_the_file_and_the_fix(content, says):
    with pytest.raises(RecordError, match=rf"^dir/a\.png: .*{says}"):
        _pixels(content)


def test_a_decompression_bomb_is_refused_before_it_is_decompressed():
    header = blank((4, 4))
    # The header says 60,000 x 60,000; the rest does not matter, since nothing of it is read.
    ihdr = b"IHDR" + struct.pack(">II", 60_000, 60_000) + header[24:29]
    bomb = header[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + header[33:]
    with pytest.raises(RecordError, match="decompression bomb"):
        _pixels(bomb)
    with pytest.raises(RecordError, match="64x64 is more than 1,000 pixels: refused as a decompression bomb"):
        _pixels(blank((64, 64)), max_pixels=1000)


@pytest.mark.parametrize("content", [_png16(GREY16), _saved(Image.fromarray(GREY16.astype(np.uint16)), "TIFF")])
def test_16_bit_values_become_their_high_byte_when_asked(content):
    assert np.array_equal(_pixels(content, mode="grey")[0], GREY16 >> 8)
    assert np.array_equal(_pixels(content, mode="rgb"), np.stack([GREY16 >> 8] * 3))


def test_16_bit_colour_becomes_its_high_byte_when_asked():
    assert np.array_equal(_pixels(_png16(COLOUR16, 2), mode="rgb"), COLOUR16.transpose(2, 0, 1) >> 8)


def test_modes_are_converted_when_asked():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for image, format in ((red.convert("P"), "PNG"), (red.convert("CMYK"), "TIFF"), (red, "PNG")):
        content = _saved(image, format)
        assert _pixels(content, mode="rgb")[:, 0, 0].tolist() == [255, 0, 0], image.mode
        assert _pixels(content, mode="grey")[:, 0, 0].tolist() == [76], image.mode
    assert _pixels(blank(mode="1"), mode="grey").shape == (1, 4, 4)
    assert to_pixels(Record("x", 0, pixels_of(1, 1, 4)[0]), PictureOptions(mode="rgb")).shape == (3, 4, 4)


@pytest.mark.parametrize(("alpha", "level"), [("white", 255 - 128 + 50), ("black", 50), ("drop", 100)])
def test_transparency_is_laid_on_what_was_asked_for(alpha, level):
    half = _saved(Image.new("RGBA", (4, 4), (100, 100, 100, 128)))
    assert np.abs(_pixels(half, alpha=alpha).astype(int) - level).max() <= 1
    grey = _saved(Image.new("LA", (4, 4), (100, 128)))
    assert np.abs(_pixels(grey, alpha=alpha).astype(int) - level).max() <= 1 and len(_pixels(grey, alpha=alpha)) == 1


def test_the_centre_is_cropped_and_resized_with_lanczos():
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (_pixels(_saved(Image.fromarray(wide)), resolution=4) == 200).all()
    image = pixels_of(1, 3, 16)[0]
    expected = Image.fromarray(image.transpose(1, 2, 0)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(_pixels(picture(image), resolution=8), np.asarray(expected).transpose(2, 0, 1))
    with pytest.raises(RecordError, match="give --crop centre"):
        _pixels(_saved(Image.fromarray(wide)), resolution=4, crop="none")


def test_orientation_is_applied_as_a_viewer_does():
    image = pixels_of(1, 3, 8)[0]
    turned = Image.fromarray(image.transpose(1, 2, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    assert np.array_equal(_pixels(_saved(turned, exif=exif)), np.rot90(image, -1, axes=(1, 2)))


def test_the_first_frame_is_taken_when_asked():
    frames = [Image.new("L", (4, 4), level) for level in (50, 150)]
    content = _saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (_pixels(content, animated="first", mode="grey") == 50).all()


def test_padding_puts_the_picture_in_the_centre_and_never_cuts():
    padded = _pixels(picture(pixels_of(1, 1, 5)[0]), pad=8)
    assert padded.shape == (1, 8, 8) and np.array_equal(padded[:, 1:6, 1:6], pixels_of(1, 1, 5)[0])
    with pytest.raises(RecordError, match="has 5 pixels already"):
        _pixels(picture(pixels_of(1, 1, 5)[0]), pad=4)


def test_numbers_out_of_range_are_refused():
    for options in ({"resolution": 0}, {"pad": 10_000}, {"max_pixels": 0}):
        with pytest.raises(InputError, match="give 1 to"):
            PictureOptions(**options).check()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_random_damage_never_escapes_as_another_error():
    """Any bytes give pixels or a RecordError, whatever Pillow raises."""
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        whole = np.frombuffer(picture(pixels_of(1, 3, 16)[0], format), np.uint8)
        for _ in range(40):
            content = whole.copy()
            content[rng.integers(0, len(content), 4)] = rng.integers(0, 256, 4)
            try:
                assert _pixels(content[: rng.integers(1, len(content) + 1)].tobytes(), mode="rgb").dtype == np.uint8
            except RecordError as error:
                assert str(error).startswith("dir/a.png: ")
