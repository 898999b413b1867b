"""edm_ray: train an EDM denoiser on your images and find the best sampler for it, on any Ray cluster.

    import edm_ray as edm

    data = edm.prepare("digits", "data")
    model = edm.train(data, "digits", "run")
    reference = edm.reference(data, "reference", extractor="digits")
    print(edm.evaluate(model, reference, edm.Heun(num_steps=18, s_churn=5), num=500).describe())

Names are loaded when they are first used, so importing the package takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edm_ray.data.manifest import DataSet as DataSet
    from edm_ray.data.manifest import open_dataset as open_dataset
    from edm_ray.diffusion.analysis.analytic import GaussianMixture as GaussianMixture
    from edm_ray.diffusion.analysis.analytic import IdealDenoiser as IdealDenoiser
    from edm_ray.diffusion.analysis.inversion import invert as invert
    from edm_ray.diffusion.analysis.inversion import reconstruct as reconstruct
    from edm_ray.diffusion.analysis.truncation import truncation_errors as truncation_errors
    from edm_ray.diffusion.denoiser import AtLevel as AtLevel
    from edm_ray.diffusion.denoiser import Denoiser as Denoiser
    from edm_ray.diffusion.denoiser import Guided as Guided
    from edm_ray.diffusion.labels import one_hot_labels as one_hot_labels
    from edm_ray.diffusion.noise import Path as Path
    from edm_ray.diffusion.objectives import objective as objective
    from edm_ray.diffusion.preconditioning import EDM as EDM
    from edm_ray.diffusion.preconditioning import IDDPM as IDDPM
    from edm_ray.diffusion.preconditioning import VE as VE
    from edm_ray.diffusion.preconditioning import VP as VP
    from edm_ray.diffusion.samplers import DEIS as DEIS
    from edm_ray.diffusion.samplers import DPM2 as DPM2
    from edm_ray.diffusion.samplers import IPNDM as IPNDM
    from edm_ray.diffusion.samplers import RK45 as RK45
    from edm_ray.diffusion.samplers import DPMpp2M as DPMpp2M
    from edm_ray.diffusion.samplers import DPMpp2MSDE as DPMpp2MSDE
    from edm_ray.diffusion.samplers import DPMpp3M as DPMpp3M
    from edm_ray.diffusion.samplers import DPMpp3MSDE as DPMpp3MSDE
    from edm_ray.diffusion.samplers import Euler as Euler
    from edm_ray.diffusion.samplers import EulerMaruyama as EulerMaruyama
    from edm_ray.diffusion.samplers import Evaluation as Evaluation
    from edm_ray.diffusion.samplers import Heun as Heun
    from edm_ray.diffusion.samplers import Noise as Noise
    from edm_ray.diffusion.samplers import PredictorCorrector as PredictorCorrector
    from edm_ray.diffusion.samplers import Sampler as Sampler
    from edm_ray.diffusion.samplers import SASolver as SASolver
    from edm_ray.diffusion.samplers import UniPC as UniPC
    from edm_ray.diffusion.samplers import sample as sample
    from edm_ray.diffusion.samplers import sampler as sampler
    from edm_ray.distributed.executor import Ray as Ray
    from edm_ray.errors import InputError as InputError
    from edm_ray.execution.local import Local as Local
    from edm_ray.models.denoiser import ModelDenoiser as ModelDenoiser
    from edm_ray.models.directory import load_model as load_model
    from edm_ray.search.plan import sweep_plan as sweep_plan
    from edm_ray.seeding import image_noise as image_noise
    from edm_ray.tasks.evaluate import evaluate as evaluate
    from edm_ray.tasks.evaluate import follow as follow
    from edm_ray.tasks.fid import fid as fid
    from edm_ray.tasks.generate import generate as generate
    from edm_ray.tasks.models import import_model as import_model
    from edm_ray.tasks.models import preset as preset
    from edm_ray.tasks.models import save_model as save_model
    from edm_ray.tasks.models import write_dataset as write_dataset
    from edm_ray.tasks.prepare import prepare as prepare
    from edm_ray.tasks.reference import reference as reference
    from edm_ray.tasks.sweep import sweep as sweep
    from edm_ray.tasks.train import train as train
    from edm_ray.tasks.trainings import evaluate_trainings as evaluate_trainings
    from edm_ray.version import __version__ as __version__

_HOMES: dict[str, tuple[str, ...]] = {
    "edm_ray.data.manifest": ("DataSet", "open_dataset"),
    "edm_ray.diffusion.analysis.analytic": ("GaussianMixture", "IdealDenoiser"),
    "edm_ray.diffusion.analysis.inversion": ("invert", "reconstruct"),
    "edm_ray.diffusion.analysis.truncation": ("truncation_errors",),
    "edm_ray.diffusion.denoiser": ("AtLevel", "Denoiser", "Guided"),
    "edm_ray.diffusion.labels": ("one_hot_labels",),
    "edm_ray.diffusion.noise": ("Path",),
    "edm_ray.diffusion.objectives": ("objective",),
    "edm_ray.diffusion.preconditioning": ("EDM", "IDDPM", "VE", "VP"),
    "edm_ray.diffusion.samplers": (
        "DEIS",
        "DPM2",
        "DPMpp2M",
        "DPMpp2MSDE",
        "DPMpp3M",
        "DPMpp3MSDE",
        "Euler",
        "EulerMaruyama",
        "Evaluation",
        "Heun",
        "IPNDM",
        "Noise",
        "PredictorCorrector",
        "RK45",
        "SASolver",
        "Sampler",
        "UniPC",
        "sample",
        "sampler",
    ),
    "edm_ray.distributed.executor": ("Ray",),
    "edm_ray.errors": ("InputError",),
    "edm_ray.execution.local": ("Local",),
    "edm_ray.models.denoiser": ("ModelDenoiser",),
    "edm_ray.models.directory": ("load_model",),
    "edm_ray.search.plan": ("sweep_plan",),
    "edm_ray.seeding": ("image_noise",),
    "edm_ray.tasks.evaluate": ("evaluate", "follow"),
    "edm_ray.tasks.fid": ("fid",),
    "edm_ray.tasks.generate": ("generate",),
    "edm_ray.tasks.models": ("import_model", "preset", "save_model", "write_dataset"),
    "edm_ray.tasks.prepare": ("prepare",),
    "edm_ray.tasks.reference": ("reference",),
    "edm_ray.tasks.sweep": ("sweep",),
    "edm_ray.tasks.train": ("train",),
    "edm_ray.tasks.trainings": ("evaluate_trainings",),
    "edm_ray.version": ("__version__",),
}
"""Module -> the names of the face that live there; the imports above say the same to type checkers."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "DEIS",
    "DPM2",
    "EDM",
    "IDDPM",
    "IPNDM",
    "RK45",
    "VE",
    "VP",
    "AtLevel",
    "DPMpp2M",
    "DPMpp2MSDE",
    "DPMpp3M",
    "DPMpp3MSDE",
    "DataSet",
    "Denoiser",
    "Euler",
    "EulerMaruyama",
    "Evaluation",
    "GaussianMixture",
    "Guided",
    "Heun",
    "IdealDenoiser",
    "InputError",
    "Local",
    "ModelDenoiser",
    "Noise",
    "Path",
    "PredictorCorrector",
    "Ray",
    "SASolver",
    "Sampler",
    "UniPC",
    "__version__",
    "evaluate",
    "evaluate_trainings",
    "fid",
    "follow",
    "generate",
    "image_noise",
    "import_model",
    "invert",
    "load_model",
    "objective",
    "one_hot_labels",
    "open_dataset",
    "prepare",
    "preset",
    "reconstruct",
    "reference",
    "sample",
    "sampler",
    "save_model",
    "sweep",
    "sweep_plan",
    "train",
    "truncation_errors",
    "write_dataset",
]


if not TYPE_CHECKING:  # to a type checker a name that is not above is a mistake

    def __getattr__(name: str) -> Any:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'edm_ray' has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_HOME_OF[name]), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
