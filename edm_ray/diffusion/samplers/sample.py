"""One function that samples, whatever the settings."""

from __future__ import annotations

import torch

from edm_ray.diffusion.samplers.canonical import ALWAYS_NOISY
from edm_ray.diffusion.samplers.common import Denoiser, NoiseSource
from edm_ray.diffusion.samplers.dpmpp_2m import sample_dpmpp_2m
from edm_ray.diffusion.samplers.dpmpp_3m_sde import sample_dpmpp_3m_sde
from edm_ray.diffusion.samplers.euler_maruyama import sample_euler_maruyama
from edm_ray.diffusion.samplers.plan import plan_of
from edm_ray.diffusion.samplers.predictor_corrector import sample_predictor_corrector
from edm_ray.diffusion.samplers.rk45 import sample_rk45
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.stochastic import sample_stochastic
from edm_ray.errors import InputError


def needs_noise(settings: SamplerSettings, denoiser: Denoiser) -> bool:
    """Whether these settings draw noise beyond the latents."""
    if settings.solver in ALWAYS_NOISY:
        return True
    return settings.solver in ("heun", "euler") and plan_of(settings, denoiser).noisy


def _checked(noise: NoiseSource, shape: torch.Size) -> NoiseSource:
    """Noise of another shape would be broadcast in silence: the same for all images, or all pixels."""

    def checked(step: int, draw: int = 0) -> torch.Tensor:
        drawn: torch.Tensor = noise(step, draw=draw) if draw else noise(step)
        if drawn.shape != shape:
            raise InputError(f"noise={tuple(drawn.shape)} is not allowed: the shape of the latents, {tuple(shape)}")
        return drawn

    return checked


def _no_noise(step: int, draw: int = 0) -> torch.Tensor:
    raise AssertionError("noise was asked for where settings draw none")


def sample(
    denoiser: Denoiser,
    latents: torch.Tensor,
    settings: SamplerSettings,
    class_labels: torch.Tensor | None = None,
    noise: NoiseSource | None = None,
) -> torch.Tensor:
    """Sample images from latents.

    denoiser: D(x, sigma, class_labels) -> like x; sigma is float64 [B]; may carry ``guide``, another denoiser.
    latents: unit normal [B, C, H, W].
    noise(step, draw=0): unit normal like latents; asked for only at steps that add noise.
    Returns float64 [B, C, H, W]. Noise levels are host numbers decided before the loop: no step waits for the device
    (rk45 excepted: its steps adapt on the host).
    Raises InputError when the settings add noise and there is no ``noise``, or shapes do not fit.
    """
    from edm_ray.diffusion.guidance import guided_by_settings

    denoiser = guided_by_settings(denoiser, settings, class_labels)
    if latents.ndim != 4:
        raise InputError(f"latents={tuple(latents.shape)} is not allowed: [B, C, H, W]")
    if class_labels is not None and len(class_labels) != len(latents):
        raise InputError(f"class_labels={tuple(class_labels.shape)} is not allowed: one row an image, {len(latents)}")
    if noise is None:
        if needs_noise(settings, denoiser):
            names = [name for name in ("s_churn", "churn_bins", "restarts") if getattr(settings, name)]
            what = next((f"{name}={getattr(settings, name)}" for name in names), f"solver={settings.solver!r}")
            raise InputError(f"sampler.{what} adds noise: pass noise=, for example seeding.image_noise")
        noise = _no_noise
    noise = _checked(noise, latents.shape)
    if settings.solver == "dpmpp_2m":
        return sample_dpmpp_2m(denoiser, latents, settings, class_labels)
    if settings.solver == "rk45":
        return sample_rk45(denoiser, latents, settings, class_labels)
    solvers = {
        "dpmpp_3m_sde": sample_dpmpp_3m_sde,
        "euler_maruyama": sample_euler_maruyama,
        "predictor_corrector": sample_predictor_corrector,
    }
    return solvers.get(settings.solver, sample_stochastic)(denoiser, latents, settings, class_labels, noise)
