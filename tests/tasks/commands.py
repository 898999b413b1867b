"""Every command that writes a folder, small enough to be run many times: what two writers and hostile files are tried
with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm_ray.cli import main

SWEEP = [
    *("--chunk-size", "50", "--initial-chunks", "1", "--max-chunks", "1", "--num-line", "1", "--num-global", "0"),
    *("--num-model", "0", "--confirm-chunks", "1", "--grid", "10", "--workers", "0"),
]
SETTINGS = ["total_kimg=0.096", "tick_kimg=0.024", "checkpoint_kimg=0.024", "batch_size=24", "ema.sigma_rels=[0.05]"]
SPACE = "name: t\nsampler: {num_steps: 2}\nsearch:\n  churn_fraction: {low: 0.0, high: 1.0}\n"


@dataclass(frozen=True)
class Ingredients:
    """What the commands read."""

    data: str
    source: str
    """Pictures in an npz."""
    space: str
    model: str
    reference: str


def ingredients(folder: Path, digits_dir: Path) -> Ingredients:
    rng, source, space = np.random.default_rng(0), folder / "pictures.npz", folder / "space.yaml"
    np.savez(source, images=rng.integers(0, 256, (40, 8, 8, 1), np.uint8))
    space.write_text(SPACE)
    made = Ingredients(
        data=str(digits_dir / "train"),
        source=str(source),
        space=str(space),
        model=str(folder / "run" / "model"),
        reference=str(folder / "reference"),
    )
    for name, out in (("train", folder / "run"), ("reference", folder / "reference")):
        assert main(COMMANDS[name](made, str(out))) == 0
    return made


def _train(given: Ingredients, out: str) -> list[str]:
    return ["train", "--data", given.data, "--out", out, "--preset", "tiny", "--workers", "0", "--set", *SETTINGS]


COMMANDS: dict[str, Callable[[Ingredients, str], list[str]]] = {
    "train": _train,
    "train --fresh": lambda given, out: [*_train(given, out), "--fresh"],
    "prepare": lambda given, out: ["prepare", given.source, out, "--unlabelled", "--shards", "2"],
    "reference": lambda given, out: ["reference", "--data", given.data, "--out", out, "--extractor", "digits"],
    "evaluate": lambda given, out: [
        *("evaluate", "--model", given.model, "--reference", given.reference, "--out", out, "--num", "100"),
        *("--set", "num_steps=2", "--workers", "0"),
    ],
    "sweep": lambda given, out: [
        *("sweep", "--model", given.model, "--reference", given.reference, "--space", given.space, "--out", out),
        *SWEEP,
    ],
    "generate": lambda given, out: [
        *("generate", "--model", given.model, "--out", out, "--num", "10", "--set", "num_steps=2"),
    ],
}
"""Name -> the words of the command for an output folder."""
