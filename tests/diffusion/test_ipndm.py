"""iPNDM against closed forms: Euler at order 1, its order of convergence, exact on slopes of low degree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edm_ray.diffusion.samplers import Euler, sample, sampler
from edm_ray.errors import InputError


def test_order_1_is_euler(gaussian, latents):
    levels = tuple(np.geomspace(20.0, 0.05, 9))
    ours = sample(gaussian, latents, sampler(solver="ipndm", order=1, sigmas=levels))
    assert torch.allclose(ours, sample(gaussian, latents, Euler(sigmas=levels)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_it_converges_at_its_order_on_equal_steps(gaussian, latents, order):
    """Global error h^order: the first steps, of lower order, start on the slope that the data's spread bounds."""
    counts, errors = [40, 80, 160], []
    for count in counts:
        levels = tuple(np.linspace(4.0, 1.0, count + 1))
        made = sample(gaussian, latents, sampler(solver="ipndm", order=order, sigmas=levels))
        end = gaussian.solve(latents * 4.0, 4.0, 1.0)
        errors.append((made - gaussian(end, torch.tensor([1.0], dtype=torch.float64))).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert min(order, 2) - 0.2 < slope < order + 0.5


def test_a_slope_of_degree_3_is_integrated_exactly_once_the_history_is_full(latents):
    """dx/dsigma = sigma^3 whatever x: D = x - sigma^4; after the first three steps order 4 makes no error."""
    levels = np.linspace(5.0, 1.0, 9)
    short = sampler(solver="ipndm", sigmas=tuple(levels[:4]))
    long = sampler(solver="ipndm", sigmas=tuple(levels))

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        return x - sigma.reshape(-1, 1, 1, 1) ** 4

    gap = sample(denoiser, latents, long) - sample(denoiser, latents, short)
    exact = (levels[-1] ** 4 - levels[3] ** 4) / 4 - levels[-1] ** 4 + levels[3] ** 4
    assert torch.allclose(gap, torch.full_like(gap, exact), atol=1e-9, rtol=0)


def test_its_cost_form_and_refusals(gaussian, latents):
    six = sampler(solver="ipndm", num_steps=6, order=3, schedule="vp", scaling="vp")
    sample(gaussian, latents, six)
    assert gaussian.calls == six.nfe == 6 and not six.needs_noise()
    assert six.effective(gaussian) == sampler(solver="ipndm", num_steps=6, order=3).effective(gaussian)
    assert sampler(**six.to_dict()) == six
    with pytest.raises(InputError, match=r"sampler\.order=5 is not allowed: 1, 2, 3 or 4"):
        sampler(solver="ipndm", order=5)
    with pytest.raises(
        InputError, match=r"sampler\.order=2 is not allowed: solver heun has no such setting; .*ipndm.* have it"
    ):
        sampler(order=2)
