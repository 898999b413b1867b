"""A sampler for other tools: their noise levels and their solver's settings, or a refusal where theirs is another one.

Every list ends with 0: N noise levels and the step to 0, which in all of them is D itself. What is exported samples
the same images from the same latents and noise, up to the tool's precision (float32).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from edm_ray.diffusion.samplers import DPM2, IPNDM, DPMpp2M, DPMpp2MSDE, Euler, Heun, Sampler
from edm_ray.diffusion.samplers.base import settings
from edm_ray.errors import InputError

FORMAT = 1
CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
LEVELS = ("num_steps", "sigma_min", "sigma_max", "rho", "discretization", "epsilon_s", "c_1", "c_2", "num_train_steps")
"""Settings that only say which noise levels; those are written out."""
SIGMA_DATA = 0.5


def export_sampler(sampler: Sampler, to: str, denoiser: Any = None, sigma_data: float = SIGMA_DATA) -> dict[str, Any]:
    """What the tool ``to`` needs, as plain values.

    denoiser: the noise levels are within what it knows. sigma_data: that of its EDM preconditioning (diffusers).
    Raises InputError where the tool has no such sampler, with the reason.
    """
    if to not in TARGETS:
        raise InputError(f"--to {to}: give {', '.join(TARGETS)}")
    form = sampler.effective(denoiser)
    levels = [*form.noise_levels(denoiser), 0.0]
    if form.solver == "rk45":
        raise InputError("sampler.solver='rk45' cannot be exported: it chooses its noise levels on the way")
    return {"format": FORMAT, "for": to, **TARGETS[to](form, levels, sigma_data)}


# -- json --------------------------------------------------------------------------------------------------------------


def _json(sampler: Sampler, sigmas: list[float], sigma_data: float) -> dict[str, Any]:
    """Everything, for any program: levels, gamma of every step, the flat form."""
    made: dict[str, Any] = {"solver": sampler.solver, "nfe": sampler.nfe, "sigmas": sigmas}
    if isinstance(sampler, Euler):
        made["gammas"] = [sampler.gamma(level, i) for i, level in enumerate(sigmas[:-1])]
    flat = sampler.to_dict()
    return {**made, "sampler": {key: value for key, value in flat.items() if value != math.inf}}  # inf: no bound


# -- diffusers ---------------------------------------------------------------------------------------------------------


def _diffusers(sampler: Sampler, sigmas: list[float], sigma_data: float) -> dict[str, Any]:
    """One of its two schedulers in EDM's form: configuration, noise levels, arguments of `step`."""
    config = {
        "sigma_min": sigmas[-2],
        "sigma_max": sigmas[0],
        "sigma_data": sigma_data,
        "sigma_schedule": "karras",
        "rho": sampler.rho,
        "prediction_type": "epsilon",
        "final_sigmas_type": "zero",
    }
    multistep = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": False, "euler_at_final": False}
    arguments: dict[str, float] = {}
    if type(sampler) is Euler:
        name, own, arguments = "EDMEulerScheduler", {}, _churn(sampler, "diffusers")
    elif type(sampler) is DPMpp2M:
        name, own = "EDMDPMSolverMultistepScheduler", {**multistep, "algorithm_type": "dpmsolver++"}
    elif type(sampler) is DPMpp2MSDE:
        for setting in ("eta", "s_noise"):
            value = getattr(sampler, setting)
            _require(value == 1, sampler, setting, f"1: diffusers has no setting for it, got {value:g}")
        name, own = "EDMDPMSolverMultistepScheduler", {**multistep, "algorithm_type": "sde-dpmsolver++"}
    else:
        raise _no_solver(
            sampler, "diffusers", "its schedulers in EDM's form are those of euler, dpmpp_2m, dpmpp_2m_sde"
        )
    _require_plain(sampler, "diffusers", (*CHURN, "eta"))
    return {
        "scheduler": {"_class_name": name, **config, **own},
        "sigmas": sigmas,
        "step": arguments,
        "use": [
            f"scheduler = diffusers.{name}.from_config(exported['scheduler'])",
            f"scheduler.set_timesteps({len(sigmas) - 1})",
            "scheduler.sigmas = torch.tensor(exported['sigmas'])",
            "scheduler.timesteps = scheduler.precondition_noise(scheduler.sigmas[:-1])",
            "x = latents * scheduler.sigmas[0]",
            "for t in scheduler.timesteps:",
            "    output = network(scheduler.scale_model_input(x, t), t)",
            "    x = scheduler.step(output, t, x, **exported['step']).prev_sample",
        ],
    }


# -- ComfyUI -----------------------------------------------------------------------------------------------------------


def _comfyui(sampler: Sampler, sigmas: list[float], sigma_data: float) -> dict[str, Any]:
    """SIGMAS as its custom sampling takes them, the sampler's name, and options of `comfy.samplers.ksampler`."""
    options: dict[str, Any] = {}
    if isinstance(sampler, Euler) and type(sampler) in (Euler, Heun):
        _require(getattr(sampler, "alpha", 1.0) == 1, sampler, "alpha", "1: ComfyUI has no other")
        options = _churn(sampler, "comfyui")
    elif isinstance(sampler, DPMpp2MSDE):
        options = {"eta": sampler.eta, "s_noise": sampler.s_noise, "solver_type": "midpoint"}
    elif isinstance(sampler, IPNDM):
        _require(sampler.order > 1, sampler, "order", "2 or more; of order 1 it is euler")
        options = {"max_order": sampler.order}
    elif type(sampler) not in (DPM2, DPMpp2M):
        raise _no_solver(sampler, "comfyui", WHY_NOT_COMFYUI.get(sampler.solver, "it has no such sampler"))
    _require_plain(sampler, "comfyui", (*CHURN, "alpha", "eta", "order"))
    return {
        "sampler_name": sampler.solver,
        "options": options,
        "sigmas": sigmas,
        "text": ", ".join(f"{level:.9g}" for level in sigmas),
        "use": [
            "sampler = comfy.samplers.ksampler(exported['sampler_name'], exported['options'])",
            "sigmas = torch.FloatTensor(exported['sigmas'])  # or `text` in a node that takes a list of sigmas",
            "SamplerCustom or SamplerCustomAdvanced takes both",
        ],
    }


WHY_NOT_COMFYUI = {
    "deis": "its deis integrates polynomials in the time of VP, not in sigma",
    "dpmpp_3m_sde": "its dpmpp_3m_sde weighs the curvature by half",
    "dpmpp_3m": "it has no deterministic dpmpp_3m",
    "unipc": "its uni_pc takes other orders and another last step",
    "sa_solver": "its sa_solver bounds the noise by shares of its model's time, and counts orders otherwise",
}


# -- what both refuse --------------------------------------------------------------------------------------------------


def _churn(sampler: Euler, to: str) -> dict[str, float]:
    for name in ("churn_bins", "gammas", "restarts"):
        _require(not getattr(sampler, name), sampler, name, f"none: {to} has one window of S_churn only")
    return {name: getattr(sampler, name) for name in CHURN} if sampler.s_churn else {}


def _require_plain(sampler: Sampler, to: str, known: tuple[str, ...]) -> None:
    """Whatever else acts is refused by name: nothing is left out in silence."""
    for each in settings(type(sampler)):
        value = getattr(sampler, each.name)
        if each.name not in (*LEVELS, "sigmas", *known) and value != each.default:
            raise InputError(
                f"sampler.{each.name}={value!r} cannot be exported to {to}: {_why(each.name)}; use --to json"
            )


def _why(name: str) -> str:
    if "guidance" in name:
        return "guidance is set where the tool is called"
    if name == "afs":
        return "its first step always calls the network"
    return "it has no such setting"


def _require(condition: bool, sampler: Sampler, name: str, allowed: str) -> None:
    if not condition:
        raise InputError(f"sampler.{name}={getattr(sampler, name)!r} cannot be exported: {allowed}; use --to json")


def _no_solver(sampler: Sampler, to: str, why: str) -> InputError:
    return InputError(f"sampler.solver={sampler.solver!r} cannot be exported to {to}: {why}; use --to json")


Target = Callable[[Sampler, list[float], float], dict[str, Any]]
TARGETS: dict[str, Target] = {"diffusers": _diffusers, "comfyui": _comfyui, "json": _json}
