"""Inception's features: images a second as the product takes them, and for larger batches."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, spread
from edm_ray.evaluation.extractors.registry import load_extractor
from tests.evaluation.conftest import random_inception_state


def inception(bench: Bench) -> None:
    """Weights are random: the time is that of the published ones."""
    count = 4 if bench.toy else 2000
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        torch.save(random_inception_state(images[:16].numpy()), weights)
        extractor = load_extractor("inception", weights, device=str(bench.device))
    times = spread(bench.time(functools.partial(extractor.extract, images), rounds=3))
    bench.row("inception", form="as the product", batch=extractor.micro_batch, images_per_s=count / times["median"])
    for batch in (2,) if bench.toy else (25, 100, 250):
        part = images[:batch].to(bench.device)
        with torch.inference_mode():
            times = spread(bench.time(functools.partial(extractor.network, part), rounds=3))
        bench.row("inception", form="network alone, fp32", batch=batch, images_per_s=batch / times["median"])
