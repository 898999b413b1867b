"""The sampler's own time (all but the network) against one denoiser call of the CIFAR-10 network, on this machine.

    python -m benchmarks.sampler [--batch 8] [--num-steps 18]

A denoiser that returns a fixed tensor stands in for the network while the sampler is timed; the noise it draws counts
as its own. Ends with code 1 if any solver takes more than 2 % of a call.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.results import record
from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.networks.build import build_denoiser
from edm_ray.seeding import image_noise

LIMIT = 0.02
VP = {"discretization": "vp", "schedule": "vp", "scaling": "vp"}
SOLVERS = {
    "Heun": {},
    "Heun, churn": {"s_churn": 3.0},
    "Heun, VP, churn": {"s_churn": 3.0, **VP},
    "Heun, restarts": {"restarts": ((0.3, 5.0, 4, 2),)},
    "Euler": {"solver": "euler"},
    "DDIM": {"solver": "euler", "discretization": "iddpm"},
    "dpmpp_2m": {"solver": "dpmpp_2m"},
    "dpmpp_3m_sde": {"solver": "dpmpp_3m_sde"},
    "deis, order 4": {"solver": "deis", "order": 4},
    "unipc": {"solver": "unipc"},
    "sa_solver": {"solver": "sa_solver"},
    "dpm_2": {"solver": "dpm_2"},
    "euler_maruyama, VP": {"solver": "euler_maruyama", **VP},
    "predictor_corrector": {"solver": "predictor_corrector"},
    "rk45": {"solver": "rk45"},
}


def times_of(count: int, work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--num-steps", type=int, default=18)
    args = parser.parse_args()
    latents = image_noise(torch.arange(args.batch), "latents", (3, 32, 32))(0)
    noise = image_noise(torch.arange(args.batch), "churn", (3, 32, 32))
    network = build_denoiser(DenoiserConfig()).eval()
    calls = 0

    def stand_in(x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal calls
        calls += len(x)
        return fixed[: len(x)]

    fixed = torch.zeros(args.batch, 3, 32, 32)
    worst, numbers = 0.0, {}
    with torch.inference_mode():
        sigma = torch.ones(args.batch, dtype=torch.float64)
        network(latents, sigma)
        calls_s = times_of(3, lambda: network(latents, sigma))
        call = min(calls_s)
        numbers["denoiser call"] = ("ms", [1e3 * each for each in calls_s])
        print(f"denoiser call: {call * 1e3:.1f} ms (CIFAR-10, batch {args.batch}, {torch.get_num_threads()} threads)")
        for name, changes in SOLVERS.items():
            settings = sampler(num_steps=args.num_steps, **changes)
            calls = 0
            sample(stand_in, latents, settings, noise=noise)
            evaluations = calls / args.batch
            whole = times_of(10, lambda settings=settings: sample(stand_in, latents, settings, noise=noise))
            numbers[name] = ("ms of its own a denoiser call", [1e3 * each / evaluations for each in whole])
            own = min(whole) / evaluations
            worst = max(worst, own / call)
            print(f"{name:22} {own * 1e3:7.3f} ms of its own a denoiser call = {100 * own / call:.3f} %")
    record("sampler", numbers, vars(args))
    print(f"worst: {100 * worst:.3f} %; at most {100 * LIMIT:g} % is allowed")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
