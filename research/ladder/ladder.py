"""Configurations A-F on the handwritten digits: same seeds, same number of images, same sampler, three seeds each.

    python -m research.ladder.ladder [--out ladder] [--kimg 32] [--seeds 3] [--configs abcdef] [--write]

Resumable: what is trained or measured already is not done again. Prints a Markdown table; --write draws
ladder-COLUMN.png beside README.md. What is shortened against the paper: the network (32 channels), the run
(32,000 images instead of 200 million), and with it the learning-rate ramp and the averages; xflip is off everywhere:
a mirrored digit is no digit.

Beside the six letters there is "w", a control: F whose network is not told what was done (labels of zeros). What leaks
into samples when the labels do not work is seen there. --seeds 1-3 is seeds 1 and 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from edm_ray.cli import main as edm_ray
from edm_ray.config.recipes import LADDER, LETTERS, Family, change
from edm_ray.config.training import TrainingConfig
from edm_ray.data.codec import decode
from edm_ray.data.importers.digits import split_digits
from edm_ray.data.manifest import DataSet, open_dataset
from edm_ray.diffusion.labels import one_hot_labels
from edm_ray.diffusion.objectives import loss_by_sigma, objective
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.extractors.digits import DigitsClassifier, train_digits_classifier
from edm_ray.evaluation.grids import image_grid
from edm_ray.evaluation.measure import Plan, estimate_fid
from edm_ray.evaluation.parts import measure_real
from edm_ray.evaluation.reference import open_reference
from edm_ray.execution.local import Local
from edm_ray.generation.generate import generate
from edm_ray.models import load_model
from edm_ray.seeding import image_noise
from edm_ray.training.augment import AugmentParameters, augment_labels
from edm_ray.training.loop import TrainingJob, train
from edm_ray.training.run import claim_run, model_uri

DIGITS = Family(
    name="digits",
    resolution=8,
    baseline_mult=(1, 1, 2),
    channel_mult=(1, 2),
    batch_size=128,
    lr=2e-3,
    dropout=0.0,
    augment_probability=0.12,
    model_channels=32,
    num_blocks=1,
    attn_resolutions=(4,),
)
NUM, GROUPS = 500, 10
"""Images of an FID (as many as there are held-out digits), and jackknife groups."""
SHOWN = 1000
"""Samples whose orientation is classified."""
WITHHELD = "w"
SIGMAS = tuple(np.geomspace(0.005, 50, 15).tolist())
VIEWS = ("upright", "mirrored", "turned by 90", "turned by 180", "turned by 270")


def config_of(letter: str, data: DataSet, kimg: float, seed: int, column: str) -> TrainingConfig:
    """The recipe of the paper on a clock 6,000 times shorter."""
    config = LADDER["f" if letter == WITHHELD else letter](data.shape, DIGITS, column)
    if config.denoiser.preconditioning.kind == "edm":
        config = change(config, denoiser__preconditioning__sigma_data=0.75)
    old = letter == "a"
    return change(
        config,
        seed=seed,
        xflip=False,
        batch_size=32 if old else DIGITS.batch_size,
        total_kimg=kimg,
        tick_kimg=kimg / 8,
        checkpoint_kimg=kimg / 8,
        optimizer__lr=4e-4 if old else DIGITS.lr,
        optimizer__ramp_kimg=0.5 if old else 2.0,
        ema__halflife_kimg=1.0 if old else 4.0,
        denoiser__network__dropout=0.0,
    )


def views(images: torch.Tensor) -> list[torch.Tensor]:
    """The same pictures in every way augmentation may show them, in the order of VIEWS."""
    return [images, images.flip(3), *(torch.rot90(images, k, (2, 3)) for k in (1, 2, 3))]


def orientation_classifier(images: np.ndarray) -> DigitsClassifier:
    """Tells upright digits from mirrored and turned ones; trained on the training digits."""
    shown = views(torch.from_numpy(images))
    labels = torch.arange(len(shown)).repeat_interleave(len(images))
    classifier = DigitsClassifier()
    classifier.load_state_dict(train_digits_classifier(torch.cat(shown), labels))
    return classifier.eval()


def orientations(classifier: DigitsClassifier, images: torch.Tensor) -> list[float]:
    """Share of the images in each of VIEWS."""
    with torch.inference_mode():
        found = classifier.classify(images)
    return [float((found == view).double().mean()) for view in range(len(VIEWS))]


def zero_labels(parameters: AugmentParameters) -> torch.Tensor:
    return torch.zeros_like(augment_labels(parameters))


def measure(run: Path, data: Path, classifier: DigitsClassifier) -> dict:
    """FID, orientations of samples, and the loss of held-out digits by noise level in the EDM weighting."""
    denoiser = load_model(model_uri(str(run)))
    reference, spec = open_reference(str(data / "reference"))
    seeds = torch.arange(SHOWN, dtype=torch.int64)
    images = generate(denoiser, seeds, sampler(), "balanced")
    estimate = estimate_fid(spec.load().extract(images[:NUM]), seeds[:NUM].numpy(), reference, GROUPS)
    held, labels = split_digits()["heldout"]
    held_images = decode(torch.from_numpy(held)).double()
    noise = image_noise(torch.arange(len(held)), "ladder", (1, 8, 8))(0)
    with torch.inference_mode():
        losses = loss_by_sigma(
            denoiser,
            objective("edm", sigma_data=0.75),
            held_images,
            noise,
            SIGMAS,
            one_hot_labels(torch.from_numpy(labels).long(), 10),
        )
    image_grid(images[:50].numpy(), 10, 5, gap=4).save(run / "samples.png")
    return {
        "fid": estimate.fid,
        "debiased": estimate.debiased,
        "views": orientations(classifier, images),
        "loss": losses.mean(1).tolist(),
    }


def draw(results: dict[str, list[dict]], real: float, out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    letters = list(results)
    for x, letter in enumerate(letters):
        values = [entry["fid"] for entry in results[letter]]
        left.plot([x] * len(values), values, "o", color="#24304a", alpha=0.6)
        left.plot([x - 0.2, x + 0.2], [statistics.mean(values)] * 2, color="#c2410c")
        right.plot(SIGMAS, np.mean([entry["loss"] for entry in results[letter]], axis=0), ".-", label=letter.upper())
    left.axhline(real, color="#69748a", linestyle="--", label="held-out real digits")
    left.set(title=f"FID (digits extractor, n={NUM}): one dot a seed, bar = mean", ylabel="FID", yscale="log")
    left.set_xticks(range(len(letters)), [letter.upper() for letter in letters])
    left.legend()
    right.set(
        title="loss of held-out digits by noise level (EDM weighting)", xscale="log", yscale="log", xlabel="sigma"
    )
    right.legend()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ladder"))
    parser.add_argument("--kimg", type=float, default=32.0)
    parser.add_argument("--seeds", default="3", help="so many, from 0; or FIRST-END, without END")
    parser.add_argument("--configs", default="".join(LETTERS))
    parser.add_argument("--column", choices=["vp", "ve"], default="vp")
    parser.add_argument("--write", action="store_true", help="the picture beside README.md")
    args = parser.parse_args()
    data = args.out / "data"
    edm_ray(["prepare", "digits", str(data)])
    reference = ["--out", str(data / "reference"), "--extractor", "digits"]
    edm_ray(["reference", "--data", str(data / "train"), *reference])
    train_data, classifier = open_dataset(str(data / "train")), orientation_classifier(split_digits()["train"][0])
    results: dict[str, list[dict]] = {}
    first, _, end = args.seeds.rpartition("-")
    seeds = range(int(first or 0), int(end))
    for seed in seeds:
        for letter in args.configs:
            run = args.out / f"{args.column}-{letter}-{seed}"
            found = run / "measured.json"
            if not found.exists():
                config = config_of(letter, train_data, args.kimg, seed, args.column)
                claim_run(str(run), config, train_data)
                began = time.monotonic()
                about = {"preset": f"ladder {letter}", "dataset": train_data.name}
                told = zero_labels if letter == WITHHELD else augment_labels
                with mock.patch("edm_ray.training.step.augment_labels", told):
                    train(TrainingJob(config=config, dataset=train_data, run_uri=str(run), about=about))
                seconds = time.monotonic() - began
                found.write_text(json.dumps({**measure(run, data, classifier), "seconds": seconds}))
            entry = json.loads(found.read_text())
            results.setdefault(letter, []).append(entry)
            print(f"seed {seed} {letter.upper()}  FID {entry['fid']:.2f}  upright {entry['views'][0]:.1%}", flush=True)
    ref, spec = open_reference(str(data / "reference"))
    plan = Plan(metrics=("fid",), reference=ref, groups=GROUPS)
    held_out, store = open_dataset(str(data / "heldout")), str(data / "measured")
    real = measure_real(held_out, NUM, [plan], [spec], store, Local())[0].measured.fid
    held = orientations(classifier, torch.from_numpy(split_digits()["heldout"][0]))
    print(f"\n{args.column.upper()} column, {args.kimg:g} kimg, {len(seeds)} seeds, n={NUM}, digits extractor\n")
    print("| configuration | FID, each seed | mean | upright samples | loss at sigma 0.1, 1, 10 |")
    print("|---|---|---|---|---|")
    for letter, entries in results.items():
        about = (LADDER[letter].__doc__ or "").splitlines()[0] if letter in LADDER else "F, labels withheld"
        fids = ", ".join(f"{entry['fid']:.2f}" for entry in entries)
        mean = statistics.mean(entry["fid"] for entry in entries)
        share = statistics.mean(entry["views"][0] for entry in entries)
        loss = np.mean([np.interp(np.log([0.1, 1, 10]), np.log(SIGMAS), entry["loss"]) for entry in entries], axis=0)
        levels = ", ".join(f"{value:.3f}" for value in loss)
        print(f"| {letter.upper()} {about} | {fids} | {mean:.2f} | {share:.1%} | {levels} |")
    print(f"| held-out real digits | | {real.fid:.2f} | {held[0]:.1%} | |")
    print(f"\n| of {SHOWN:,} samples, seed by seed | " + " | ".join(VIEWS) + " |\n" + "|---" * (1 + len(VIEWS)) + "|")
    for letter, entries in results.items():
        shares = [", ".join(f"{entry['views'][view]:.1%}" for entry in entries) for view in range(len(VIEWS))]
        print(f"| {letter.upper()} | " + " | ".join(shares) + " |")
    print("| held-out real digits | " + " | ".join(f"{share:.1%}" for share in held) + " |")
    if args.write:
        draw(results, real.fid, Path(__file__).with_name(f"ladder-{args.column}.png"))


if __name__ == "__main__":
    main()
