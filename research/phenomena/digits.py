"""The paper's own phenomena on models trained here: figures 2, 5b and 14 and the knock-outs of table 4, on the digits.

    python -m research.phenomena.digits [--out ladder] [--num 1000] [--kimg 32] [--write]

Uses (and makes, where they are missing) the models of research/ladder: configurations A-F after 32,000 images and
E and F after 128,000. What is measured is kept in OUT/phenomena.json, so a run that was stopped resumes. About an hour
on one core. ``--write`` puts tables into README.md
and the picture beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edm_ray.cli import main as edm_ray
from edm_ray.data.codec import decode, encode
from edm_ray.data.importers.digits import split_digits
from edm_ray.data.manifest import open_dataset
from edm_ray.diffusion.analysis.langevin import langevin
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.samplers import Sampler, sampler
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.evaluation.grids import image_grid
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import generate
from edm_ray.models import load_model
from edm_ray.search.statistics import difference
from edm_ray.seeding import image_noise
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run, model_uri
from research.ladder.ladder import GROUPS, config_of

PAGE = Path(__file__).with_name("README.md")
MARKS = "<!-- made by research/phenomena, {0}: begin -->", "<!-- {0}: end -->"
ORIGINAL = {"discretization": "vp", "schedule": "vp", "scaling": "vp"}
SAMPLERS = {
    "VP original (Euler)": {**ORIGINAL, "solver": "euler"},
    "VP steps, Heun": {**ORIGINAL, "solver": "heun"},
    "DDIM (iDDPM steps, Euler)": {"discretization": "iddpm", "solver": "euler"},
    "Euler-Maruyama (VP)": {**ORIGINAL, "solver": "euler_maruyama"},
    "ours (EDM steps, Heun)": {},
}
NFES = (11, 19, 35, 79)
CHURN, WINDOW, S_NOISE = 3.0, (0.05, 10.0), 1.01
"""A moderate setting for these digits, fixed beforehand in the proportions of the paper's CIFAR-10 choice."""
KNOCKOUTS = {
    "deterministic": {},
    "no S_tmin, S_tmax; S_noise = 1": {"s_churn": CHURN},
    "no S_tmin, S_tmax": {"s_churn": CHURN, "s_noise": S_NOISE},
    "S_noise = 1": {"s_churn": CHURN, "s_tmin": WINDOW[0], "s_tmax": WINDOW[1]},
    "all of them": {"s_churn": CHURN, "s_tmin": WINDOW[0], "s_tmax": WINDOW[1], "s_noise": S_NOISE},
}
CHURNS = (0.0, 1.0, 2.0, 4.0, 7.0)
LEVELS, ITERATIONS, LANGEVIN_NOISE = (0.3, 1.0), (0, 10, 30, 100, 300), (1.0, 1.01)


class Bench:
    """Models, the reference, and what was measured before."""

    def __init__(self, out: Path, num: int, kimg: float = 32) -> None:
        self.out, self.num, self.kimg, self.file = out, num, kimg, out / "phenomena.json"
        data = out / "data"
        edm_ray(["prepare", "digits", str(data)])
        edm_ray(["reference", "--data", str(data / "train"), "--out", str(data / "reference"), "--extractor", "digits"])
        self.train_data = open_dataset(str(data / "train"))
        self.reference, spec = open_reference(str(data / "reference"))
        self.extractor = spec.load()
        self.kept: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.models: dict[str, torch.nn.Module] = {}

    def model(self, name: str) -> torch.nn.Module:
        """vp-LETTER-0 after 32,000 images, long-LETTER-0 after 128,000; trained when it is not there."""
        if name not in self.models:
            run = self.out / name
            if not (run / "model" / "manifest.json").exists():
                kimg = self.kimg * (4 if name.startswith("long") else 1)
                config = config_of(name.split("-")[1], self.train_data, kimg, 0, "vp")
                claim_run(str(run), config, self.train_data)
                train(
                    TrainingJob(
                        config=config,
                        dataset=self.train_data,
                        run_uri=str(run),
                        about={"preset": name, "dataset": self.train_data.name},
                    )
                )
            self.models[name] = load_model(model_uri(str(run)))
        return self.models[name]

    def once(self, key: str, make: Callable[[], FidEstimate]) -> FidEstimate:
        if key not in self.kept:
            self.kept[key] = make().to_dict()
            self.file.write_text(json.dumps(self.kept))
            print(f"{key}: FID {self.kept[key]['fid']:.3f} +- {1.96 * self.kept[key]['se']:.3f}", flush=True)
        return FidEstimate.from_dict(self.kept[key])

    def fid_of(self, images: torch.Tensor) -> FidEstimate:
        seeds = np.arange(len(images))
        return estimate_fid(self.extractor.extract(images), seeds, self.reference, GROUPS)

    def fid(self, name: str, settings: Sampler) -> FidEstimate:
        """Of images of seeds 0..num-1, ten of a class in a row."""
        seeds = torch.arange(self.num, dtype=torch.int64)
        return self.once(
            f"{name} n={self.num} {settings}",
            lambda: self.fid_of(generate(self.model(name), seeds, settings, "balanced")),
        )


def plus_minus(estimate: FidEstimate) -> str:
    return f"{estimate.fid:.2f} +- {1.96 * estimate.se:.2f}"


def paired(a: FidEstimate, b: FidEstimate) -> str:
    gap = difference(a, b)
    return f"{gap.gap:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"


def steps_for(nfe: int, solver: str) -> int:
    return (nfe + 1) // 2 if solver == "heun" else nfe


def figure_2(bench: Bench) -> str:
    lines = ["| model | sampler | " + " | ".join(f"NFE {nfe}" for nfe in NFES) + " |", "|---" * (len(NFES) + 2) + "|"]
    for name, title in (("vp-a-0", "A, 32,000 images"), ("long-e-0", "E, 128,000 images")):
        for name_of_sampler, fields in SAMPLERS.items():
            row = []
            for nfe in NFES:
                settings = sampler(**fields, num_steps=steps_for(nfe, fields.get("solver", "heun")))
                row.append(plus_minus(bench.fid(name, settings)))
            lines.append(f"| {title} | {name_of_sampler} | {' | '.join(row)} |")
    return "\n".join(lines)


def table_4(bench: Bench) -> str:
    lines = [
        "| sampler, 18 steps | FID | against deterministic, paired | against all of them, paired |",
        "|---|---|---|---|",
    ]
    found = {title: bench.fid("long-e-0", sampler(**fields)) for title, fields in KNOCKOUTS.items()}
    for title, estimate in found.items():
        first, last = (paired(estimate, found[other]) for other in ("deterministic", "all of them"))
        lines.append(f"| {title} | {plus_minus(estimate)} | {first} | {last} |")
    return "\n".join(lines)


def figure_5b(bench: Bench) -> str:
    lines = [
        "| model | " + " | ".join(f"S_churn {churn:g}" for churn in CHURNS) + " | most against none, paired |",
        "|---" * (len(CHURNS) + 2) + "|",
    ]
    for name in (*(f"vp-{letter}-0" for letter in "abcdef"), "long-e-0", "long-f-0"):
        found = [bench.fid(name, sampler(s_churn=churn, s_tmin=WINDOW[0], s_tmax=WINDOW[1])) for churn in CHURNS]
        title = f"{name.split('-')[1].upper()}, {'128' if name.startswith('long') else '32'},000 images"
        last = paired(found[-1], found[0])
        lines.append(f"| {title} | {' | '.join(plus_minus(each) for each in found)} | {last} |")
    return "\n".join(lines)


def figure_14(bench: Bench, picture: Path | None) -> str:
    """Training digits with noise of one level, raised and lowered again at that level; then denoised once."""
    images, labels = split_digits()["train"]
    count = 500
    clean, classes = decode(torch.from_numpy(images[:count])).double(), torch.from_numpy(labels[:count]).long()
    one_hot, seeds = one_hot_labels(classes, 10), torch.arange(count)
    lines = [
        "| sigma, S_noise | " + " | ".join(f"{count_} iterations" for count_ in ITERATIONS) + " |",
        "|---" * (len(ITERATIONS) + 1) + "|",
    ]
    denoiser, rows = bench.model("long-e-0"), []
    for level in LEVELS:
        for s_noise in LANGEVIN_NOISE:
            found, key = [], f"langevin {level} {s_noise}"
            for iterations in ITERATIONS:

                def make(level: float = level, s_noise: float = s_noise, iterations: int = iterations) -> torch.Tensor:
                    start = clean + image_noise(seeds, "langevin start", (1, 8, 8))(0) * level
                    noise = image_noise(seeds, "langevin", (1, 8, 8))
                    with torch.inference_mode():
                        gamma = math.sqrt(2) - 1
                        x = langevin(denoiser, start, level, iterations, noise, gamma, s_noise, one_hot)
                        sigma = torch.full((count,), level, dtype=torch.float64)
                        return encode(denoiser(x, sigma, one_hot))

                found.append(bench.once(f"{key} {iterations}", lambda make=make: bench.fid_of(make())))
                if picture is not None and level == LEVELS[0]:
                    rows.append(make()[:10])
            lines.append(f"| {level:g}, {s_noise:g} | {' | '.join(plus_minus(each) for each in found)} |")
    if picture is not None:
        image_grid(torch.cat(rows).numpy(), 10, 5, gap=4).save(picture)
    return "\n".join(lines)


def put(title: str, text: str) -> None:
    begin, end = (mark.format(title) for mark in MARKS)
    head, rest = PAGE.read_text().split(begin, 1)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ladder"))
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--kimg", type=float, default=32, help="thousands of training images; long runs: 4 times")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(args.out, args.num, args.kimg)
    picture = PAGE.with_name("langevin.png") if args.write else None
    parts = {
        "table 4": lambda: table_4(bench),
        "figure 14": lambda: figure_14(bench, picture),
        "figure 5b": lambda: figure_5b(bench),
        "figure 2": lambda: figure_2(bench),
    }
    for title, part in parts.items():
        text = part()
        print(f"\n{title}\n{text}\n", flush=True)
        if args.write:
            put(title, text)


if __name__ == "__main__":
    main()
