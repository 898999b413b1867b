"""The GPU benchmark on a CPU, at toy size: its parts run, and each leaves its rows. The numbers mean nothing."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks.gpu import __main__ as gpu


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_writes_after_each_part(tmp_path, monkeypatch) -> None:
    threads = torch.get_num_threads()
    parts = ["kernels", "breakdown", "sampling-breakdown", "training-batches"]
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--toy", "--out", str(tmp_path), "--parts", *parts])
    gpu.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert "failed" not in rows and [row["part"] for row in rows["took"]] == parts
    assert {row["what"] for row in rows["ceilings"]} > {"bf16", "fp32"}
    assert all(row["images_per_s"] > 0 and row["loss"] > 0 for row in rows["training"])
    assert (tmp_path / "kernels-training-step.txt").read_text()
    assert torch.get_num_threads() == threads


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
