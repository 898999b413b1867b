"""What is recorded, as data: samplers in the flat form that files and ``--set`` keep, runs as ``--set`` pairs, sweeps
as mappings. Nothing here knows how the package is laid out."""

from __future__ import annotations

import itertools
import math
from typing import Any

Flat = dict[str, Any]
DISCRETIZATIONS, SCHEDULES, SCALINGS = ("edm", "vp", "ve", "iddpm"), ("linear", "vp", "ve"), ("none", "vp")
CHURN: Flat = {"s_churn": 10.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.007}
BINS = [[0.0, 0.5, 1.0], [0.5, 90.0, 3.0]]
RESTARTS = [[0.3, 5.0, 3, 2], [2.0, 20.0, 2, 1]]


def columns(**fields: Any) -> list[Flat]:
    """Every column of Table 1."""
    names = ("discretization", "schedule", "scaling")
    return [fields | dict(zip(names, row)) for row in itertools.product(DISCRETIZATIONS, SCHEDULES, SCALINGS)]


def paths(**fields: Any) -> list[Flat]:
    return [fields | {"schedule": a, "scaling": b} for a, b in itertools.product(SCHEDULES, SCALINGS)]


def levels(**fields: Any) -> list[Flat]:
    return [fields | {"discretization": each} for each in DISCRETIZATIONS]


SAMPLERS: list[Flat] = [
    *columns(solver="euler", num_steps=5),
    *columns(solver="heun", num_steps=4),
    *columns(solver="heun", num_steps=4, **CHURN),
    *paths(solver="rk45", tolerance=1e-4),
    *paths(solver="euler_maruyama", num_steps=5),
    *levels(solver="euler_maruyama", num_steps=5, schedule="ve", scaling="vp"),
    *levels(solver="predictor_corrector", num_steps=5),
    *levels(solver="predictor_corrector", num_steps=5, scaling="vp", snr=0.2, s_noise=0.99),
    *levels(solver="dpmpp_2m", num_steps=6),
    *levels(solver="dpmpp_3m_sde", num_steps=6),
    {"solver": "dpmpp_3m_sde", "num_steps": 6, "s_noise": 1.01},
    {"solver": "euler_maruyama", "num_steps": 6, "s_noise": 0.98},
    {"solver": "heun"},
    {"solver": "heun", "num_steps": 2},
    {"solver": "heun", "num_steps": 40, "s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},
    {"solver": "heun", "num_steps": 6, "rho": 3.0, "sigma_min": 0.01, "sigma_max": 60.0},
    *({"solver": "heun", "num_steps": 5, "alpha": alpha} for alpha in (0.5, 2 / 3, 1.1)),
    {"solver": "heun", "num_steps": 5, "alpha": 0.5, "schedule": "vp", "scaling": "vp", "discretization": "vp"},
    {"solver": "heun", "num_steps": 5, "alpha": 0.5, "s_churn": 10.0},
    *({"solver": solver, "num_steps": 6, "s_churn": 10.0} for solver in ("euler", "heun")),
    *({"solver": solver, "num_steps": 6, "s_churn": 1e6} for solver in ("euler", "heun")),
    {"solver": "heun", "num_steps": 6, "s_churn": 10.0, "s_tmin": 1.0},
    {"solver": "heun", "num_steps": 6, "s_churn": 10.0, "s_tmax": 0.001, "s_noise": 1.1},
    *({"solver": solver, "num_steps": 6, "churn_bins": BINS, "s_noise": 1.01} for solver in ("euler", "heun")),
    {"solver": "heun", "num_steps": 6, "churn_bins": [[0.0, 0.5, 2.0], [0.5, 90.0, 2.0]]},
    {"solver": "heun", "num_steps": 6, "churn_bins": [[0.0, 0.3, 2.0], [3.0, 10.0, 1.0]]},
    *({"solver": solver, "num_steps": 6, "restarts": RESTARTS} for solver in ("euler", "heun")),
    {"solver": "heun", "num_steps": 6, "restarts": RESTARTS, "schedule": "ve", "discretization": "ve", "rho": 5.0},
    {"solver": "heun", "num_steps": 6, "restarts": [[0.3, 5.0, 3, 1], [0.31, 5.0, 3, 1]], **CHURN},
    {"solver": "heun", "num_steps": 6, "restarts": [[5.0, 5.1, 2, 1]], "s_noise": 1.02},
    {"solver": "heun", "num_steps": 5, "discretization": "vp", "schedule": "vp", "scaling": "vp", "epsilon_s": 2e-3},
    {"solver": "heun", "num_steps": 5, "discretization": "iddpm", "c_1": 0.002, "c_2": 0.01, "num_train_steps": 500},
    {"solver": "heun", "num_steps": 5, "discretization": "iddpm", "sigma_min": 0.01, "sigma_max": 70.0},
]
"""Of the closed-form denoisers."""

GUIDED: list[Flat] = [
    {"solver": "heun", "num_steps": 5, "guidance": 2.0},
    {"solver": "heun", "num_steps": 5, "guidance": 2.0, "guidance_min": 0.1, "guidance_max": 10.0},
    {"solver": "heun", "num_steps": 5, "guidance": 0.5, "guidance_max": 10.0, **CHURN},
    {"solver": "heun", "num_steps": 5, "guidance": 2.0, "guidance_min": 90.0},
    {"solver": "heun", "num_steps": 5, "guidance": 2.0, "guidance_max": 10.0, "restarts": RESTARTS},
    {"solver": "heun", "num_steps": 5, "guidance": 2.0, "alpha": 0.5, "guidance_min": 0.1, "guidance_max": 10.0},
    {"solver": "euler", "num_steps": 5, "guidance": 2.0, "guidance_min": 0.1, "schedule": "vp", "scaling": "vp"},
    {"solver": "rk45", "tolerance": 1e-3, "guidance": 2.0, "guidance_max": 10.0},
    *(
        {"solver": solver, "num_steps": 5, "guidance": 2.0, "guidance_min": 0.1, "guidance_max": 10.0}
        for solver in ("dpmpp_2m", "dpmpp_3m_sde", "euler_maruyama", "predictor_corrector")
    ),
]
"""Of a denoiser with classes (classifier-free) and of one with a guide of its own (autoguidance)."""

ROUNDED: list[Flat] = [
    *levels(solver="heun", num_steps=6, **CHURN),
    *columns(solver="heun", num_steps=4)[2::5],
    {"solver": "euler", "num_steps": 12, "s_churn": 2.0},
    {"solver": "heun", "num_steps": 40, "s_churn": 5.0},
    {"solver": "heun", "num_steps": 6, "restarts": RESTARTS},
    {"solver": "heun", "num_steps": 6, "restarts": [[0.3, 60.0, 3, 1]]},
    {"solver": "dpmpp_2m", "num_steps": 30},
    {"solver": "dpmpp_3m_sde", "num_steps": 30},
    {"solver": "predictor_corrector", "num_steps": 6},
    {"solver": "euler_maruyama", "num_steps": 6},
    {"solver": "rk45", "tolerance": 1e-3},
]
"""Of a denoiser that knows some noise levels only: sigma_min, sigma_max, round_sigma."""

REFUSED: list[Flat] = [
    {"solver": "dpmpp_2m", "s_churn": 1.0},
    {"solver": "rk45", "restarts": RESTARTS},
    {"solver": "heun", "num_steps": 1},
    {"solver": "heun", "sigma_min": 2.0, "sigma_max": 1.0},
    {"solver": "heun", "s_churn": 1.0, "churn_bins": BINS},
    {"solver": "heun", "s_tmin": 2.0, "s_tmax": 1.0},
    {"solver": "heun", "guidance": -1.0},
    {"solver": "heun", "guidance": math.nan},
    {"solver": "ddim"},
]

# -- networks ----------------------------------------------------------------------------------------------------------

SMALL = ["denoiser.network.model_channels=8"]
NETWORKS: dict[str, list[str]] = {
    "edm": [],
    "vp": ["denoiser.preconditioning.kind=vp", *SMALL],
    "ve": ["denoiser.preconditioning.kind=ve", *SMALL],
    "iddpm": ["denoiser.preconditioning.kind=iddpm", *SMALL],
    "ncsnpp": ["denoiser.network.kind=ncsnpp", "denoiser.network.channel_mult=[1, 2]", *SMALL],
    "adm": ["denoiser.network.kind=adm", "denoiser.network.channel_mult=[1, 2]", "denoiser.network.model_channels=32",
            "denoiser.network.attn_resolutions=[4]"],
    "attention": ["denoiser.network.channel_mult=[1, 2]", "denoiser.network.attn_resolutions=[8]",
                  "denoiser.network.augment_dim=9"],
}  # fmt: skip
"""``--set`` pairs over preset tiny, for 8x8 images of one channel and ten classes."""

GENERATED: list[tuple[str, Flat, str]] = [
    *((name, {"solver": "heun", "num_steps": 5, **CHURN}, "random") for name in NETWORKS),
    *((name, {"solver": "predictor_corrector", "num_steps": 5}, "balanced") for name in ("vp", "ve", "iddpm")),
    ("edm", {"solver": "heun", "num_steps": 6}, "3"),
    ("edm", {"solver": "heun", "num_steps": 5, "guidance": 2.0, "guidance_max": 10.0}, "random"),
    ("edm", {"solver": "heun", "num_steps": 5, "restarts": RESTARTS}, "balanced"),
    ("edm", {"solver": "euler", "num_steps": 6, "s_churn": 5.0}, "random"),
    ("edm", {"solver": "rk45", "tolerance": 0.1}, "random"),
    ("edm", {"solver": "euler_maruyama", "num_steps": 6}, "random"),
    ("edm", {"solver": "dpmpp_2m", "num_steps": 6}, "random"),
    ("edm", {"solver": "dpmpp_3m_sde", "num_steps": 6}, "random"),
    ("vp", {"solver": "euler", "discretization": "vp", "schedule": "vp", "scaling": "vp", "num_steps": 6}, "random"),
    ("iddpm", {"solver": "heun", "discretization": "iddpm", "num_steps": 6}, "random"),
]
"""(network, sampler, policy of labels): uint8 images."""

# -- training ----------------------------------------------------------------------------------------------------------

SHORT = ["total_kimg=0.096", "tick_kimg=0.048", "checkpoint_kimg=0.048"]
EVERYTHING = [
    *["augment.probability=0.5", "denoiser.network.augment_dim=9", "denoiser.network.dropout=0.2", "batch_size=25"],
    *["denoiser.network.label_dropout=0.2", "optimizer.grad_clip=1", "micro_batch=4", "xflip=true"],
    *["ema.sigma_rels=[0.1]", "ema.snapshot_kimg=0.05", "total_kimg=0.1", "tick_kimg=0.05"],
]
TRAININGS: dict[str, tuple[int, list[str]]] = {
    "tiny": (1, SHORT),
    "everything": (1, EVERYTHING),
    "everything, 2 workers": (2, EVERYTHING),
    "everything, 3 workers": (3, EVERYTHING),
    "blocks": (1, [*SHORT, "order=blocks", "lanes=4", "seed=7"]),
    "bf16": (1, [*SHORT, "precision=bf16"]),
    **{name: (1, [*SHORT, *NETWORKS[name]]) for name in ("ncsnpp", "adm", "attention")},
    **{name: (1, [*SHORT, *NETWORKS[name], f"objective.kind={name}"]) for name in ("vp", "ve", "iddpm")},
    "edm, objective vp": (1, [*SHORT, "objective.kind=vp"]),
    "ve, objective edm": (1, [*SHORT, *NETWORKS["ve"], "objective.p_mean=-0.8", "objective.p_std=1.6"]),
}
"""(workers, ``--set`` pairs over preset tiny)."""
METRICS = ("nimg", "total", "loss", "loss_by_sigma", "grad_norm", "nonfinite", "steps", "lr", "ema_beta")

# -- sweeps ------------------------------------------------------------------------------------------------------------

SPACE = """
name: golden
search:
  churn_fraction: {low: 0, high: 1}
  s_tmin: {low: 0.01, high: 0.5, scale: log}
  s_tmax: {low: 1, high: 80, scale: log}
  s_noise: {low: 1.0, high: 1.01}
starts:
  paper: {s_churn: 40, s_tmin: 0.05, s_tmax: 50, s_noise: 1.003}
paper: paper
"""
SOLVERS = """
name: solvers
search:
  solver: {choices: [heun, euler, dpmpp_2m]}
  num_steps: {low: 5, high: 30, scale: log, integer: true}
  rho: {low: 3, high: 10}
  churn_fraction: {grid: [0, 0.1, 0.2, 0.5]}
"""
PLAN: dict[str, Any] = {
    "chunk_size": 100, "initial_chunks": 2, "max_chunks": 8, "num_line": 4, "num_global": 8, "num_model": 6,
    "confirm_chunks": 10, "grid_points": 2,
}  # fmt: skip
SWEEPS: dict[str, tuple[str, dict[str, Any], int]] = {
    **{name: (SPACE, PLAN | {"strategy": name}, 0) for name in ("race", "grid", "random", "optuna", "asha")},
    "race, budget": (SPACE, PLAN | {"strategy": "race", "budget_images": 9000}, 1),
    "race, nfe": (SOLVERS, PLAN | {"strategy": "race", "objective": ["fid", "nfe"]}, 2),
    "random, nfe": (SOLVERS, PLAN | {"strategy": "random", "objective": ["fid", "nfe"]}, 2),
}
"""(space, plan, seed)."""


def landscape(flat: Flat) -> float:
    """FID of a sampler, made up: best near S_churn 4, falling with the number of steps."""
    churn, steps = flat.get("s_churn", 0.0), flat.get("num_steps", 18)
    kind = {"heun": 0.0, "euler": 0.4, "dpmpp_2m": 0.1}[flat["solver"]]
    return 5.0 + kind + 0.1 * (churn - 4.0) ** 2 + 20 * abs(flat.get("s_noise", 1.0) - 1.0) + 30 / steps**2


def name_of(flat: Flat) -> str:
    return " ".join(f"{key}={value!r}" for key, value in flat.items()).replace("'", "")
