"""The GPU benchmark on a CPU, at toy size: its parts run, and each leaves its rows. The numbers mean nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import tiles


@pytest.mark.parametrize(
    "parts",
    [
        ["tiles", "kernels", "training-batches"],
        pytest.param(["breakdown", "sampling-breakdown", "inception", "peers"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_the_gpu_benchmark_runs_on_a_cpu_and_writes_after_each_part(parts, tmp_path, monkeypatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--toy", "--out", str(tmp_path), "--parts", *parts])
    gpu.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert "failed" not in rows and [row["part"] for row in rows["took"]] == parts
    assert {row["what"] for row in rows["ceilings"]} > {"bf16", "fp32"}
    assert all(row["images_per_s"] > 0 and row["loss"] > 0 for row in rows.get("training", []))
    assert ("training" in rows) == ("training-batches" in parts)
    assert (tmp_path / "kernels-training-step.txt").exists() == ("breakdown" in parts)
    assert torch.get_num_threads() == threads


def test_measured_tiles_are_written_into_the_kernels_file(tmp_path, monkeypatch) -> None:
    from edm_ray.networks import backend

    kernels = Path(backend.__file__).with_name("normalise_kernel.py").read_text()
    (tmp_path / "normalise_kernel.py").write_text(kernels)
    monkeypatch.setattr(backend, "__file__", str(tmp_path / "backend.py"))
    (tmp_path / "tiles.json").write_text('{"FORWARD": {"1024": [64, 8, 4, 3], "64": [16, 8, 4, 1]}}')
    tiles.write(tmp_path / "tiles.json")
    written = (tmp_path / "normalise_kernel.py").read_text()
    assert "\nFORWARD = {64: Tile(16, 8, 4, 1), 1024: Tile(64, 8, 4, 3)}\n" in written
    assert [a for a, b in zip(kernels.split("\n"), written.split("\n"), strict=True) if a != b] == [
        next(line for line in kernels.split("\n") if line.startswith("FORWARD = "))
    ]


def test_no_part_starts_that_the_minutes_left_do_not_allow(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "ceilings", lambda bench: None)
    monkeypatch.setattr(
        sys, "argv", ["gpu", "--device", "cpu", "--minutes", "0", "--out", str(tmp_path), "--parts", "colour"]
    )
    gpu.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["part"] for row in rows["left out"]] == ["colour"] and "took" not in rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_how_to_try_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="--device cpu --toy"):
        gpu.main()
