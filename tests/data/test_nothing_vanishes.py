"""Every file of a source is read, or named; labels and pixels are right, or refused in a line that says what to do."""

from __future__ import annotations

import io
import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.data.importers.files import list_tree
from edm_ray.data.importers.pictures import PictureOptions, to_pixels
from edm_ray.data.importers.source import Record, RecordError, label_table
from edm_ray.data.manifest import open_dataset
from edm_ray.data.write import write_dataset
from edm_ray.errors import InputError
from tests.data.sources import contents, make_parquet, make_tar, make_zip, open_at, picture, pixels_of, put

IMAGES = pixels_of(6, 3, 8)
PNGS = [picture(image) for image in IMAGES]


def prepared(source, dest, capsys, *options):
    """Exit code, what was said, and the data set."""
    code = main(["prepare", str(source), str(dest), *options])
    said = capsys.readouterr()
    assert "Traceback" not in said.err and said.err.count("\n") <= 1
    return code, said.out + said.err, open_dataset(str(dest)) if code == 0 else None


def saved(values, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


# --- files and folders ------------------------------------------------------------------------------------------------


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    for name in "abc":
        put(tmp_path / name / "0.png", PNGS[0])
    scandir = os.scandir

    def refuse_b(path):  # root may enter every folder, so that a mode is no test
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_b)
    with pytest.raises(InputError, match=r"/b: this folder cannot be read .Permission denied.*; allow it"):
        open_at(tmp_path, kind="folder")


def test_a_broken_link_is_named_unless_it_is_hidden(tmp_path):
    put(tmp_path / "a" / "0.png", PNGS[0])
    (tmp_path / "a" / ".#notes.txt").symlink_to("somebody@host.1:1")
    assert list(list_tree(str(tmp_path))) == ["a/0.png"]
    (tmp_path / "a" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"a/1.png: a link that leads nowhere"):
        list_tree(str(tmp_path))


def test_two_classes_that_are_one_folder_by_links_are_refused(tmp_path):
    put(tmp_path / "elsewhere" / "0.png", PNGS[0])
    (tmp_path / "s").mkdir()
    for name in "ab":
        (tmp_path / "s" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"/b and .*/a are one folder by links"):
        open_at(tmp_path / "s", kind="folder")


@pytest.mark.parametrize("place", [b"caf\xe9.png", b"caf\xe9/0.png"])
def test_names_that_are_not_utf_8_are_read_and_shown(tmp_path, capsys, place):
    put(tmp_path / "in" / os.fsdecode(place), PNGS[0])
    code, _, dataset = prepared(tmp_path / "in", tmp_path / "out", capsys)
    assert code == 0 and dataset.rows == 1
    assert dataset.class_names in ((), ("caf\\xe9",))
    table = pq.read_table(tmp_path / "out" / dataset.shards[0].name)
    assert table["image"][0]["path"].as_py() == os.fsdecode(place).replace("\udce9", "\\xe9")


def test_a_name_that_is_not_utf_8_is_said_when_its_picture_is_refused(tmp_path, capsys):
    put(tmp_path / "in" / os.fsdecode(b"caf\xe9.png"), b"no")
    code, said, _ = prepared(tmp_path / "in", tmp_path / "out", capsys)
    assert code == 2 and "caf\\xe9.png: not a readable picture" in said


@pytest.mark.parametrize(("suffix", "read"), [("jfif", True), ("JPE", True), ("heic", False), ("svg", False)])
def test_a_class_of_files_that_are_not_read_is_named(tmp_path, suffix, read):
    put(tmp_path / "cat" / f"a.{suffix}", saved(IMAGES[0].transpose(1, 2, 0), "JPEG"))
    put(tmp_path / "dog" / "a.png", PNGS[0])
    (tmp_path / "emu").mkdir()
    source = open_at(tmp_path)
    assert source.class_names == (("cat", "dog") if read else ("dog",))
    notes = " ".join(source.notes)
    assert ("ignored 1 folder without a readable picture (cat)" in notes) is not read
    assert "ignored 1 empty folder (the first: emu)" in notes


@pytest.mark.parametrize("wrapped", ["", "cifar/"])
@pytest.mark.parametrize("pack", ["folder", "zip", "tar"])
def test_dataset_json_is_used_at_the_top_and_one_folder_deep(tmp_path, pack, wrapped):
    rows = [[f"0000{i // 3}/img{i:08d}.png", i % 3] for i in range(6)]
    files = {f"{wrapped}{name}": png for (name, _), png in zip(rows, PNGS)}
    files[f"{wrapped}dataset.json"] = json.dumps({"labels": rows}).encode()
    if pack == "folder":
        for name, content in files.items():
            put(tmp_path / "s" / name, content)
    else:
        (make_zip if pack == "zip" else make_tar)(tmp_path / "s", files)
    source = open_at(tmp_path / "s", kind=pack)
    assert source.class_names == ("0", "1", "2") and contents(source)[1] == [0, 1, 2, 0, 1, 2]


def test_a_dataset_json_that_is_not_used_is_named(tmp_path):
    put(tmp_path / "a" / "0.png", PNGS[0]), put(tmp_path / "b" / "0.png", PNGS[1])
    put(tmp_path / "b" / "dataset.json", b'{"labels": [["0.png", 4]]}')
    source = open_at(tmp_path)
    assert (
        source.class_names == ("a", "b") and "dataset.json are not used (the first: b/dataset.json)" in source.notes[0]
    )


@pytest.mark.parametrize("content", [b'[["0.png", 1]]', b"{}", b'{"labels": 3}', b"3"])
def test_a_dataset_json_without_labels_is_refused(tmp_path, content):
    put(tmp_path / "0.png", PNGS[0]), put(tmp_path / "dataset.json", content)
    with pytest.raises(InputError, match=r"labels are missing: .*is needed"):
        open_at(tmp_path)
    assert len(open_at(tmp_path, unlabelled=True)) == 1


# --- tar --------------------------------------------------------------------------------------------------------------


def test_a_plain_tar_with_dots_in_its_names_is_read_like_the_folder(tmp_path):
    files = {f"{name}/photo.{i}.png": PNGS[2 * (name == "dog") + i] for name in ("cat", "dog") for i in range(2)}
    pixels, labels = contents(open_at(make_tar(tmp_path / "t.tar", files)))
    assert np.array_equal(pixels, IMAGES[:4]) and labels == [0, 0, 1, 1]


def test_samples_with_dots_in_their_keys_have_their_own_labels(tmp_path):
    files = {}
    for i in range(3):
        files |= {f"photo.{i}.png": PNGS[i], f"photo.{i}.cls": b"%d" % (2 - i)}
    pixels, labels = contents(open_at(make_tar(tmp_path / "t.tar", files)))
    assert np.array_equal(pixels, IMAGES[:3]) and labels == [2, 1, 0]
    one = make_tar(tmp_path / "one.tar", {"photo.0.png": PNGS[0], "photo.0.cls": b"4"})
    assert contents(open_at(one))[1] == [4]


def test_tar_members_that_differ_in_case_are_all_read(tmp_path):
    files = {"x/a.png": PNGS[0], "x/a.PNG": PNGS[1], "x/A.png": PNGS[2]}
    assert np.array_equal(contents(open_at(make_tar(tmp_path / "t.tar", files)))[0], IMAGES[:3])


def test_two_pictures_that_share_a_label_are_refused(tmp_path):
    files = {"1.left.png": PNGS[0], "1.right.png": PNGS[1], "1.cls": b"0"}
    path = make_tar(tmp_path / "t.tar", files)
    with pytest.raises(InputError, match=r"are pictures of one sample; say which with --image-column"):
        open_at(path)
    assert np.array_equal(contents(open_at(path, image_column="right.png"))[0], IMAGES[1:2])


@pytest.mark.parametrize("text", ["²", "--3", "1_000", "9" * 30])
def test_a_label_of_text_that_looks_like_a_number_is_a_class(tmp_path, text):
    path = make_tar(tmp_path / "t.tar", {"a.png": PNGS[0], "a.cls": text.encode()})
    assert open_at(path).class_names == (text,)


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [2**62, 2**63 + 5, 10**30, -(10**30), 10**5, 10**5000], ids=range(6))
def test_labels_that_are_no_classes_are_refused_in_one_line(label):
    with pytest.raises(InputError, match=r"is this a class.*--unlabelled") as caught:
        label_table([0, 1, label], "x")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("kind", ["parquet", "npz", "json", "tar"])
def test_huge_labels_of_every_format_are_refused(tmp_path, kind, capsys):
    big = 2**63 + 5
    if kind == "parquet":
        source = make_parquet(tmp_path / "l.parquet", {"image": PNGS[:2], "label": pa.array([0, big], pa.uint64())})
    elif kind == "npz":
        source = tmp_path / "l.npz"
        np.savez(source, images=IMAGES[:2], labels=np.array([0, big], np.uint64))
    elif kind == "json":
        source = put(tmp_path / "l" / "0.png", PNGS[0]).parent
        put(source / "dataset.json", json.dumps({"labels": [["0.png", big]]}).encode())
    else:
        source = make_tar(tmp_path / "l.tar", {"a.png": PNGS[0], "a.json": json.dumps({"label": big}).encode()})
    code, said, _ = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and "is this a class?" in said and "--unlabelled" in said


def test_labels_of_minus_one_say_the_way_out(tmp_path, capsys):
    source = make_parquet(tmp_path / "a.parquet", {"img": PNGS, "label": [-1] * 6})
    code, said, _ = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and "every label is -1" in said and "--unlabelled" in said
    source = make_parquet(tmp_path / "b.parquet", {"img": PNGS, "label": [0, -1, 1, 0, 0, 0]})
    code, said, _ = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and "label -1 is outside 0..1; give --unlabelled to leave labels out, or --on-error skip" in said


@pytest.mark.parametrize("names", [[0, 1], ["a", None], ["a", "a"], "ab", {"a": 1}])
def test_class_names_that_are_no_texts_are_refused_before_anything_is_written(tmp_path, names, capsys):
    source = make_parquet(tmp_path / "p.parquet", {"img": PNGS, "fine_label": [0, 1] * 3}, names)
    code, said, _ = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and re.search("no text|are named|is needed", said) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["{", "[" * 50_000, '{"info": ' * 5_000, "\ud800x"])
def test_damaged_huggingface_metadata_is_named(tmp_path, text, capsys):
    table = pa.table({"image": PNGS, "label": [0, 1] * 3})
    raw = text.encode("utf-8", "surrogatepass")
    pq.write_table(table.replace_schema_metadata({"huggingface": raw}), tmp_path / "p.parquet")
    code, said, _ = prepared(tmp_path / "p.parquet", tmp_path / "out", capsys)
    assert code == 2 and "huggingface metadata" in said and len(said) < 500


@pytest.mark.parametrize("cast", ["view", "dictionary", "large"])
def test_view_and_dictionary_and_large_columns_are_read(tmp_path, cast):
    images, labels = pa.array(PNGS, pa.binary()), pa.array(list("abcabc"))
    if cast == "dictionary":
        images, labels = images.dictionary_encode(), labels.dictionary_encode()
    elif cast == "view":
        images, labels = pa.array(PNGS, pa.binary_view()), pa.array(list("abcabc"), pa.string_view())
    else:
        images, labels = images.cast(pa.large_binary()), labels.cast(pa.large_string())
    pq.write_table(pa.table({"image": images, "label": labels}), tmp_path / "p.parquet")
    pixels, numbers = contents(open_at(tmp_path / "p.parquet"))
    assert np.array_equal(pixels, IMAGES) and numbers == [0, 1, 2, 0, 1, 2]


def test_a_class_without_pictures_is_said(tmp_path, capsys):
    for i in range(4):
        put(tmp_path / "in" / f"{i}.png", PNGS[i])
    rows = [[f"{i}.png", 1 + 2 * (i % 2)] for i in range(4)]
    put(tmp_path / "in" / "dataset.json", json.dumps({"labels": rows}).encode())
    code, said, dataset = prepared(tmp_path / "in", tmp_path / "out", capsys)
    assert code == 0 and dataset.class_counts == (0, 2, 0, 2)
    assert "WARNING: 2 classes have no pictures: 0, 2; not trained, and drawn only if you ask for it" in said


# --- pixels -----------------------------------------------------------------------------------------------------------


def pixels(content, **options):
    return to_pixels(Record("x", 0, content), PictureOptions(**options))


@pytest.mark.parametrize("mode", ["keep", "grey", "rgb"])
@pytest.mark.parametrize("dtype", ["i4", "f4"])
def test_32_bits_have_no_known_range(dtype, mode):
    content = saved(np.arange(64, dtype=dtype).reshape(8, 8), "TIFF")
    with pytest.raises(RecordError, match=r"32 bits a channel has no known range; convert it to 8 bits"):
        pixels(content, mode=mode)


def test_16_bits_are_shifted_and_low_values_are_said(tmp_path, capsys):
    values = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64
    assert np.array_equal(pixels(saved(values, "PNG"), mode="grey")[0], values >> 8)
    put(tmp_path / "in" / "a.png", saved(values, "PNG"))
    _, said, _ = prepared(tmp_path / "in", tmp_path / "out", capsys, "--mode", "grey")
    assert "WARNING: pictures of 16 bits have values 0 to 4,032 only of 0 to 65,535" in said
    put(tmp_path / "dark" / "a.png", saved(values // 64, "PNG"))
    _, said, _ = prepared(tmp_path / "dark", tmp_path / "out2", capsys, "--mode", "grey")
    assert "values 0 to 63 only" in said and "(all black)" in said
    put(tmp_path / "full" / "a.png", saved(values * 16, "PNG"))
    assert "WARNING" not in prepared(tmp_path / "full", tmp_path / "out3", capsys, "--mode", "grey")[1]


def test_a_camera_s_mpo_is_its_first_picture():
    first, second = (Image.fromarray(image.transpose(1, 2, 0)) for image in IMAGES[:2])
    mpo, jpeg = io.BytesIO(), io.BytesIO()
    first.save(mpo, "MPO", save_all=True, append_images=[second])
    first.save(jpeg, "JPEG")
    assert np.array_equal(pixels(mpo.getvalue()), pixels(jpeg.getvalue()))


def test_opaque_alpha_is_no_transparency():
    values = IMAGES[0].transpose(1, 2, 0)
    opaque = np.dstack([values, np.full((8, 8), 255, np.uint8)])
    assert np.array_equal(pixels(saved(opaque, "PNG")), IMAGES[0])
    opaque[0, 0, 3] = 254
    with pytest.raises(RecordError, match=r"--alpha white, black or drop"):
        pixels(saved(opaque, "PNG"))


@pytest.mark.parametrize("name", ["a.png", "a.parquet", "a.zip", "a.npz", "a.tar"])
def test_a_git_lfs_pointer_is_named_as_such(tmp_path, name, capsys):
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    put(tmp_path / "in" / name, text)
    source = tmp_path / "in" if name == "a.png" else tmp_path / "in" / name
    code, said, _ = prepared(source, tmp_path / "out", capsys)
    assert code == 2 and "Git LFS pointer" in said and "git lfs pull" in said


@pytest.mark.parametrize("content", [b"", b"no", PNGS[0][:40]])
def test_every_refusal_of_a_picture_names_an_option(tmp_path, content, capsys):
    put(tmp_path / "in" / "a.png", content), put(tmp_path / "in" / "b.png", PNGS[0])
    code, said, _ = prepared(tmp_path / "in", tmp_path / "out", capsys)
    assert code == 2 and "a.png" in said and "--on-error skip" in said


def test_a_pipe_among_the_pictures_is_named_and_not_waited_for(tmp_path):
    put(tmp_path / "a.png", PNGS[0])
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(InputError, match=r"b.png: is a pipe, socket or device"):
        open_at(tmp_path, kind="folder")


def test_class_names_of_arrays_are_texts_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"class name 1 is no text"):
        write_dataset(str(tmp_path / "d"), IMAGES, np.array([0, 1] * 3), [1, 2], name="x", split="train")
    assert not (tmp_path / "d").exists()


def test_unlabelled_reads_a_file_whose_metadata_is_damaged(tmp_path):
    table = pa.table({"image": PNGS, "label": [0, 1] * 3})
    pq.write_table(table.replace_schema_metadata({"huggingface": b"{"}), tmp_path / "p.parquet")
    assert np.array_equal(contents(open_at(tmp_path / "p.parquet", unlabelled=True))[0], IMAGES)


def test_text_of_parquet_that_is_not_utf_8_is_named(tmp_path):
    rows = pa.array([{"bytes": PNGS[0], "path": "aaaa.png"}] * 2)
    pq.write_table(pa.table({"image": rows, "label": ["bbbb", "bbbb"]}), tmp_path / "p.parquet", use_dictionary=False)
    content = (tmp_path / "p.parquet").read_bytes()
    (tmp_path / "path.parquet").write_bytes(content.replace(b"aaaa.png", b"aa\xffa.png"))
    source = open_at(tmp_path / "path.parquet")
    with pytest.raises(InputError, match=r"not UTF-8|damaged"):
        source.record(0)
    (tmp_path / "label.parquet").write_bytes(content.replace(b"bbbb", b"bb\xffb"))
    with pytest.raises(InputError, match=r"not UTF-8|damaged"):
        open_at(tmp_path / "label.parquet")


@pytest.mark.parametrize("kind", ["zip", "npz"])
def test_a_folder_of_archives_is_refused_with_the_one_to_give(kind, tmp_path, capsys):
    for name in ("b", "a"):
        put(tmp_path / "in" / f"{name}.{kind}", b"")
    for options in ((), ("--kind", kind)):
        code, said, _ = prepared(tmp_path / "in", tmp_path / "out", capsys, *options)
        assert code == 2 and f"/a.{kind}, not its 2 files together" in said


@pytest.mark.parametrize("options", [(), ("--image-column", "image"), ("--unlabelled",), ("--label-column", "image")])
def test_two_columns_of_one_name_are_refused(options, tmp_path, capsys):
    table = pa.Table.from_arrays([pa.array(PNGS)] * 2, names=["image", "image"])
    pq.write_table(table, tmp_path / "a.parquet")
    code, said, _ = prepared(tmp_path / "a.parquet", tmp_path / "out", capsys, *options)
    assert code == 2 and "2 columns are named 'image': rename them" in said


def test_two_label_columns_of_one_name_are_refused(tmp_path, capsys):
    labels = pa.array([0, 1] * 3)
    table = pa.Table.from_arrays([pa.array(PNGS), labels, labels], names=["image", "label", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    code, said, _ = prepared(tmp_path / "a.parquet", tmp_path / "out", capsys)
    assert code == 2 and "2 columns are named 'label': rename them" in said
    assert prepared(tmp_path / "a.parquet", tmp_path / "out", capsys, "--unlabelled")[2].rows == 6
