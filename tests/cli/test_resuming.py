"""What `train` says of where it resumes is the checkpoint that was really loaded."""

from __future__ import annotations

import re

from edm_ray.cli import main
from edm_ray.training.run import checkpoint_store

SETTINGS = ["tick_kimg=0.048", "checkpoint_kimg=0.048"]


def test_resuming_names_the_checkpoint_before_a_damaged_one(digits_dir, tmp_path, capsys):
    words = ["train", "--data", str(digits_dir / "heldout"), "--out", str(tmp_path), "--preset", "tiny", "--no-ray"]
    assert main([*words, "--set", *SETTINGS, "total_kimg=0.24"]) == 0
    assert "resuming at" not in capsys.readouterr().out
    last = checkpoint_store(str(tmp_path)).committed()
    newest = tmp_path / "checkpoints" / f"nimg-{last[-1]:012d}" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    assert main([*words, "--set", *SETTINGS, "total_kimg=0.24"]) == 0
    said = capsys.readouterr().out
    assert f"resuming at {last[-2]:,} images" in said and f"resuming at {last[-1]:,}" not in said
    assert re.search(rf"trained {last[-1] - last[-2]:,} images \({last[-1]:,} in all\)", said)
