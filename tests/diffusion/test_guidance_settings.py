"""Guidance as sampler settings: what is sampled, its canonical form, and what it costs."""

from __future__ import annotations

import math

import pytest
import torch

from edm_ray.diffusion.denoiser import Guided
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.errors import InputError

INTERVAL = {"guidance": 2.5, "guidance_min": 0.5, "guidance_max": 3.0}


@pytest.fixture
def pair(gaussian):
    """A denoiser and its guide."""
    return gaussian, type(gaussian)(mean=-0.2)


def _sample(pair, latents, settings):
    return sample(pair[0], latents, settings, guide=pair[1])


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
def test_settings_guide_as_a_guided_denoiser_does(pair, latents, solver):
    expected = sample(Guided(*pair, weight=2.5, interval=(0.5, 3.0)), latents, sampler(solver=solver))
    assert torch.equal(_sample(pair, latents, sampler(solver=solver, **INTERVAL)), expected)
    assert not torch.equal(_sample(pair, latents, sampler(solver=solver)), expected)


def test_without_a_guide_the_labels_are_left_out(latents):
    seen: list[object] = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        seen.append(labels)
        return x

    labels = torch.eye(2)
    sample(denoiser, latents, sampler(num_steps=2, solver="euler", guidance=2.0), labels)
    assert [item is labels for item in seen] == [True, False] * 2
    with pytest.raises(InputError, match=r"sampler\.guidance=2.*--guide MODEL"):
        sample(denoiser, latents, sampler(guidance=2.0))


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("bounds", [(0.5, 3.0), (0.0, math.inf), (3.0, math.inf), (0.0, 0.01), (50.0, 90.0)])
def test_network_evaluations_are_those_that_are_made(pair, latents, solver, bounds):
    settings = sampler(solver=solver, guidance=2.0, guidance_min=bounds[0], guidance_max=bounds[1])
    _sample(pair, latents, settings)
    assert pair[0].calls + pair[1].calls == settings.nfe


def test_intervals_that_guide_the_same_levels_are_one_sampler(pair, latents):
    a, b = (sampler(**{**INTERVAL, "guidance_max": high}) for high in (2.4, 2.45))
    assert torch.equal(_sample(pair, latents, a), _sample(pair, latents, b)) and a.effective(pair[0]) == b.effective(
        pair[0]
    )
    assert a.effective(pair[0]).effective(pair[0]) == a.effective(pair[0])
    assert torch.equal(_sample(pair, latents, a.effective(pair[0])), _sample(pair, latents, a))
    wider = a.replace(guidance_max=9.0)
    assert not torch.equal(_sample(pair, latents, a), _sample(pair, latents, wider))
    assert a.effective(pair[0]) != wider.effective(pair[0])
    nothing = sampler(guidance=2.0, guidance_min=100.0)
    assert nothing.effective(pair[0]) == sampler().effective(pair[0])
    assert sampler(guidance_min=1.0).effective(pair[0]) == sampler().effective(pair[0])


@pytest.mark.parametrize("wrong", [{"guidance": -1}, {"guidance_min": -1}, {"guidance_min": 2, "guidance_max": 1}])
def test_bad_guidance_is_refused(wrong):
    with pytest.raises(InputError, match=rf"sampler\.{next(iter(wrong))}="):
        sampler(**wrong)
