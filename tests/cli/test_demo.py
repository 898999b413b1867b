"""The demo as a newcomer runs it, killed in the middle of training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edm_ray.training.run import checkpoint_store

COMMAND = "import sys; from edm_ray.cli import main; sys.exit(main(['demo', '--quick', '--out', 'demo']))"


@pytest.mark.slow
def test_a_demo_killed_in_training_resumes_and_does_not_start_over(tmp_path: Path):
    first = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    store = checkpoint_store(str(tmp_path / "demo" / "run"))
    deadline = time.monotonic() + 120
    while not store.committed():
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    second = subprocess.run([sys.executable, "-c", COMMAND], cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout[-2000:] + second.stderr[-2000:]
    assert "resuming at" in second.stdout or "the model is there already" in second.stdout
    assert "Traceback" not in second.stdout + second.stderr
    for name in ("samples.png", "sweep/report.html", "sweep/best-samplers.yaml", "evaluation/evaluation.json"):
        assert (tmp_path / "demo" / name).exists()
