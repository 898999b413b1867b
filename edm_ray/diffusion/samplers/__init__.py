"""Samplers: settings, time steps, and one function that samples."""

from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.diffusion.samplers.stochastic import sample
from edm_ray.diffusion.samplers.time_steps import time_steps

__all__ = ["SamplerSettings", "sample", "time_steps"]
