"""Samplers: settings, time steps, and one function that samples."""

from edm_ray.diffusion.samplers.sample import sample
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.time_steps import noise_levels, time_steps

__all__ = ["SamplerSettings", "noise_levels", "sample", "time_steps"]
