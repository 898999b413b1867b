"""What a 16-bit network does to FID: the same seeds in fp32, bf16 and fp16, paired. CPU.

    python -m research.precision.precision MODEL REFERENCE [--images bf16:5000,fp16:1000] [--churn 0]

The error of a difference is the paired jackknife's (`edm_ray.evaluation.fid.paired_difference`).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.fid import paired_difference
from edm_ray.evaluation.measure import estimate_fid
from edm_ray.evaluation.reference import open_reference
from edm_ray.generation.generate import generate
from edm_ray.models import open_model

SEEDS = 1 << 21
GROUPS = 20


def measure(model_dir: str, reference_dir: str, counts: dict[str, int], churn: float = 0.0) -> str:
    """Table of paired differences from fp32; ``counts``: images of each precision (fp16 is slow on most CPUs)."""
    denoiser = open_model(model_dir).denoiser()
    reference, spec = open_reference(reference_dir)
    extractor = spec.load()
    settings = sampler(s_churn=churn).effective(denoiser)
    seeds = torch.arange(SEEDS, SEEDS + max(counts.values()), dtype=torch.int64)
    full = generate(denoiser, seeds, settings)
    features = extractor.extract(full)
    lines = [
        "| network | n | FID | FID in fp32 | difference, bias removed | levels of 255: mean, greatest change |",
        "|---|---|---|---|---|---|",
    ]
    for precision, count in counts.items():
        images = generate(denoiser, seeds[:count], settings, precision=precision)
        fid, known = (
            estimate_fid(rows, seeds[:count].numpy(), reference, GROUPS)
            for rows in (extractor.extract(images), features[:count])
        )
        gap, se = paired_difference(fid, known)
        moved = np.abs(images.numpy().astype(int) - full[:count].numpy())
        lines.append(
            f"| {precision} | {count:,} | {fid.fid:.4f} | {known.fid:.4f} | {gap:+.4f} +- {se:.4f} "
            f"({gap / known.debiased:+.2%} +- {se / known.debiased:.2%}) | {moved.mean():.3f}, {moved.max()} |"
        )
        print(lines[-1], flush=True)
    parameters = sum(tensor.numel() for tensor in denoiser.module.parameters()) / 1e6
    lines.append(
        f"\nThe same seeds with both; +- is one standard error, paired by seed. {settings.nfe} network calls an image, "
        f"S_churn {churn:g}, a network of {parameters:.2f} M parameters on 8x8 images; {reference.describe()}."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a trained model directory, e.g. the demo's")
    parser.add_argument("reference", help="its reference")
    parser.add_argument("--images", default="bf16:5000,fp16:1000")
    parser.add_argument("--churn", type=float, default=0.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts = {name: int(count) for name, count in (part.split(":") for part in args.images.split(","))}
    print(measure(args.model, args.reference, counts, args.churn))


if __name__ == "__main__":
    main()
