"""Schedules, preconditioning and objectives against Table 1."""

from __future__ import annotations

import math

import pytest
import torch

from edm_ray.diffusion.analysis.analytic import GaussianMixture
from edm_ray.diffusion.noise import VE, VP, Linear, Path, iddpm_grid
from edm_ray.diffusion.objectives import OBJECTIVES, loss_by_sigma, objective
from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.errors import InputError


@pytest.mark.parametrize("schedule", [Linear(), VE(), VP(), VP.from_range(0.002, 80.0)])
@pytest.mark.parametrize("scaling", ["none", "vp"])
def test_inverse_and_derivatives_belong_to_the_schedule(schedule, scaling) -> None:
    path = Path(schedule, scaling)
    for sigma in (0.01, 0.3, 2.0, 60.0):
        t = path.sigma_inv(sigma)
        assert path.sigma(t) == pytest.approx(sigma, rel=1e-9)
        h = 1e-5 * t
        assert path.sigma_deriv(t) == pytest.approx((path.sigma(t + h) - path.sigma(t - h)) / (2 * h), rel=1e-6)
        assert path.s_deriv(t) == pytest.approx((path.s(t + h) - path.s(t - h)) / (2 * h), rel=1e-5, abs=1e-9)


def test_vp_betas_are_solved_from_the_range() -> None:
    vp = VP.from_range(0.002, 80.0)
    assert vp.sigma(1e-3) == pytest.approx(0.002, rel=1e-6)
    assert vp.sigma(1.0) == pytest.approx(80.0)
    original = VP.from_range(VP().sigma(1e-3), VP().sigma(1.0))
    assert (original.beta_d, original.beta_min) == pytest.approx((19.9, 0.1))


def test_iddpm_grid_has_its_known_values() -> None:
    u = iddpm_grid(1000, 0.001, 0.008)
    assert len(u) == 1001 and u[1000] == 0
    assert u[0] == pytest.approx(20291, rel=1e-4)
    assert u[8] == pytest.approx(80.204, rel=1e-4)
    assert u[999] == pytest.approx(0.00642247, rel=1e-6)


class Recorder(torch.nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.channels, self.label_dim = channels, 0

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        self.seen = x, noise_labels, class_labels
        return torch.ones(len(x), self.channels, *x.shape[2:], dtype=torch.bfloat16) * 0.5


@pytest.mark.parametrize("kind", ["edm", "vp", "ve", "iddpm"])
def test_preconditioning_is_table_1(kind) -> None:
    net = Recorder(6 if kind == "iddpm" else 3)
    denoiser = PRECONDITIONERS[kind](net, **({"sigma_data": 0.7} if kind == "edm" else {}))
    sigma = float(denoiser.round_sigma(torch.tensor([1.3], dtype=torch.float64)))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = denoiser(x, torch.tensor(sigma))
    root = math.sqrt(sigma**2 + 0.49)
    t = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
    grid = iddpm_grid(1000, 0.001, 0.008)
    j = min(range(1000), key=lambda k: abs(grid[k] - sigma))
    skip, scale, into, label = {
        "edm": (0.49 / root**2, sigma * 0.7 / root, 1 / root, math.log(sigma) / 4),
        "vp": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * t),
        "ve": (1, sigma, 1, math.log(sigma / 2)),
        "iddpm": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 - j),
    }[kind]
    assert out.dtype == torch.float32 and net.seen[0].dtype == torch.float32
    assert torch.allclose(net.seen[0].double(), into * x, atol=1e-6)
    assert net.seen[1].tolist() == pytest.approx([label] * 2, rel=1e-5)
    assert torch.allclose(out.double(), skip * x + scale * 0.5, atol=1e-5)


def test_edm_preconditioning_gives_unit_inputs_and_unit_targets() -> None:
    y = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 0.5
    n = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    denoiser = PRECONDITIONERS["edm"](Recorder(), sigma_data=0.5)
    for sigma in (0.01, 0.5, 20.0):
        skip, out, into, _ = (c.item() for c in denoiser.coefficients(torch.tensor([sigma]).reshape(1, 1, 1, 1)))
        assert (into * (y + sigma * n)).std().item() == pytest.approx(1, abs=0.02)
        assert ((y - skip * (y + sigma * n)) / out).std().item() == pytest.approx(1, abs=0.02)


def test_names_in_the_state_dict_start_with_model() -> None:
    for kind, make in PRECONDITIONERS.items():
        names = set(make(torch.nn.Linear(2, 2)).state_dict())
        assert names == {"model.weight", "model.bias"} | ({"u"} if kind == "iddpm" else set())


def test_known_ranges_of_noise_levels() -> None:
    made = {kind: make(Recorder()) for kind, make in PRECONDITIONERS.items()}
    assert (made["edm"].sigma_min, made["edm"].sigma_max) == (0.0, math.inf)
    assert (made["ve"].sigma_min, made["ve"].sigma_max) == (0.02, 100.0)
    assert made["vp"].sigma_max == pytest.approx(152.16697692871094, rel=1e-5)
    assert made["iddpm"].sigma_max == pytest.approx(20291.17, rel=1e-6)


def test_wrong_shapes_and_sigma_data_are_refused() -> None:
    denoiser = PRECONDITIONERS["edm"](Recorder())
    with pytest.raises(InputError, match="x="):
        denoiser(torch.zeros(3, 4, 4), torch.tensor(1.0))
    with pytest.raises(InputError, match="sigma="):
        denoiser(torch.zeros(3, 3, 4, 4), torch.ones(2))
    with pytest.raises(InputError, match="sigma_data"):
        PRECONDITIONERS["edm"](Recorder(), sigma_data=math.nan)


def test_training_distributions_are_table_1() -> None:
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    normal = torch.erfinv(2 * u - 1) * math.sqrt(2)
    log = OBJECTIVES["edm"]().sigma(normal).log()
    assert (log.mean().item(), log.std().item()) == pytest.approx((-1.2, 1.2), abs=1e-3)
    ve = OBJECTIVES["ve"]().sigma(u).log()
    assert (ve.min().item(), ve.max().item()) == pytest.approx((math.log(0.02), math.log(100)), abs=1e-3)
    assert ve.mean().item() == pytest.approx((math.log(0.02) + math.log(100)) / 2, abs=1e-3)
    vp = OBJECTIVES["vp"]().sigma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)).tolist()
    assert vp == pytest.approx([VP().sigma(t) for t in (1.0, 0.500005, 1e-5)], rel=1e-6)
    levels, counts = OBJECTIVES["iddpm"]().sigma(u).unique(return_counts=True)
    assert len(levels) == 1000 and counts.min() == counts.max() == 100


@pytest.mark.parametrize("kind", ["edm", "vp", "ve", "iddpm"])
def test_loss_of_gaussian_data_is_its_posterior_variance(gaussian, kind) -> None:
    """E (D - y)^2 = sigma^2 sd^2 / (sigma^2 + sd^2) for the ideal denoiser of N(mean, sd^2)."""
    made = OBJECTIVES[kind](**({"p_mean": -1.2, "p_std": 1.2, "sigma_data": 0.5} if kind == "edm" else {}))
    generator = torch.Generator().manual_seed(0)
    y = 0.3 + 0.5 * torch.randn(64, 1, 32, 32, dtype=torch.float64, generator=generator)
    n = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    losses = loss_by_sigma(gaussian, made, y, n, [0.1, 1.0, 10.0]).mean(1)
    for sigma, loss in zip((0.1, 1.0, 10.0), losses.tolist()):
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2 if kind == "edm" else 1 / sigma**2
        assert loss == pytest.approx(weight * sigma**2 * 0.25 / (sigma**2 + 0.25), rel=0.02)
    draw = torch.full((64,), 0.4, dtype=torch.float64)
    level = made.sigma(draw)[0].item()
    loss = made.loss(lambda x, s, *rest: gaussian(x, s), y, draw, n)
    assert loss.shape == y.shape
    expected = loss_by_sigma(gaussian, made, y, n, [level])[0]
    assert torch.allclose(loss.flatten(1).mean(1), expected, rtol=1e-9)


def test_objectives_have_the_papers_constants_and_take_others_and_any_denoiser(latents) -> None:
    assert OBJECTIVES["edm"]() == objective("edm")
    assert objective("edm", p_std=2.0).p_std == 2.0 and objective("edm").p_std == 1.2
    assert {name: cls.draw for name, cls in OBJECTIVES.items()} == {
        "edm": "normal",
        "vp": "uniform",
        "ve": "uniform",
        "iddpm": "uniform",
    }
    mixture = GaussianMixture(torch.zeros(1, 3, 2, 2), torch.ones(1), torch.ones(1))
    draw, noise = torch.tensor([0.3, 0.6], dtype=torch.float64), torch.ones_like(latents)
    for name in OBJECTIVES:
        made = objective(name)
        sigma = made.sigma(draw).reshape(-1, 1, 1, 1)
        expected = made.weight(sigma) * ((latents + sigma) / (1 + sigma**2) - latents) ** 2
        assert torch.allclose(made.loss(mixture, latents, draw, noise), expected, rtol=1e-12)
