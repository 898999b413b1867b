"""Every preconditioning with every objective, with constants that are not Table 1's: training noise levels lie where
the denoiser knows them, and p_train and lambda are what Table 1 says with those constants."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch

from edm_ray.config.load import configure
from edm_ray.config.presets import preset
from edm_ray.config.shape import DataShape
from edm_ray.config.training import TrainingConfig
from edm_ray.diffusion.noise import iddpm_grid
from edm_ray.diffusion.objectives import objective
from edm_ray.errors import InputError
from edm_ray.networks.build import build_denoiser
from edm_ray.training.loss import make_objective

PRECONDITIONINGS: dict[str, dict[str, float]] = {
    "edm": {"sigma_data": 0.8, "sigma_min": 0.001, "sigma_max": 900},
    "vp": {"beta_d": 25, "beta_min": 0.3, "epsilon_t": 1e-6},
    "ve": {"sigma_min": 0.003, "sigma_max": 700},
    "iddpm": {"num_train_steps": 500, "c_1": 0.01, "c_2": 0.004},
}
OBJECTIVES: dict[str, dict[str, float]] = {
    "edm": {"p_mean": -0.5, "p_std": 1.5},
    "vp": {"beta_d": 5, "beta_min": 0.4, "epsilon_t": 1e-3},
    "ve": {"sigma_min": 0.05, "sigma_max": 60},
    "iddpm": {"num_train_steps": 50, "c_1": 0.2, "c_2": 0.1},
}
"""Beside a preconditioning of another kind."""
D, OBJECTIVE = "denoiser.preconditioning.kind", "objective.kind"
NUM = 20_000
DRAWS = (torch.arange(NUM, dtype=torch.float64) + 0.5) / NUM


def configuration(preconditioning: str, kind: str) -> TrainingConfig:
    pairs = [f"denoiser.preconditioning.kind={preconditioning}", f"objective.kind={kind}"]
    pairs += [f"denoiser.preconditioning.{name}={value}" for name, value in PRECONDITIONINGS[preconditioning].items()]
    if kind != preconditioning or kind == "edm":
        pairs += [f"objective.{name}={value}" for name, value in OBJECTIVES[kind].items()]
    return configure(preset("tiny", DataShape(resolution=8, channels=1, num_classes=10)), None, pairs)


def grid(num_train_steps: float, c_1: float, c_2: float) -> list[float]:
    """u_0..u_{M-1} by Table 1, in float64 throughout."""
    steps = int(num_train_steps)
    alpha = [math.sin(0.5 * math.pi * j / (steps * (c_2 + 1))) ** 2 for j in range(steps + 1)]
    levels = [0.0]
    for j in range(steps, 0, -1):
        levels.insert(0, math.sqrt((levels[0] ** 2 + 1) / max(alpha[j - 1] / alpha[j], c_1) - 1))
    return levels[:-1]


def quantiles(kind: str, constants: dict[str, float], low: float, high: float) -> np.ndarray:
    """Noise levels of the draws in Table 1, ascending: the inverse of p_train's distribution function."""
    u = DRAWS.numpy()
    if kind == "edm":
        log = NormalDist(constants["p_mean"], constants["p_std"])
        below = log.cdf(math.log(low)) if low > 0 else 0.0
        above = log.cdf(math.log(high)) if high < math.inf else 1.0
        return np.exp([log.inv_cdf(below + (above - below) * share) for share in u])
    if kind == "ve":
        return constants["sigma_min"] * (constants["sigma_max"] / constants["sigma_min"]) ** u
    if kind == "vp":
        t = constants["epsilon_t"] + (1 - constants["epsilon_t"]) * u
        return np.sqrt(np.expm1(0.5 * constants["beta_d"] * t**2 + constants["beta_min"] * t))
    return np.sort(np.repeat(grid(**constants), NUM // int(constants["num_train_steps"])))


@pytest.mark.parametrize("kind", list(OBJECTIVES))
@pytest.mark.parametrize("preconditioning", list(PRECONDITIONINGS))
def test_training_noise_levels_lie_in_the_denoisers_range_and_follow_table_1(preconditioning: str, kind: str) -> None:
    config = configuration(preconditioning, kind)
    denoiser, made = build_denoiser(config.denoiser), make_objective(config)
    draws = DRAWS if made.draw == "uniform" else torch.special.ndtri(DRAWS)
    for dtype in (torch.float64, torch.float32):
        sigma = made.sigma(draws.to(dtype))
        assert float(sigma.min()) >= denoiser.sigma_min * (1 - 1e-5)
        assert float(sigma.max()) <= denoiser.sigma_max * (1 + 1e-5)
    shared = kind == preconditioning and kind != "edm"
    constants = PRECONDITIONINGS[kind] if shared else OBJECTIVES[kind]
    levels = made.sigma(draws).sort().values
    expected = quantiles(kind, constants, denoiser.sigma_min, denoiser.sigma_max)
    # The iDDPM grid is evaluated in float32, as the networks were trained.
    np.testing.assert_allclose(levels.numpy(), expected, rtol=5e-3 if kind == "iddpm" else 1e-5)
    weight = 1 / levels**2
    if kind == "edm":
        data = 0.8 if preconditioning == "edm" else 0.5
        weight = (levels**2 + data**2) / (levels * data) ** 2
    torch.testing.assert_close(made.weight(levels), weight)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        loss = made.loss(denoiser, images, draws[:: NUM // 64][:64].float(), torch.randn_like(images))
    assert bool(loss.isfinite().all())


def test_an_objective_of_the_preconditionings_kind_takes_its_constants() -> None:
    """beta_d = 5 around an objective with beta_d = 19.9 put half of the training above the denoiser's sigma_max."""
    pairs = ["denoiser.preconditioning.kind=vp", "objective.kind=vp", "denoiser.preconditioning.beta_d=5"]
    config = configure(preset("tiny", DataShape(resolution=8, channels=1, num_classes=10)), None, pairs)
    assert make_objective(config) == objective("vp", beta_d=5.0)
    assert float(make_objective(config).sigma(DRAWS).max()) <= build_denoiser(config.denoiser).sigma_max


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        (
            {D: "ve", OBJECTIVE: "vp"},
            "objective.kind='vp' trains on noise levels 0.001.*preconditioning.kind='ve' knows 0.02..100",
        ),
        ({D: "vp", OBJECTIVE: "iddpm"}, "objective.kind='iddpm' trains on .*'vp' knows"),
        (
            {"denoiser.preconditioning.sigma_max": 50, OBJECTIVE: "ve"},
            "'ve' trains on noise levels 0.02..100.*'edm' knows 0..50",
        ),
        (
            {D: "vp", OBJECTIVE: "vp", "objective.beta_d": 3},
            "objective.beta_d=3.0 .*preconditioning.beta_d=19.9, since both are vp",
        ),
        ({"denoiser.preconditioning.sigma_max": 0.01}, "objective.p_mean=-1.2 is not allowed: .* lie in 0..0.01"),
        ({"objective.p_std": 0}, "objective.p_std=0.0"),
        ({OBJECTIVE: "vp", "objective.beta_d": -1}, "objective.beta_d=-1.0"),
        ({OBJECTIVE: "ve", "objective.sigma_min": 0}, "objective.sigma_min=0.0"),
    ],
)
def test_noise_levels_that_the_denoiser_does_not_know_are_refused_by_the_configuration(
    pairs: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        configure(
            preset("tiny", DataShape(resolution=8, channels=1, num_classes=10)),
            None,
            [f"{key}={value}" for key, value in pairs.items()],
        )


def test_a_log_normal_objective_is_cut_to_the_range_and_left_alone_where_there_is_none() -> None:
    draws = torch.special.ndtri(DRAWS)
    assert torch.equal(objective("edm").sigma(draws), (draws * 1.2 - 1.2).exp())
    cut = objective("edm", sigma_min=0.02, sigma_max=100.0).sigma(draws)
    assert float(cut.min()) >= 0.02 and len(cut.unique()) == len(cut)


def test_an_objective_is_made_by_name_and_refuses_what_its_kind_does_not_have() -> None:
    with pytest.raises(InputError, match=r"objective.kind='ddpm' is not allowed: edm, vp, ve, iddpm"):
        objective("ddpm")
    with pytest.raises(InputError, match=r"objective.beta=5 is not allowed: vp has beta_d, beta_min, epsilon_t"):
        objective("vp", beta=5)
    with pytest.raises(InputError, match=r"objective.epsilon_t=2"):
        objective("vp", epsilon_t=2)


@pytest.mark.parametrize("single", [True, False])
def test_the_levels_of_iddpm_are_those_of_any_processor(monkeypatch, single: bool) -> None:
    """They are part of what names an image. PyTorch's square root is a unit off on some processors; Python's is not."""
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda self: pytest.fail("not the same on every processor"))
    iddpm_grid.cache_clear()
    found = iddpm_grid(1000, 0.001, 0.008, single)
    alpha = (0.5 * math.pi * torch.arange(1001) / 1000 / 1.008).sin() ** 2
    ratio = (alpha[:-1] / alpha[1:]).clip(min=0.001).tolist()
    rounded = (lambda value: float(np.float32(value))) if single else float
    u = 0.0
    for j in range(1000, 0, -1):
        u = rounded(math.sqrt(rounded(rounded(rounded(rounded(u * u) + 1) / ratio[j - 1]) - 1)))
        assert found[j - 1] == u
