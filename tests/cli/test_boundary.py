"""What a machine refuses is one line with the path, before work starts where it can be, and never a traceback."""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edm_ray.cli.command as command_line
from edm_ray.cli import main
from edm_ray.cli.boundary import described, one_line
from edm_ray.cli.console import say
from edm_ray.data.write import write_dataset
from edm_ray.errors import InputError
from edm_ray.storage import s3, uris
from edm_ray.storage.commit import commit
from edm_ray.storage.uris import absolute, check_writable, resolve
from tests.data.sources import make_parquet, picture, pixels_of, put


def lines(capsys):
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said.err.strip()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied for this user"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "/x/y: no space left on the disk; free some"),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), "/x/y: Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x/y"), "/x/y: File name too long"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x/y"), "/x/y: Is a directory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not UTF-8"),
        (UnicodeEncodeError("ascii", "\xe9", 0, 1, "no"), "not UTF-8 or cannot be shown"),
        (MemoryError(), "out of memory"),
    ],
)
def test_errors_of_the_machine_are_one_line_with_exit_code_2(monkeypatch, capsys, error, says):
    def run(args):
        raise error

    monkeypatch.setattr(command_line, "parse", lambda name, arguments: (SimpleNamespace(run=run), SimpleNamespace()))
    assert main(["presets"]) == 2
    err = lines(capsys)
    assert says in err and "\n" not in err and says in described(error)


def test_messages_are_one_line_and_short():
    assert one_line("a\nb\x1b[31m\tc") == "a b [31m c"
    assert len(one_line("x" * 10_000)) < 200 and len(one_line("x y " * 10_000)) <= 2000


def test_any_name_of_a_file_can_be_said(capsys):
    say("caf\udce9")
    assert capsys.readouterr().out == "caf\\udce9\n"


@pytest.mark.parametrize(
    "place", ["s3:/bucket/one", "S3://bucket/one", "s3:bucket/one", "gs://b/k", "GS:/b", "http:/x", "file:/x", "s3://",
              "s3:///x", "s3://a b/x", "s3://u:p@bucket/x", "https://x/y", "hdfs:/x"],
)  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_places_that_are_nearly_a_uri_are_refused_everywhere(tmp_path, capsys, place, dry):
    for check in (resolve, absolute, check_writable):
        with pytest.raises(InputError):
            check(place)
    put(tmp_path / "in" / "0.png", picture(pixels_of(1, 3, 8)[0]))
    before = set(Path.cwd().iterdir())
    assert main(["prepare", str(tmp_path / "in"), place, *dry]) == 2
    assert "\n" not in lines(capsys) and set(Path.cwd().iterdir()) == before


def test_places_that_cannot_be_written_are_refused_before_work(tmp_path, capsys, monkeypatch):
    put(tmp_path / "in" / "0.png", picture(pixels_of(1, 3, 8)[0]))
    put(tmp_path / "file", b"")
    for place, says in [(tmp_path / "file" / "x", "is a file, not a folder"), (tmp_path / ("x" * 300), "too long")]:
        assert main(["prepare", str(tmp_path / "in"), str(place), "--dry-run"]) == 2
        assert says in lines(capsys)
    monkeypatch.setattr(os, "access", lambda path, mode, **how: False)  # root may write everywhere
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"]) == 2
    assert "may not be written to by this user" in lines(capsys)


def test_a_data_set_is_not_prepared_into_its_source(tmp_path, capsys):
    put(tmp_path / "in" / "0.png", picture(pixels_of(1, 3, 8)[0]))
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "in" / "edm")]) == 2
    assert "lies inside of the source" in lines(capsys)


@pytest.mark.parametrize("endpoint", ["minio:9000", "not a url", "http://", "ftp://x", "http://x:99999", "//x"])
def test_an_endpoint_that_is_no_url_is_refused_also_by_dry_run(tmp_path, capsys, monkeypatch, endpoint):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    put(tmp_path / "in" / "0.png", picture(pixels_of(1, 3, 8)[0]))
    assert main(["prepare", str(tmp_path / "in"), "s3://bucket/x", "--dry-run"]) == 2
    assert "http://HOST:PORT" in lines(capsys)
    with pytest.raises(InputError, match=r"http://HOST:PORT"):
        uris.exists("s3://bucket/x")


def test_an_endpoint_where_nothing_listens_is_one_line_within_ten_seconds(capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x"), monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    began = time.monotonic()
    with pytest.raises(s3.StorageError, match="nothing answers at endpoint"):
        uris.read_bytes("s3://bucket/x")
    assert main(["inspect", "s3://bucket/x"]) == 1
    assert time.monotonic() - began < 10 and "nothing answers at endpoint" in lines(capsys)


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from edm_ray.models.directory import save_model
    from edm_ray.networks.build import build_denoiser
    from tests.storage.test_sealed import CONFIG

    path = str(tmp_path_factory.mktemp("model") / "m")
    save_model(path, CONFIG, build_denoiser(CONFIG).state_dict(), {})
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--out", "g.png", "--num", "1000000000"], "a grid holds 10,000 images at most"),
        (["--out", "folder", "--num", "1000000000000000"], "GiB free; give fewer"),
        (["--out", "a.zip", "--num", "1000000000000000"], "GiB free; give fewer"),
        (["--out", "g.png", "--num", "1", "--seed", str(1 << 63)], "seeds end at"),
        (["--out", "g.png", "--num", "0"], "give 1 or more"),
        (["--out", "g.png", "--seed", "-1"], "0 or more"),
        (["--out", "best.jpg"], "no .jpg file is written; give OUT.png"),
        (["--out", "best.npz"], "no .npz file is written"),
    ],
)
def test_generate_refuses_what_it_cannot_make(tmp_path, monkeypatch, capsys, model, options, says):
    monkeypatch.chdir(tmp_path)
    for dry in ([], ["--dry-run"]):
        assert main(["generate", "--model", model, *options, *dry]) == 2
        assert says in lines(capsys) and not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_one_line(tmp_path, monkeypatch, capsys, model):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    assert (
        main(["generate", "--model", model, "--out", str(tmp_path / "g.png"), "--num", "1", "--set", "num_steps=2"])
        == 2
    )
    assert "no space left on the disk; free some and run the same command again" in lines(capsys)


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (pixels_of(1, 1, 8), [0], "a reference needs 2 or more"),
        (pixels_of(4, 3, 8), [0, 1, 0, 1], "holds images of 8x8x3; it takes images of 8x8x1"),
        (pixels_of(12, 1, 8), list(range(1, 13)), "has 13 classes; it is trained on 2 to 10"),
        (pixels_of(4, 1, 8), None, "has 0 classes; it is trained on 2 to 10"),
    ],
)
def test_a_reference_that_would_be_of_no_use_is_refused_when_it_is_made(tmp_path, capsys, images, labels, says):
    columns = {"image": [picture(image) for image in images]} | ({} if labels is None else {"label": labels})
    make_parquet(tmp_path / "p.parquet", columns)
    assert main(["prepare", str(tmp_path / "p.parquet"), str(tmp_path / "d")]) == 0
    for dry in (["--dry-run"], []):
        asked = ["--data", str(tmp_path / "d"), "--out", str(tmp_path / "r"), "--extractor", "digits", "--workers", "0"]
        assert main(["reference", *asked, *dry]) == 2
        assert says in lines(capsys) and not (tmp_path / "r").exists()


def test_the_dashboard_s_address_is_refused_at_once(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    np.save(tmp_path / "x.npy", np.zeros(1))
    assert main(["prepare", str(tmp_path), str(tmp_path / "out"), "--workers", "2"]) == 2
    assert "is the dashboard; give HOST:6379" in lines(capsys)


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_batch_that_no_memory_holds_is_refused_by_the_plan(tmp_path, capsys, dry):
    write_dataset(str(tmp_path / "d"), pixels_of(4, 1, 8), np.zeros(4, np.int64), [], name="x", split="train")
    asked = ["--data", str(tmp_path / "d"), "--out", str(tmp_path / "run"), "--preset", "tiny", "--no-ray"]
    began = time.monotonic()
    assert main(["train", *asked, "--set", "batch_size=1000000000", *dry]) == 2
    err = lines(capsys)
    assert "images at once take about" in err and "--set micro_batch=" in err and time.monotonic() - began < 60
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep", "generate", "explain"])
def test_nothing_is_written_into_a_folder_that_is_a_model_already(command, tmp_path, capsys):
    commit(str(tmp_path / "model"), [("config.json", b"{}")], kind="edm_ray model")
    data = ["--data", "digits"] if command == "train" else ["--model", "nowhere"]
    more = ["--reference", "nowhere"] if command in ("evaluate", "sweep") else []
    assert main([command, *data, *more, "--out", str(tmp_path / "model")]) == 2
    assert "holds 'model'; other files must not mix with it" in lines(capsys)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "manifest.json"}


@pytest.mark.parametrize("command", ["train", "evaluate", "sweep", "generate"])
@pytest.mark.parametrize("picture", ["cats/1.JPG", "1.png"])
def test_nothing_is_written_among_a_user_s_pictures_nor_into_a_data_set(command, picture, tmp_path, capsys):
    place = tmp_path / "photos"
    (place / picture).parent.mkdir(parents=True)
    (place / picture).write_bytes(b"x")
    given = ["--data", "digits"] if command == "train" else ["--model", "nowhere"]
    given += ["--reference", "nowhere"] if command in ("evaluate", "sweep") else []
    assert main([command, *given, "--out", str(place)]) == 2
    assert f"holds pictures ({picture}); other files must not mix with them" in lines(capsys)
    commit(str(tmp_path / "data"), [("a.parquet", b"x")], kind="edm_ray data set")
    assert main([command, *given, "--out", str(tmp_path / "data")]) == 2
    assert "holds 'data set'; other files must not mix with it" in lines(capsys)
    assert [path.name for path in place.iterdir()] == [picture.partition("/")[0]]


def test_samples_of_another_sampler_are_not_added_to_a_folder(tmp_path, capsys, model):
    out = str(tmp_path / "samples")
    quick = ["generate", "--model", model, "--out", out, "--set", "num_steps=2"]
    assert main([*quick, "--num", "3"]) == 0
    assert main([*quick, "--num", "4"]) == 0, "more of the same"
    assert main([*quick, "rho=5", "--num", "2", "--dry-run"]) == 2
    assert "holds samples of another model or sampler (settings: " in lines(capsys)


def test_a_sweep_by_budget_and_one_without_do_not_share_a_folder(tmp_path):
    from edm_ray.tasks.sweep import _require_no_other_sweep

    for mark, by_budget in (("budgets.json", False), ("sweep.json", True), ("progress.json", True)):
        (tmp_path / mark).mkdir()
        (tmp_path / mark / mark).write_text("{}")
        _require_no_other_sweep(str(tmp_path / mark), not by_budget)
        with pytest.raises(InputError, match="give another place for this one"):
            _require_no_other_sweep(str(tmp_path / mark), by_budget)


@pytest.mark.parametrize("there", ["run.json", "notes/todo.txt", "cats/1.png"])
def test_a_reference_is_not_written_into_a_folder_of_something_else(tmp_path, capsys, there):
    write_dataset(str(tmp_path / "d"), pixels_of(4, 1, 8), np.zeros(4, np.int64), [], name="x", split="train")
    (tmp_path / "r" / there).parent.mkdir(parents=True)
    (tmp_path / "r" / there).write_bytes(b"x")
    for dry in (["--dry-run"], []):
        asked = ["--data", str(tmp_path / "d"), "--out", str(tmp_path / "r"), "--extractor", "self", *dry]
        assert main(["reference", *asked]) == 2
        assert "give another place" in (said := lines(capsys)) or "is not empty (found" in said
    assert [path.name for path in (tmp_path / "r").iterdir()] == [there.partition("/")[0]]


@pytest.mark.parametrize("option", ["--reference", "--model"])
def test_another_kind_of_folder_is_named_with_what_to_give_instead(tmp_path, capsys, option, model):
    write_dataset(str(tmp_path / "d"), pixels_of(4, 1, 8), np.zeros(4, np.int64), [], name="x", split="train")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    given = {"--model": model, "--reference": str(tmp_path / "d"), "--out": str(tmp_path / "e"), "--workers": "0"}
    for place, says in ((tmp_path / "d", "data set, not a reference; make one of it: edm-ray reference --data"),
                        (tmp_path / "photos", "make one of a data set that `edm-ray prepare` wrote")):  # fmt: skip
        given[option] = str(place)
        assert main(["evaluate", *(word for pair in given.items() for word in pair)]) == 2
        said = lines(capsys)
        assert (says in said) if option == "--reference" else ("not a model" in said or "no model directory" in said)
        assert f"--out {place}" not in said, "nothing is advised to be written there"


def test_a_reference_of_other_data_than_the_model_was_trained_on_is_mentioned():
    from edm_ray.tasks.given import other_data

    reference: Any = SimpleNamespace(reference=SimpleNamespace(dataset_hash="b"))
    trained: Any = [SimpleNamespace(about={"dataset": "PHOTOS", "dataset_hash": name}) for name in "ab"]
    imported: Any = SimpleNamespace(about={})
    assert "was trained on PHOTOS, this reference is of other data" in other_data(reference, trained[0])
    assert other_data(reference, trained[1]) == other_data(reference, imported) == ""
