"""Samplers: one frozen class a solver, the flat form of files, and one function that samples."""

from edm_ray.diffusion.samplers.base import SOLVERS, Noise, Sampler, sample
from edm_ray.diffusion.samplers.flat import read_sampler, sampler, setting_names, with_changes
from edm_ray.diffusion.samplers.heun import Euler, Heun
from edm_ray.diffusion.samplers.ipndm import IPNDM
from edm_ray.diffusion.samplers.multistep import DPMpp2M, DPMpp3MSDE
from edm_ray.diffusion.samplers.rk45 import RK45
from edm_ray.diffusion.samplers.song import EulerMaruyama, PredictorCorrector

__all__ = [
    "IPNDM",
    "RK45",
    "SOLVERS",
    "DPMpp2M",
    "DPMpp3MSDE",
    "Euler",
    "EulerMaruyama",
    "Heun",
    "Noise",
    "PredictorCorrector",
    "Sampler",
    "read_sampler",
    "sample",
    "sampler",
    "setting_names",
    "with_changes",
]
