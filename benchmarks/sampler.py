"""The sampler's own time (all but the network) against one denoiser call of the CIFAR-10 network, on this machine.

    python benchmarks/sampler.py [--batch 8] [--num-steps 18]

A denoiser that returns a fixed tensor stands in for the network while the sampler is timed.
"""

from __future__ import annotations

import argparse
import time

import torch

from edm_ray.config.schema import DenoiserConfig
from edm_ray.diffusion.samplers import SamplerSettings, sample
from edm_ray.networks.build import build_denoiser
from edm_ray.seeding import image_noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=18)
    args = parser.parse_args()
    latents = image_noise(torch.arange(args.batch), "latents", (3, 32, 32))(0)
    noise = image_noise(torch.arange(args.batch), "churn", (3, 32, 32))
    network = build_denoiser(DenoiserConfig()).eval()
    fixed = torch.zeros(args.batch, 3, 32, 32)

    def stand_in(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        return fixed

    with torch.inference_mode():
        sigma = torch.ones(args.batch, dtype=torch.float64)
        network(latents, sigma)
        calls = []
        for _ in range(3):
            began = time.perf_counter()
            network(latents, sigma)
            calls.append(time.perf_counter() - began)
        call = min(calls)
        print(f"denoiser call: {call * 1e3:.1f} ms (CIFAR-10, batch {args.batch}, {torch.get_num_threads()} threads)")
        for name, settings in (
            ("deterministic Heun", SamplerSettings(num_steps=args.num_steps)),
            ("stochastic Heun", SamplerSettings(num_steps=args.num_steps, s_churn=10.0)),
            ("dpmpp_2m", SamplerSettings(num_steps=args.num_steps, solver="dpmpp_2m")),
        ):
            runs = []
            for _ in range(10):
                began = time.perf_counter()
                sample(stand_in, latents, settings, noise=noise)
                runs.append(time.perf_counter() - began)
            own = min(runs) / settings.nfe
            print(f"{name}: {own * 1e3:.3f} ms of its own a denoiser call = {100 * own / call:.3f} %")


if __name__ == "__main__":
    main()
