"""What is drawn of one snapshot of a run: a grid of fixed seeds and, where a reference is given, a quick FID.

Runs in a process of its own (``python -m edm_ray.generation.snapshot``: a job as JSON on standard input, its record as
JSON on the last line of standard output) or as a Ray task.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_ray.config.load import validate
from edm_ray.diffusion.samplers import Sampler, read_sampler
from edm_ray.evaluation.fid import interval_95
from edm_ray.evaluation.grids import save_grid
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import MICRO_BATCH, generate
from edm_ray.models import open_model
from edm_ray.models.denoiser import ModelDenoiser

GRID_IMAGES, GRID_COLUMNS, GRID_GAP = 100, 10, 6
GRID_LABELS, FID_LABELS = "balanced", "random"
"""As `edm-ray generate` and `edm-ray evaluate` take them when nothing else is said."""
NUM_GROUPS = 10
PART = 100
"""Images at a time; features do not depend on it."""
LOWEST_PRIORITY = 19


@dataclass(frozen=True, kw_only=True)
class Job:
    """One snapshot to draw; plain values, so that it travels as JSON."""

    nimg: int
    """Images that the model has seen."""
    model: str
    """URI of the model directory."""
    picture: str
    """URI of the PNG file that is written."""
    settings: dict[str, Any]
    """The sampler's flat form."""
    reference: str | None = None
    num: int = 500
    """Images of the FID."""
    first_seed: int = 0
    """Of the FID; the grid's seeds are from 0."""
    device: str = "cpu"
    share: float = 1.0
    """Of the GPU's memory, at most."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        return validate(cls, json.loads(text), "snapshot job")


def draw(job: Job) -> dict[str, Any]:
    """Write the grid; what was made, as a row of snapshots.jsonl. The same job gives the same PNG, byte for byte.

    Raises what reading the model, sampling, or reading the reference raises.
    """
    began = time.monotonic()
    torch.set_num_threads(1)  # one core at most is taken from whoever trains beside it
    if job.device != "cpu" and job.share < 1.0:
        torch.cuda.set_per_process_memory_fraction(job.share)
    model = open_model(job.model)
    denoiser = model.denoiser(job.device)
    settings = read_sampler(job.settings, "snapshot job").effective(denoiser)
    seeds = torch.arange(GRID_IMAGES, dtype=torch.int64)
    images = generate(denoiser, seeds, settings, GRID_LABELS).numpy()
    about = {
        "images seen": str(job.nimg),
        "model hash": model.hash,
        "settings": str(settings),
        "labels": GRID_LABELS,
        "seeds": f"0..{GRID_IMAGES - 1}",
    }
    save_grid(job.picture, images, GRID_COLUMNS, about, max(1, 64 // images.shape[-1]), GRID_GAP)
    record: dict[str, Any] = {"nimg": job.nimg, "model_hash": model.hash, "device": job.device}
    record |= {"settings": str(settings), "grid_seeds": [0, GRID_IMAGES - 1]}
    if job.reference is not None:
        record |= _quick_fid(job, denoiser, settings)
    return {**record, "seconds": round(time.monotonic() - began, 3)}


def _quick_fid(job: Job, denoiser: ModelDenoiser, settings: Sampler) -> dict[str, Any]:
    """FID with its 95 % interval, and all that it is comparable by: n, seeds, reference, extractor."""
    assert job.reference is not None
    reference, spec = open_reference(job.reference)
    extractor = spec.load(job.device)
    seeds = torch.arange(job.first_seed, job.first_seed + job.num, dtype=torch.int64)
    parts = [
        extractor.extract(generate(denoiser, seeds[first : first + PART], settings, FID_LABELS, MICRO_BATCH))
        for first in range(0, job.num, PART)
    ]
    fid = estimate_fid(np.concatenate(parts), seeds.numpy(), reference, NUM_GROUPS)
    low, high = interval_95(fid.fid, fid.se, NUM_GROUPS)
    return {
        "fid": fid.fid,
        "low": low,
        "high": high,
        "debiased": fid.debiased,
        "se": fid.se,
        "n": fid.n,
        "fid_seeds": [job.first_seed, job.first_seed + job.num - 1],
        "labels": FID_LABELS,
        "reference": reference.describe(),
        "reference_hash": fid.reference,
        "extractor": reference.extractor_name,
    }


def _end_with(parent: int) -> None:
    """End when the process that asked has ended: nobody would take the record."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def main() -> None:
    os.nice(LOWEST_PRIORITY)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    record = draw(Job.from_json(sys.stdin.read()))
    sys.stdout.write(f"\n{json.dumps(record)}\n")


if __name__ == "__main__":
    main()
