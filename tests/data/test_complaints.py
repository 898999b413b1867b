"""One run of `prepare` names everything that is wrong with a folder, and options that settle all of it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.data import complaints


def picture(path: Path, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], channels), dtype=np.uint8)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Good pictures, and four that each lack something else; more than are looked at before anything is written."""
    folder = tmp_path / "photos"
    for i in range(50):
        picture(folder / "cats" / f"{i:02d}.png")
    picture(folder / "cats" / "wide.png", (20, 16))
    picture(folder / "cats" / "clear.png", mode="RGBA")
    picture(folder / "cats" / "clear-and-wide.png", (24, 16), "RGBA")
    (folder / "cats" / "broken.jpg").write_bytes(b"no picture")
    frames = [Image.new("RGB", (16, 16), (i * 90, 0, 200)) for i in range(3)]
    frames[0].save(folder / "cats" / "moves.gif", save_all=True, append_images=frames[1:])
    return folder


def test_one_run_names_every_kind_and_what_it_advises_works(capsys, photos, tmp_path):
    prepare = ["prepare", str(photos), str(tmp_path / "data")]
    assert main(prepare) == 2
    text = capsys.readouterr().err
    assert "5 of 55 records cannot be used as they are" in text
    assert "is not square; give --resolution R to crop and resize (2 such records)" in text
    assert "with transparency; say what becomes of it: --alpha white, black or drop (2 such records)" in text
    assert "moves.gif: holds 3 frames" in text and "picture of mode P" in text and "broken.jpg: not a readable" in text
    advised = re.search(r"give for example (.*?); --on-error skip alone", text)[1].replace(" R ", " 16 ").split()
    assert set(advised) >= {"--resolution", "--alpha", "--mode", "--animated", "--on-error"}
    assert main([*prepare, *advised]) == 0
    out = capsys.readouterr().out
    assert "54 images of 16x16x3" in out and "skipped 1 record" in out


def test_what_is_advised_works_in_the_same_place_also_where_shards_were_written_before(capsys, tmp_path):
    """The bad ones are late, and not among the records that are looked at beforehand."""
    for i in range(200):
        picture(tmp_path / "in" / f"{i:03d}.png")
    picture(tmp_path / "in" / "195.png", mode="RGBA")
    (tmp_path / "in" / "198.png").write_bytes(b"no picture")
    prepare, shard = ["prepare", str(tmp_path / "in"), str(tmp_path / "data")], "train-00000-of-00004.parquet"
    assert main(prepare) == 2
    assert "2 of 200 records cannot be used as they are" in capsys.readouterr().err
    assert (tmp_path / "data" / shard).exists()
    assert main([*prepare, "--alpha", "white", "--on-error", "skip"]) == 0
    assert "199 images of 16x16x3" in capsys.readouterr().out
    assert main([*prepare, "--alpha", "black", "--on-error", "skip"]) == 2, "a whole data set is never replaced"
    assert "choose another place" in capsys.readouterr().err.lower()


def test_shards_of_a_plan_that_may_still_succeed_are_never_replaced(tmp_path, monkeypatch):
    from edm_ray.data import plan as plans
    from edm_ray.errors import InputError
    from edm_ray.tasks.prepare import prepare

    for i in range(8):
        picture(tmp_path / "in" / f"{i}.png")
    built, calls = plans.build_shard, []

    def killed_at_the_third(*given):
        calls.append(given)
        if len(calls) == 3:
            raise OSError("killed")
        return built(*given)

    source, out = str(tmp_path / "in"), str(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(plans, "build_shard", killed_at_the_third)
        with pytest.raises(OSError, match="killed"):
            prepare(source, out)
    with pytest.raises(InputError, match="was prepared from another source or with other options"):
        prepare(source, out, resolution=8)
    assert prepare(source, out).rows == 8


def test_loose_pictures_and_other_kinds_are_named_in_the_same_run(capsys, photos, tmp_path):
    picture(photos / "loose.png")
    with zipfile.ZipFile(photos / "more.zip", "w"):
        pass
    assert main(["prepare", str(photos), str(tmp_path / "data")]) == 2
    text = capsys.readouterr().err
    for says in ("kind", "unlabelled", "resolution R", "alpha white", "animated first", "on-error skip"):
        assert f"--{says}" in text


def test_pictures_of_several_sizes_and_channels_are_named_together(capsys, tmp_path):
    for name, size, mode in (("a", 16, "RGB"), ("b", 16, "RGB"), ("c", 24, "RGB"), ("d", 16, "L"), ("e", 24, "L")):
        picture(tmp_path / "in" / f"{name}.png", (size, size), mode)
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "data")]) == 2
    text = capsys.readouterr().err
    assert "3 of 5 records" in text and "--resolution R" in text and "--mode rgb" in text


def test_what_is_wrong_alone_is_said_as_before_with_its_number(capsys, tmp_path):
    for i in range(3):
        picture(tmp_path / "in" / f"{i}.png")
    picture(tmp_path / "in" / "clear.png", mode="RGBA")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "data")]) == 2
    text = capsys.readouterr().err
    assert "picture of mode RGBA with transparency" in text and text.endswith("--alpha white, black or drop\n")
    picture(tmp_path / "in" / "clear2.png", mode="RGBA")
    assert main(["prepare", str(tmp_path / "in"), str(tmp_path / "data")]) == 2
    assert "black or drop (2 such records)" in capsys.readouterr().err


def test_a_large_source_is_looked_through_for_a_time_only(capsys, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(complaints, "SECONDS", 0.0)
    assert main(["prepare", str(photos), str(tmp_path / "data")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
