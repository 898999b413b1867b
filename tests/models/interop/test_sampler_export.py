"""Exported samplers: what the other tool makes of their numbers, mirrored in NumPy float64, gives our images."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.cli import main
from edm_ray.diffusion.samplers import Sampler, sample, sampler
from edm_ray.errors import InputError
from edm_ray.models.interop.sampler_export import export_sampler
from edm_ray.seeding import image_noise
from tests.diffusion.two_modes import TwoModes, denoise

SEEDS = torch.arange(3)
LATENTS, NOISE = (image_noise(SEEDS, stream, (1, 4, 4)) for stream in ("latents", "churn"))
LEVELS: list[dict[str, Any]] = [{"num_steps": 8}, {"sigmas": [70, 22, 9, 1, 0.3, 0.02]}, {"discretization": "vp"}]


def ours(settings: Sampler) -> np.ndarray:
    return sample(TwoModes(), LATENTS(0), settings, noise=NOISE).numpy()


def through_json(settings: Sampler, to: str) -> dict[str, Any]:
    exported: dict[str, Any] = json.loads(json.dumps(export_sampler(settings, to), allow_nan=False))
    return exported


# -- mirrors: written from what the tools document, reading nothing but what is exported -------------------------------


def algorithm_2(x: np.ndarray, sigmas: list[float], given: dict[str, float], heun: bool) -> np.ndarray:
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        inside = given.get("s_tmin", 0.0) <= now <= given.get("s_tmax", math.inf)
        gamma = min(given.get("s_churn", 0.0) / (len(sigmas) - 1), 2**0.5 - 1) if inside else 0.0
        hat = now * (1 + gamma)
        if gamma:
            x = x + NOISE(i).numpy() * given["s_noise"] * np.sqrt(hat**2 - now**2)
        d = (x - denoise(x, hat)) / hat
        ahead = x + d * (after - hat)
        if heun and after > 0:
            ahead = x + (after - hat) * (d + (ahead - denoise(ahead, after)) / after) / 2
        x = ahead
    return x


def midpoint(x: np.ndarray, sigmas: list[float]) -> np.ndarray:
    for now, after in itertools.pairwise(sigmas):
        if after == 0:
            return denoise(x, now)
        d, middle = (x - denoise(x, now)) / now, np.exp((np.log(now) + np.log(after)) / 2)
        ahead = x + d * (middle - now)
        x = x + (ahead - denoise(ahead, middle)) / middle * (after - now)
    raise AssertionError


def dpmpp_2m(x: np.ndarray, sigmas: list[float], eta: float, s_noise: float) -> np.ndarray:
    before: tuple[float, np.ndarray] | None = None
    for i, (now, after) in enumerate(itertools.pairwise(sigmas)):
        d = denoise(x, now)
        if after == 0:
            return d
        h = np.log(now / after)
        x = after / now * np.exp(-eta * h) * x - np.expm1(-h - eta * h) * d
        if before is not None:
            x = x - 0.5 * np.expm1(-h - eta * h) * h / before[0] * (d - before[1])
        if eta:
            x = x + NOISE(i).numpy() * after * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise
        before = (h, d)
    raise AssertionError


def ipndm(x: np.ndarray, sigmas: list[float], max_order: int) -> np.ndarray:
    table = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    past: list[np.ndarray] = []
    for now, after in itertools.pairwise(sigmas):
        d = denoise(x, now)
        past = [(x - d) / now, *past]
        order = min(max_order, len(past))
        x = d if after == 0 else x + (after - now) * sum(c * p for c, p in zip(table[order - 1], past, strict=False))
    return x


def comfyui(exported: dict[str, Any]) -> np.ndarray:
    sigmas, given, name = exported["sigmas"], exported["options"], exported["sampler_name"]
    x = LATENTS(0).numpy() * sigmas[0]
    if name in ("euler", "heun"):
        return algorithm_2(x, sigmas, given, heun=name == "heun")
    if name == "ipndm":
        return ipndm(x, sigmas, **given)
    if name == "dpm_2":
        return midpoint(x, sigmas)
    assert given.pop("solver_type", "midpoint") == "midpoint" and name in ("dpmpp_2m", "dpmpp_2m_sde")
    return dpmpp_2m(x, sigmas, given.get("eta", 0.0), given.get("s_noise", 1.0))


def diffusers(exported: dict[str, Any]) -> np.ndarray:
    sigmas, config = exported["sigmas"], exported["scheduler"]
    x = LATENTS(0).numpy() * sigmas[0]
    if config["_class_name"] == "EDMEulerScheduler":
        return algorithm_2(x, sigmas, exported["step"], heun=False)
    assert (config["solver_order"], config["solver_type"], config["final_sigmas_type"]) == (2, "midpoint", "zero")
    return dpmpp_2m(x, sigmas, {"dpmsolver++": 0.0, "sde-dpmsolver++": 1.0}[config["algorithm_type"]], 1.0)


MIRRORS = {"diffusers": diffusers, "comfyui": comfyui}
CHURN = {"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 30.0, "s_noise": 1.01}
EXPORTED: list[tuple[str, dict[str, Any]]] = [
    ("diffusers", {"solver": "euler"}),
    ("diffusers", {"solver": "euler", **CHURN}),
    ("diffusers", {"solver": "dpmpp_2m"}),
    ("diffusers", {"solver": "dpmpp_2m_sde"}),
    ("comfyui", {"solver": "euler", **CHURN}),
    ("comfyui", {"solver": "heun"}),
    ("comfyui", {"solver": "heun", **CHURN}),
    ("comfyui", {"solver": "dpm_2"}),
    ("comfyui", {"solver": "dpmpp_2m", "lower_order_final": True}),
    ("comfyui", {"solver": "dpmpp_2m_sde", "eta": 0.6, "s_noise": 1.003}),
    *(("comfyui", {"solver": "ipndm", "order": order}) for order in (2, 3, 4)),
]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize(("to", "flat"), EXPORTED, ids=str)
def test_what_the_tool_makes_of_it_are_our_images(to: str, flat: dict[str, Any], levels: dict[str, Any]) -> None:
    settings = sampler(**flat, **levels)
    exported = through_json(settings, to)
    assert exported["for"] == to and exported["format"] == 1
    assert exported["sigmas"] == [*settings.noise_levels(), 0.0]
    assert np.abs(MIRRORS[to](exported) - ours(settings)).max() < 1e-9


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize(
    "flat", [flat for to, flat in EXPORTED if to == "diffusers" and "s_churn" not in flat], ids=str
)
def test_diffusers_own_scheduler_samples_our_images(flat: dict[str, Any], levels: dict[str, Any]) -> None:
    """Where diffusers is installed; of the stochastic solver without its noise, which comes from another generator."""
    module = pytest.importorskip("diffusers")
    settings = sampler(**flat, **levels)
    exported = through_json(settings, "diffusers")
    config = exported["scheduler"]
    scheduler = getattr(module, config["_class_name"]).from_config(config)
    scheduler.set_timesteps(len(exported["sigmas"]) - 1)
    scheduler.sigmas = torch.tensor(exported["sigmas"])
    scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])
    x = LATENTS(0).float() * scheduler.sigmas[0]
    variance = config["sigma_data"] ** 2
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        level = float(scheduler.sigmas[i])
        D = torch.from_numpy(denoise(x.double().numpy(), level)).float()
        skip, out = variance / (level**2 + variance), level * variance**0.5 / (level**2 + variance) ** 0.5
        x = scheduler.step((D - skip * x) / out, t, x, **exported["step"]).prev_sample
    if not settings.needs_noise():
        assert np.abs(x.numpy() - ours(settings)).max() < 1e-4


def test_json_has_the_numbers_of_any_sampler() -> None:
    churned = through_json(sampler(num_steps=4, s_churn=1.0), "json")
    assert churned["gammas"] == [0.25] * 4 and churned["nfe"] == 7 and churned["sigmas"][-1] == 0
    for flat in (
        {"solver": "unipc"},
        {"solver": "deis", "afs": True},
        {"solver": "sa_solver", "tau_max": 5.0},
        {"s_churn": 9.0},
    ):
        settings = sampler(num_steps=6, **flat)
        again = sampler(**through_json(settings, "json")["sampler"])
        assert np.array_equal(ours(again), ours(settings))


@pytest.mark.parametrize(
    ("to", "flat", "says"),
    [
        ("diffusers", {"solver": "heun"}, "solver='heun' cannot be exported to diffusers: .*euler, dpmpp_2m"),
        (
            "diffusers",
            {"solver": "dpmpp_2m_sde", "eta": 0.5},
            "eta=0.5 cannot be exported: 1: diffusers has no setting",
        ),
        ("diffusers", {"solver": "dpmpp_2m", "afs": True}, "afs=True cannot be exported to diffusers"),
        ("diffusers", {"solver": "euler", "schedule": "vp", "scaling": "vp"}, "schedule='vp' cannot be exported"),
        ("diffusers", {"solver": "euler", "num_steps": 2, "gammas": [0.1, 0.2]}, "gammas=.*one window of S_churn only"),
        ("comfyui", {"solver": "heun", "alpha": 0.5}, "alpha=0.5 cannot be exported: 1: ComfyUI has no other"),
        ("comfyui", {"solver": "heun", "restarts": [[0.3, 5.0, 3, 1]]}, "restarts=.*one window of S_churn only"),
        ("comfyui", {"solver": "deis"}, "solver='deis' cannot be exported to comfyui: .*time of VP"),
        ("comfyui", {"solver": "dpmpp_3m_sde"}, "solver='dpmpp_3m_sde' .*by half"),
        ("comfyui", {"solver": "predictor_corrector"}, "solver='predictor_corrector' .*has no such sampler"),
        ("comfyui", {"solver": "ipndm", "lower_order_final": True}, "lower_order_final=True cannot be exported"),
        ("comfyui", {"solver": "ipndm", "order": 1}, "order=1 cannot be exported: .*euler"),
        ("comfyui", {"guidance": 2.0}, "guidance=2.0 cannot be exported to comfyui: guidance is set where"),
        ("json", {"solver": "rk45"}, "solver='rk45' cannot be exported"),
        ("nothing", {}, "--to nothing: give diffusers, comfyui, json"),
    ],
)
def test_what_the_tool_would_sample_otherwise_is_refused_with_the_reason(
    to: str, flat: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        export_sampler(sampler(**flat), to)
    assert "\n" not in str(caught.value)


def test_the_command_writes_what_a_sweep_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "best-sampler.yaml"
    file.write_text("sampler: {solver: dpmpp_2m, num_steps: 6, sigma_min: 0.02}\n")
    assert main(["export-sampler", str(file), "--to", "comfyui"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sampler_name"] == "dpmpp_2m" and len(shown["sigmas"]) == 7
    assert shown["sigmas"][-2:] == pytest.approx([0.02, 0.0])
    assert [float(number) for number in shown["text"].split(",")] == pytest.approx(shown["sigmas"])
    out = tmp_path / "sampler.json"
    assert main(["export-sampler", str(tmp_path), "--set", "solver=euler", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["solver"] == "euler"
    assert main(["export-sampler", str(file), "--to", "diffusers", "--set", "solver=unipc"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "solver='unipc' cannot be exported to diffusers" in error
