"""What a training worker imports."""

from __future__ import annotations

import subprocess
import sys


def test_a_worker_of_a_training_imports_nothing_that_it_has_no_use_for():
    """Imports are most of the time from a kill to the next step (docs/training.md)."""
    heavy = {"scipy", "matplotlib", "sklearn", "optuna", "torchvision", "rich", "tyro", "jinja2"}
    code = f"import sys, edm_ray.distributed.train; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
