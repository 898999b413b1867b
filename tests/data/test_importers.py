from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edm_ray.data.importers import npz, parquet
from edm_ray.data.importers.detect import detect_kind
from edm_ray.data.importers.photographs import MORE
from edm_ray.data.importers.pictures import PictureOptions
from edm_ray.data.importers.source import RecordError, label_table
from edm_ray.data.write import write_dataset
from edm_ray.errors import InputError
from tests.data.sources import (
    blank,
    cifar_batch,
    contents,
    idx,
    make_cifar,
    make_folder,
    make_idx,
    make_parquet,
    make_tar,
    make_zip,
    open_at,
    picture,
    pixels_of,
    put,
    structs,
)

IMAGES = pixels_of(6)
LABELS = [0, 1, 2, 2, 1, 0]
PNGS = [picture(image) for image in IMAGES]
GREY = pixels_of(6, 1, 28)


def _source(kind, tmp_path):
    """The same six pictures and labels in every format."""
    named = {f"{'abc'[label]}/{i}.png": png for i, (label, png) in enumerate(zip(LABELS, PNGS))}
    samples = {f"{i}.png": png for i, png in enumerate(PNGS)}
    match kind:
        case "folder":
            for name, png in named.items():
                put(tmp_path / "f" / name, png)
            return tmp_path / "f"
        case "zip":
            return make_zip(tmp_path / "z.zip", {f"wrapped/{name}": png for name, png in named.items()})
        case "nvlabs zip":
            table = {"labels": [[f"00000/img{i:08d}.png", label] for i, label in enumerate(LABELS)]}
            files = {f"00000/img{i:08d}.png": png for i, png in enumerate(PNGS)}
            return make_zip(tmp_path / "n.zip", files | {"dataset.json": json.dumps(table).encode()})
        case "webdataset":
            return make_tar(tmp_path / "w.tar", samples | {f"{i}.cls": str(v).encode() for i, v in enumerate(LABELS)})
        case "webdataset json":
            tables = {f"{i}.json": json.dumps({"label": v}).encode() for i, v in enumerate(LABELS)}
            return make_tar(tmp_path / "w.tar.gz", samples | tables)
        case "tar of folders":
            return make_tar(tmp_path / "t.tar", {f"./{name}": png for name, png in named.items()})
        case "cifar":
            return make_cifar(tmp_path / "cifar-10-python.tar.gz", IMAGES, LABELS)
        case "npz nchw" | "npz nhwc":
            images = IMAGES if kind == "npz nchw" else IMAGES.transpose(0, 2, 3, 1)
            np.savez_compressed(tmp_path / "a.npz", x_train=images, y_train=np.array(LABELS)[:, None])
            return tmp_path / "a.npz"
        case "parquet struct":
            columns = {"img": structs(PNGS), "fine_label": LABELS}
            return make_parquet(tmp_path / "p.parquet", columns, ["x", "y", "z"], row_group_size=4)
        case "parquet binary":
            return make_parquet(tmp_path / "b.parquet", {"picture": PNGS, "class": ["c", "d", "e", "e", "d", "c"]})
        case "our raw shards":
            uri = str(tmp_path / "raw")
            write_dataset(uri, IMAGES, np.array(LABELS), ["p", "q", "r"], name="r", split="train", encoding="raw")
            return uri


KINDS = ["folder", "zip", "nvlabs zip", "webdataset", "webdataset json", "tar of folders", "cifar", "npz nchw"]
KINDS += ["npz nhwc", "parquet struct", "parquet binary", "our raw shards"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_the_same_pictures_and_labels(tmp_path, kind):
    source = open_at(_source(kind, tmp_path))
    images, labels = contents(source)
    # Folders are read in the order of their names: the pictures themselves say which is which.
    order = [next(i for i, image in enumerate(IMAGES) if np.array_equal(image, got)) for got in images]
    assert sorted(order) == list(range(6)) and labels == [LABELS[i] for i in order] and len(source.class_names) == 3
    names = {"cifar": ("plane", "car", "bird"), "parquet struct": tuple("xyz"), "parquet binary": tuple("cde")}
    names |= {
        "our raw shards": tuple("pqr"),
        "folder": tuple("abc"),
        "zip": tuple("abc"),
        "tar of folders": tuple("abc"),
    }
    assert source.class_names == names.get(kind, ("0", "1", "2"))
    assert source.fingerprint == open_at(_source(kind, tmp_path)).fingerprint


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_files_are_read_and_padded_to_32(tmp_path, packed):
    source = open_at(make_idx(tmp_path / "m", GREY, LABELS, packed))
    images, labels = contents(source, PictureOptions(pad=32))
    assert labels == LABELS and np.array_equal(images[:, :, 2:30, 2:30], GREY)
    assert images.shape == (6, 1, 32, 32) and images.sum() == GREY.sum()


def test_cifar_has_a_test_split_and_cifar_100_two_tables_of_labels(tmp_path):
    path = make_cifar(tmp_path / "cifar-10-python.tar.gz", IMAGES, LABELS)
    assert len(open_at(path, split="test")) == 1
    coarse = pickle.loads(cifar_batch(IMAGES, [1] * 6, "coarse_labels"))
    both = coarse | {b"fine_labels": LABELS}
    hundred = make_tar(tmp_path / "cifar-100-python.tar.gz", {"c/train": pickle.dumps(both, protocol=2)})
    assert contents(open_at(hundred))[1] == LABELS
    assert contents(open_at(hundred, label_column="coarse_labels"))[1] == [1] * 6


def test_a_nvlabs_zip_without_labels_has_no_classes(tmp_path):
    files = {f"0000{i}/img.png": png for i, png in enumerate(PNGS)}
    assert open_at(make_zip(tmp_path / "z.zip", files | {"dataset.json": b'{"labels": null}'})).class_names == ()


def test_system_files_are_not_pictures_and_others_are_reported(tmp_path):
    root = make_folder(tmp_path / "f", IMAGES)
    put(root / ".DS_Store", b"x"), put(root / "a" / "._000.png", b"x"), put(root / "notes.txt", b"x")
    source = open_at(root)
    assert (
        len(source) == 6
        and "ignored 1 file that is not a picture" in source.notes[0]
        and "notes.txt" in source.notes[0]
    )


def test_a_linked_class_folder_is_followed_and_a_loop_of_links_ends(tmp_path):
    root = make_folder(tmp_path / "f", IMAGES)
    (root / "a").rename(tmp_path / "elsewhere")
    (root / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(root)
    assert len(open_at(root)) == 6


def test_unlabelled_leaves_labels_out_of_every_format(tmp_path):
    for kind in ("folder", "nvlabs zip", "webdataset", "cifar", "npz nchw", "parquet struct"):
        (tmp_path / kind).mkdir()
        source = open_at(_source(kind, tmp_path / kind), unlabelled=True)
        assert source.class_names == () and len(source) == 6, kind


def test_records_can_be_read_in_any_order_and_by_another_process(tmp_path):
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        source = open_at(_source(kind, tmp_path / kind))
        forward = [source.record(i) for i in range(6)]
        for i in (5, 0, 3, 2, 4, 1):
            again = source.record(i)
            assert again.name == forward[i].name and again.label == forward[i].label
            assert np.array_equal(again.picture, forward[i].picture), kind


def test_photographs_are_keyed_crops(tmp_path):
    source = open_at("photographs", resolution=16, crops=20)
    more = open_at("photographs", resolution=16, crops=40)
    held_out = open_at("photographs", resolution=16, crops=20, split="heldout")
    images, labels = contents(source)
    assert source.class_names == ("china", "flower") and labels == [0, 1] * 10 and images.shape == (20, 3, 16, 16)
    assert np.array_equal(contents(more)[0][:20], images) and len({image.tobytes() for image in images}) == 20
    assert not np.array_equal(contents(held_out)[0], images)
    with pytest.raises(InputError, match="give --resolution 4 to 213"):
        open_at("photographs", crops=20)


def test_more_photographs_are_those_of_the_installed_package(tmp_path, monkeypatch):
    """A package of the same form stands for scikit-image, which tests do not need."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install scikit-image"):
        open_at("more-photographs", resolution=16, crops=20)
    data = tmp_path / "skimage" / "data"
    data.mkdir(parents=True)
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(data.parent)])
    )
    for index, name in enumerate(MORE):
        if index == 5:
            with pytest.raises(InputError, match=r"lacks rocket\.jpg"):
                open_at("more-photographs", resolution=16, crops=20)
        Image.new("RGB", (300, 240), (40 * index, 0, 0)).save(data / name, format="PNG")
    source = open_at("more-photographs", resolution=16, crops=20)
    images, labels = contents(source)
    assert source.class_names[:4] == ("china", "flower", "astronaut", "chelsea") and len(source.class_names) == 8
    assert labels == [i % 8 for i in range(20)]
    assert [int(image[0].mean()) for image in images[2:8]] == list(range(0, 240, 40))
    assert "8 photographs" in source.notes[0]
    # Another picture under the same name is another data set; the two of scikit-learn's are what they were.
    before = source.fingerprint
    Image.new("RGB", (300, 240), (1, 1, 1)).save(data / MORE[0], format="PNG")
    assert open_at("more-photographs", resolution=16, crops=20).fingerprint != before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "nothing", "no such file or folder, nor one of digits, photographs"),
        (lambda p: put(p / "x.bin", b"?"), r"give --kind. Looked for: digits, photographs, .zip"),
        (lambda p: put(p / "f" / "notes.txt", b"?").parent, "nothing usable. Looked for"),
        (lambda p: (put(p / "g" / "a.png", PNGS[0]), put(p / "g" / "a.tar", b""))[0].parent, "several kinds: folder"),
    ],
)
def test_a_source_of_unknown_kind_says_what_was_looked_for(tmp_path, make, says):
    with pytest.raises(InputError, match=says):
        detect_kind(str(make(tmp_path)))


def _deflated(p):
    path = make_zip(p / "z.zip", {"a.png": PNGS[0], "b.png": PNGS[1]})
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(bytes(content))
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: make_zip(p / "z.zip", {"../../etc/a.png": PNGS[0]}), "points outside"),
        (lambda p: make_zip(p / "z.zip", {"/a.png": PNGS[0]}), "points outside"),
        (lambda p: make_zip(p / "z.zip", {"c:\\a.png": PNGS[0]}), "points outside"),
        (lambda p: make_tar(p / "t.tar", {"../a.png": PNGS[0], "../a.cls": b"0"}), "points outside"),
        (lambda p: put(p / "z.zip", b"PK not a zip"), "not a readable zip"),
        (lambda p: make_zip(p / "z.zip", {"a.png": PNGS[0], "dataset.json": b"{"}), "dataset.json: not JSON"),
        (
            lambda p: make_zip(p / "z.zip", {"a.png": PNGS[0], "dataset.json": b'{"labels": [["b.png", 0]]}'}),
            "lists 'b.png', which is not there",
        ),
        (
            lambda p: make_zip(p / "z.zip", {"a.png": PNGS[0], "dataset.json": b'{"labels": [["a.png", [0.5]]]}'}),
            "labels must be",
        ),
        (
            lambda p: make_zip(
                p / "z.zip", {"a.png": PNGS[0], "dataset.json": b'{"labels": [["a.png", 0], ["a.png", 1]]}'}
            ),
            "'a.png' is listed twice",
        ),
        (lambda p: put(p / "t.tar", b"x" * 2000), "damaged or not a tar"),
        (lambda p: put(p / "t.tar.gz", gzip.compress(b"x" * 2000)[:-9]), "damaged gzip"),
        (lambda p: make_tar(p / "t.tar", {"a.cls": b"0"}), "no pictures in it"),
        (
            lambda p: make_tar(p / "t.tar", {"a.png": PNGS[0], "a.jpg": PNGS[0], "a.cls": b"0"}),
            "--image-column EXTENSION",
        ),
        (lambda p: make_tar(p / "t.tar", {"a.png": PNGS[0], "a.json": b"{"}), "a.json: not JSON"),
        (lambda p: make_tar(p / "t.tar", {"a.png": PNGS[0], "a.json": b'{"label": [1]}'}), "a whole number or a text"),
        (
            lambda p: make_tar(p / "cifar.tar.gz", {"readme.txt": b""}),
            "no batches of CIFAR in it .* it holds readme.txt",
        ),
        (lambda p: make_tar(p / "cifar.tar.gz", {"train": b"junk"}), "train: not a readable pickle"),
        (lambda p: make_tar(p / "cifar.tar.gz", {"train": pickle.dumps({"data": 3}, 2)}), "'data' must be uint8"),
        (lambda p: make_tar(p / "cifar.tar.gz", {"train": cifar_batch(IMAGES, LABELS[:5])}), "5 labels for 6 pictures"),
        (lambda p: put(p / "a-images-idx3-ubyte", b"\0\0\x08\x01"), "not an idx file of uint8 in 3 dimensions"),
        (lambda p: put(p / "a-images-idx3-ubyte", idx(GREY[:, 0])[:-1]), r"4,719 bytes, 4,720 are needed"),
        (lambda p: make_idx(p / "i", GREY, LABELS[:5]), "5 labels for the 6 pictures"),
        (lambda p: put(p / "a.npz", b"no"), "not a readable .npz"),
        (lambda p: put(p / "a.parquet", b"PAR1 no"), "not a readable Parquet file"),
        (lambda p: make_parquet(p / "a.parquet", {"x": [1.0]}), "no column holds pictures; .* columns are x: double"),
        (
            lambda p: make_parquet(p / "a.parquet", {"a": PNGS, "b": PNGS}),
            r"several columns .* \(a, b\); give --image-col",
        ),
        (
            lambda p: make_parquet(p / "a.parquet", {"img": PNGS, "label": LABELS, "y": LABELS}),
            r"several columns .* \(label, y\); give --label-column",
        ),
        (lambda p: make_parquet(p / "a.parquet", {"img": PNGS, "label": [0.5] * 6}), "holds double"),
        (lambda p: make_parquet(p / "a.parquet", {"img": PNGS, "label": [10**6] * 6}), "is this a class"),
        (lambda p: make_folder(p / "f", IMAGES) / "000.png", "no such file"),
    ],
)
def test_a_source_that_cannot_be_used_is_named_with_the_reason(tmp_path, make, says):
    with pytest.raises(InputError, match=says) as caught:
        open_at(make(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_come_twice_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("a.png", PNGS[0]), archive.writestr("a.png", PNGS[1])
    with pytest.raises(InputError, match=r"z\.zip: holds the name 'a.png' twice"):
        open_at(tmp_path / "z.zip")


def test_a_link_in_a_tar_is_refused(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match="is a link or a device"):
        open_at(tmp_path / "t.tar")


@pytest.mark.parametrize(
    ("make", "row", "says"),
    [
        (
            lambda p: make_parquet(p / "a.parquet", {"i": structs([*PNGS[:2], None])}),
            2,
            "a.parquet row 2: the picture is null",
        ),
        (lambda p: make_parquet(p / "a.parquet", {"i": pa.array([PNGS[0], None], pa.binary())}), 1, "row 1: .* null"),
        (_deflated, 0, "a.png: damaged"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_its_row(tmp_path, make, row, says):
    source = open_at(make(tmp_path))
    with pytest.raises(RecordError, match=says):
        source.record(row)


def test_a_flipped_byte_in_a_parquet_source_with_checksums_is_found(tmp_path):
    path = make_parquet(tmp_path / "a.parquet", {"i": PNGS}, write_page_checksum=True, compression="none")
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"a\.parquet: .*damaged: .*CRC"):
        open_at(path).record(0)


def test_a_picture_that_is_only_a_path_is_not_followed(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path = make_parquet(tmp_path / "a.parquet", {"i": pa.array([{"bytes": None, "path": "/etc/passwd"}], kind)})
    with pytest.raises(RecordError, match="only the path '/etc/passwd', which is not followed"):
        open_at(path).record(0)


def test_arrays_of_objects_and_of_floats_are_refused(tmp_path):
    np.savez(tmp_path / "o.npz", images=np.array([{}], object))
    with pytest.raises(InputError, match="holds objects"):
        open_at(tmp_path / "o.npz")
    np.savez(tmp_path / "f.npz", images=np.zeros((2, 4, 4)))
    with pytest.raises(InputError, match=r"float64 \(2, 4, 4\); .*scale values"):
        open_at(tmp_path / "f.npz")
    np.savez(tmp_path / "g.npz", images=np.asfortranarray(GREY))
    with pytest.raises(InputError, match="Fortran order"):
        open_at(tmp_path / "g.npz")
    np.savez(tmp_path / "h.npz", images=np.uint8(3))
    with pytest.raises(InputError, match="a single number"):
        open_at(tmp_path / "h.npz")


def test_bombs_of_parquet_and_npz_are_refused_before_they_are_unpacked(tmp_path, monkeypatch):
    """Thresholds are lowered; the real ones are 1 GiB and 100 times."""
    monkeypatch.setattr(parquet, "BOMB_BYTES", 1 << 20)
    path = tmp_path / "b.parquet"
    pq.write_table(pa.table({"image": [*PNGS, bytes(4 << 20)], "label": [*LABELS, 0]}), path, compression="zstd")
    with pytest.raises(InputError, match=r"b\.parquet: column 'image' of row group 0 is .* decompression bomb"):
        open_at(path)
    pq.write_table(pa.table({"image": [bytes(range(256)) * 4096 * 2], "label": [0]}), path, compression="none")
    open_at(path)

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (6, 4, 4, 3)})
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(4 << 20))
    monkeypatch.setattr(npz, "to_temporary", lambda *_: pytest.fail("was unpacked"))
    with pytest.raises(InputError, match=r"images\.npy: 4,194,432 bytes unpacked, its header says 416"):
        open_at(tmp_path / "b.npz")


@pytest.mark.parametrize(
    ("place", "said", "reason", "mebibytes"),
    [
        (20, 1 << 30, "said to take 1,073,741,824 bytes", 4),
        (24, 100, "Bad CRC-32", 4),
        (24, 40 << 20, "bytes unpacked", 100),
    ],
)
def test_sizes_in_a_zip_that_lie_are_damage_and_cost_no_memory(tmp_path, place, said, reason, mebibytes):
    """place: in the directory of the zip, 20: bytes packed, 24: unpacked."""
    path = tmp_path / "z.zip"
    make_zip(path, {"a.png": bytes(32 << 20)}, zipfile.ZIP_DEFLATED)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + place
    content[at : at + 4] = struct.pack("<I", said)
    path.write_bytes(content)
    source = open_at(path)
    tracemalloc.start()
    with pytest.raises(RecordError, match=rf"a\.png: damaged or not readable in the zip: .*{reason}"):
        source.record(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mebibytes << 20


def test_labels_of_every_kind_become_numbers():
    assert label_table(["b", "a", "b"], "x")[0].tolist() == [1, 0, 1]
    assert label_table([2, 0], "x")[1] == ("0", "1", "2")
    with pytest.raises(InputError, match="every label is null"):
        label_table([None, None], "x")


def test_a_source_that_changes_has_another_fingerprint(tmp_path):
    for kind in ("folder", "zip", "webdataset", "parquet struct", "npz nchw", "cifar"):
        (tmp_path / kind).mkdir()
        before = open_at(_source(kind, tmp_path / kind)).fingerprint
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tests.data.test_importers.PNGS", [PNGS[1] + b"\0", *PNGS[1:]])
            patch.setattr("tests.data.test_importers.IMAGES", IMAGES[::-1])
            assert open_at(_source(kind, tmp_path / kind)).fingerprint != before, kind


def test_blank_pictures_of_every_format_are_read(tmp_path):
    for suffix, name in {
        "png": "PNG",
        "jpg": "JPEG",
        "webp": "WEBP",
        "bmp": "BMP",
        "gif": "GIF",
        "tif": "TIFF",
    }.items():
        put(tmp_path / "f" / f"a.{suffix}", blank(format=name))
    assert contents(open_at(tmp_path / "f"), PictureOptions(mode="rgb"))[0].shape == (6, 3, 4, 4)
