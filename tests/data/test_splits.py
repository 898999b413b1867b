"""Which files are a split: the right rows, or a refusal, for the names that people's tools write."""

from __future__ import annotations

import numpy as np
import pytest

from edm_ray.cli import main
from edm_ray.data.importers.splits import choose_files, note_of_file, split_of
from edm_ray.errors import InputError
from tests.data.sources import idx, make_parquet, make_tar, make_zip, open_at, picture, pixels_of, put

PNGS = [picture(image) for image in pixels_of(12, 3, 8)]
SUFFIX = {"parquet": "parquet", "tar": "tar"}


def write(root, name, label, rows=3, kind="parquet"):
    """A file of `rows` pictures, all of one label, so that a mixture of splits shows in the labels."""
    path = root / f"{name}.{kind}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.lower() == "parquet":
        make_parquet(path, {"image": PNGS[:rows], "label": [label] * rows})
    else:
        make_tar(path, {f"{i}.png": PNGS[i] for i in range(rows)} | {f"{i}.cls": b"%d" % label for i in range(rows)})


def rows_of(source):
    return {int(label): int(count) for label, count in zip(*np.unique(source.labels, return_counts=True))}


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train/0000"], ["test/0000"]),
        (["default/train/0000", "default/train/0001"], ["default/test/0000"]),
        (["mnist-train"], ["mnist-test"]),
        (["train_0", "train_1"], ["test_0"]),
        (["Train/part-00000-5d57-c000"], ["TEST/part-00000-5d57-c000"]),
        (["train-00000-of-00002", "train-00001-of-00002"], ["test-00000-of-00001"]),
        (["cifar10-train-00000-of-00001"], ["cifar10-test-00000-of-00001"]),
        (["split=train/a", "split=train/b"], ["split=test/a"]),
        (["training/1"], ["evaluation/1"]),
        (["data.train.0"], ["data.test.0"]),
        (["train2017"], ["test2017"]),
        (["my-test-data/train_0"], ["my-test-data/test_0"]),
    ],
)
def test_a_split_is_the_files_whose_names_say_it_in_every_container(tmp_path, kind, train, test):
    for label, names in enumerate((train, test)):
        for name in names:
            write(tmp_path, name, label, kind=kind)
    assert rows_of(open_at(tmp_path)) == {0: 3 * len(train)}
    held_out = open_at(tmp_path, split="test")
    assert rows_of(held_out) == {1: 3 * len(test)}
    assert f"{len(test)} of {len(train) + len(test)} files are taken" in held_out.notes[0]
    assert f"train ({len(train)} file" in held_out.notes[0]
    with pytest.raises(
        InputError, match=r"no split 'val': it holds test \(1 file\), train .*--split may be test, train"
    ):
        open_at(tmp_path, split="val")


@pytest.mark.parametrize("kind", SUFFIX)
@pytest.mark.parametrize(
    "names",
    [
        [f"{i}_5d570d2923334b90843d4147dcfb40b8_{i:06}_000000" for i in range(2)],  # ray.data.Dataset.write_parquet
        ["part.0", "part.1"],  # Dask
        ["part-00000-5d570d29-c000.snappy", "part-00001-5d570d29-c000.snappy"],  # Spark
        ["0000", "0001"],
        ["data-00000-of-00002", "data-00001-of-00002"],
        ["contest_1", "latest_2"],  # "test" inside of a word is no split
        ["2023/a", "2024/a"],
    ],
)
def test_a_folder_without_words_for_splits_is_one_split_and_has_no_other(tmp_path, kind, names):
    for label, name in enumerate(names):
        write(tmp_path, name, label, kind=kind)
    source = open_at(tmp_path)
    assert rows_of(source) == {0: 3, 1: 3} and source.notes == ()
    with pytest.raises(InputError, match=r"no split 'test': none of its names says a split; leave --split out"):
        open_at(tmp_path, split="test")


def test_suffixes_in_capitals_are_read(tmp_path):
    write(tmp_path / "p", "TRAIN-00000", 0, kind="PARQUET")
    write(tmp_path / "t", "TRAIN-00000", 0, kind="TAR")
    assert rows_of(open_at(tmp_path / "p")) == rows_of(open_at(tmp_path / "t")) == {0: 3}


def test_a_folder_of_another_split_only_is_not_taken_for_the_training_data(tmp_path):
    write(tmp_path, "test-00000-of-00001", 1)
    with pytest.raises(InputError, match=r"no split 'train': it holds test \(1 file\); --split may be test"):
        open_at(tmp_path)


def test_other_words_can_be_asked_for_by_name(tmp_path):
    for label, name in enumerate(("train/0", "extra/0", "heldout-00000-of-00001")):
        write(tmp_path, name, label)
    assert rows_of(open_at(tmp_path)) == {0: 3}
    assert rows_of(open_at(tmp_path, split="extra")) == {1: 3}
    assert rows_of(open_at(tmp_path, split="heldout")) == {2: 3}


@pytest.mark.parametrize("name", ["train/test_0", "train_test_0", "train/test/0"])
def test_a_name_that_says_two_splits_is_refused(tmp_path, name):
    write(tmp_path, name, 0)
    write(tmp_path, "train/0", 0)
    with pytest.raises(InputError, match=f"{name}.parquet names two splits, test and train; rename it"):
        open_at(tmp_path)


def test_unfinished_writes_of_spark_are_left_aside_and_said(tmp_path):
    write(tmp_path, "train/part-0", 0)
    write(tmp_path, "train/_temporary/0/part-0", 5)
    source = open_at(tmp_path)
    assert rows_of(source) == {0: 3} and "ignored 1 file below names with _" in source.notes[0]


def test_a_set_of_shards_that_is_not_whole_is_said():
    chosen = choose_files(["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"], "train", "x")
    assert len(chosen.names) == 2
    assert chosen.notes == ("only 2 of the 3 files train-NNNNN-of-00003 are there: the rest is missing",)


def test_a_single_file_is_read_and_its_name_may_not_contradict_the_split_asked_for():
    assert note_of_file("/x/data.parquet", "test") == note_of_file("/x/mnist-test.parquet", "test") == ()
    assert "its name says the split test" in note_of_file("/x/mnist-test.parquet", "train")[0]
    with pytest.raises(InputError, match=r"its name says the split train, --split says test; give --split train"):
        note_of_file("/x/mnist-train.parquet", "test")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("validation-00000-of-00001.parquet", "validation"),
        ("dev/x.tar", "validation"),
        ("valid.tar", "validation"),
        ("t10k-images-idx3-ubyte", "test"),
        ("trainval.parquet", None),
        ("part-00000-of-00002.parquet", "part"),
        ("a/b.parquet", None),
    ],
)
def test_the_words_of_splits(path, split):
    assert split_of(path) == split


def test_hive_folders_give_labels(tmp_path):
    for name in ("cat", "big%20dog"):
        path = tmp_path / f"label={name}" / "part-0.parquet"
        path.parent.mkdir()
        make_parquet(path, {"image": PNGS[:3]})
    source = open_at(tmp_path)
    assert source.class_names == ("big dog", "cat") and rows_of(source) == {0: 3, 1: 3}
    assert source.record(0).name == "label=big%20dog/part-0.parquet row 0"
    for number in (0, 10):
        (tmp_path / "n" / f"label={number}").mkdir(parents=True)
        make_parquet(tmp_path / "n" / f"label={number}" / "p.parquet", {"image": PNGS[:2]})
    assert rows_of(open_at(tmp_path / "n")) == {0: 2, 10: 2}


@pytest.mark.parametrize("pack", ["folder", "zip", "tar", "wrapped zip"])
def test_folders_of_splits_with_class_folders_in_them_are_splits_and_no_classes(tmp_path, pack):
    names = ["train/cat/0.png", "train/cat/1.png", "train/dog/0.png", "val/cat/0.png", "val/dog/0.png"]
    files = dict(zip(names, PNGS))
    if pack == "folder":
        for name, content in files.items():
            put(tmp_path / "s" / name, content)
    elif pack == "tar":
        make_tar(tmp_path / "s", files)
    else:
        make_zip(tmp_path / "s", {f"{'data/' * (pack != 'zip')}{name}": content for name, content in files.items()})
    kind = pack.split()[-1]
    source = open_at(tmp_path / "s", kind=kind)
    assert source.class_names == ("cat", "dog") and rows_of(source) == {0: 2, 1: 1}
    assert any("train is taken (3 pictures), left aside: val (2 pictures)" in note for note in source.notes)
    assert rows_of(open_at(tmp_path / "s", kind=kind, split="validation")) == {0: 1, 1: 1}
    with pytest.raises(InputError, match=r"its folders are splits: train .*, val .*; 0 of them are 'test'"):
        open_at(tmp_path / "s", kind=kind, split="test")


def test_a_class_that_is_named_like_a_split_beside_others_stays_a_class(tmp_path):
    for name in ("car", "train"):
        put(tmp_path / name / "0.png", PNGS[0])
    assert open_at(tmp_path).class_names == ("car", "train")


def test_mnist_files_of_another_split_are_not_taken(tmp_path):
    put(tmp_path / "train-images-idx3-ubyte", idx(np.zeros((2, 8, 8), np.uint8)))
    assert len(open_at(tmp_path)) == 2
    with pytest.raises(InputError, match=r"no split 'test'"):
        open_at(tmp_path, split="test")
    put(tmp_path / "T10K-IMAGES-IDX3-UBYTE", idx(np.zeros((1, 8, 8), np.uint8)))
    put(tmp_path / "T10K-LABELS-IDX1-UBYTE", idx(np.array([3], np.uint8)))
    assert rows_of(open_at(tmp_path, split="test")) == {3: 1}


def test_prepare_says_what_it_took_and_what_it_left_aside(tmp_path, capsys):
    write(tmp_path / "in", "train/0000", 0)
    write(tmp_path / "in", "test/0000", 1)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert "1 of 2 files are taken (the first: test/0000.parquet); left aside: train (1 file)" in out
    assert "3 images" in out and "class 0 has no pictures" in out
