"""Samplers: one frozen class a solver, the flat form of files, and one function that samples."""

from edm_ray.diffusion.samplers.base import SOLVERS, Noise, Sampler, sample
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.heun import Euler, Heun

# isort: split
# Solvers are listed in the order of their definition: the paper's own first.
from edm_ray.diffusion.samplers.deis import DEIS
from edm_ray.diffusion.samplers.dpm_2 import DPM2
from edm_ray.diffusion.samplers.dpmpp_2m import DPMpp2M
from edm_ray.diffusion.samplers.dpmpp_2m_sde import DPMpp2MSDE
from edm_ray.diffusion.samplers.dpmpp_3m import DPMpp3M
from edm_ray.diffusion.samplers.dpmpp_3m_sde import DPMpp3MSDE
from edm_ray.diffusion.samplers.flat import read_sampler, sampler, setting_names, with_changes
from edm_ray.diffusion.samplers.ipndm import IPNDM
from edm_ray.diffusion.samplers.rk45 import RK45
from edm_ray.diffusion.samplers.sa_solver import SASolver
from edm_ray.diffusion.samplers.song import EulerMaruyama, PredictorCorrector
from edm_ray.diffusion.samplers.unipc import UniPC

__all__ = [
    "DEIS",
    "DPM2",
    "IPNDM",
    "RK45",
    "SOLVERS",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3M",
    "DPMpp3MSDE",
    "Euler",
    "EulerMaruyama",
    "Evaluation",
    "Heun",
    "Noise",
    "PredictorCorrector",
    "SASolver",
    "Sampler",
    "UniPC",
    "read_sampler",
    "sample",
    "sampler",
    "setting_names",
    "with_changes",
]
