"""``--workers``: how many processes share the work."""

from __future__ import annotations

import os

from edm_ray.cli.device import check_device
from edm_ray.distributed.executor import Ray
from edm_ray.errors import InputError
from edm_ray.execution.executor import SAMPLER_CPUS
from edm_ray.execution.local import Local


def parse_workers(text: str) -> tuple[int, int]:
    """ "4" -> (4, 4); "2:8" -> (2, 8)."""
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise InputError(f"--workers {text}: give 1 or more, or LEAST:MOST such as 2:8")
    numbers = int(least), int(most if colon else least)
    if numbers[0] < 1 or numbers[1] < numbers[0]:
        raise InputError(f"--workers {text}: give 1 or more, and MOST not below LEAST")
    return numbers


def _refuse_too_many(workers: str, least: int, device: str, actors_per_gpu: int) -> None:
    """More than this machine can hold, where no cluster is named: Ray would start (seconds) and then refuse them."""
    if os.environ.get("RAY_ADDRESS"):
        return
    if device == "cpu":
        have = int(os.environ.get("EDM_RAY_LOCAL_CPUS") or os.cpu_count() or 1)
        what, most = f"{have} CPU{'s' * (have > 1)}", int(have / SAMPLER_CPUS + 1e-9)
    else:
        import torch

        if not (have := torch.cuda.device_count()):
            return  # a plan for another machine; before Ray starts it is refused
        what, most = f"{have} GPU{'s' * (have > 1)}", have * actors_per_gpu
    if least > most:
        raise InputError(
            f"--workers {workers}: this machine has {what}, and no cluster is named; give --workers "
            f"{most} or fewer, or set RAY_ADDRESS=HOST:6379"
        )


def choose_executor(workers: str, device: str, actors_per_gpu: int = 1) -> Local | Ray:
    """ "0": this process; "4": so many actors of Ray; "2:8": two to begin with, at most eight."""
    check_device(device, here=workers == "0")
    if workers == "0":
        return Local(device)
    if (address := os.environ.get("RAY_ADDRESS", "")).startswith(("http://", "https://")):
        raise InputError(f"RAY_ADDRESS={address}: is the dashboard; give HOST:6379 of the head (or `edm-ray submit`)")
    least, most = parse_workers(workers)
    _refuse_too_many(workers, least, device, actors_per_gpu)
    return Ray(workers=most, device=device, least=least, actors_per_gpu=actors_per_gpu)
