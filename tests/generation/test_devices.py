"""Images of equal seeds on another kind of CPU: torch is made to use narrower instructions in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.device import kind_of
from edm_ray.generation.generate import generate
from edm_ray.models import load_model

OLDER = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
THERE = """
import sys
import numpy as np, torch
from edm_ray.models import load_model
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.device import kind_of
from edm_ray.generation.generate import generate
torch.set_num_threads(1)
settings = sampler(num_steps=8, s_churn=3.0)
np.save(sys.argv[2], generate(load_model(sys.argv[1]), torch.arange(100), settings).numpy())
print(kind_of("cpu"))
"""


@pytest.mark.slow
def test_another_kind_of_cpu_changes_a_pixel_by_a_level_at_most(tiny_model, tmp_path):
    """The bound that docs/evaluation.md states."""
    command = [sys.executable, "-c", THERE, tiny_model, str(tmp_path / "images.npy")]
    done = subprocess.run(command, env={**os.environ, **OLDER}, capture_output=True, text=True, check=True)
    if done.stdout.strip() == kind_of("cpu"):
        pytest.skip("this CPU has no wider instructions than the oldest")
    here = generate(load_model(tiny_model), torch.arange(100), sampler(num_steps=8, s_churn=3.0)).numpy()
    moved = np.abs(here.astype(int) - np.load(tmp_path / "images.npy"))
    assert moved.max() <= 1 and (moved > 0).mean() < 0.001
