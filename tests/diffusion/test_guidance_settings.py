"""Guidance as sampler settings: what is sampled, its canonical form, and what it costs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from edm_ray.diffusion.guidance import GuidanceSettings, guided
from edm_ray.diffusion.samplers import SamplerSettings, sample
from edm_ray.errors import InputError

INTERVAL = {"guidance": 2.5, "guidance_min": 0.5, "guidance_max": 3.0}


@pytest.fixture
def pair(gaussian):
    """A denoiser that carries its guide."""
    gaussian.guide = type(gaussian)(mean=-0.2)
    return gaussian


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
def test_settings_guide_as_a_guided_denoiser_does(pair, latents, solver):
    expected = sample(
        guided(pair, pair.guide, GuidanceSettings(weight=2.5, sigma_min=0.5, sigma_max=3.0, kind="auto")),
        latents,
        SamplerSettings(solver=solver),
    )
    assert torch.equal(sample(pair, latents, SamplerSettings(solver=solver, **INTERVAL)), expected)
    assert not torch.equal(sample(pair, latents, SamplerSettings(solver=solver)), expected)


def test_without_a_guide_the_labels_are_left_out(latents):
    seen: list[object] = []

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, labels: object = None) -> torch.Tensor:
        seen.append(labels)
        return x

    labels = torch.eye(2)
    sample(denoiser, latents, SamplerSettings(num_steps=2, solver="euler", guidance=2.0), labels)
    assert [item is labels for item in seen] == [True, False] * 2
    with pytest.raises(InputError, match=r"sampler\.guidance=2.*--guide MODEL"):
        sample(denoiser, latents, SamplerSettings(guidance=2.0))


@pytest.mark.parametrize("solver", ["heun", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("bounds", [(0.5, 3.0), (0.0, math.inf), (3.0, math.inf), (0.0, 0.01), (50.0, 90.0)])
def test_network_evaluations_are_those_that_are_made(pair, latents, solver, bounds):
    settings = SamplerSettings(solver=solver, guidance=2.0, guidance_min=bounds[0], guidance_max=bounds[1])
    sample(pair, latents, settings)
    assert pair.calls + pair.guide.calls == settings.nfe


def test_intervals_that_guide_the_same_levels_are_one_sampler(pair, latents):
    a, b = (SamplerSettings(**{**INTERVAL, "guidance_max": high}) for high in (2.4, 2.45))
    assert torch.equal(sample(pair, latents, a), sample(pair, latents, b)) and a.effective(pair) == b.effective(pair)
    assert a.effective(pair).effective(pair) == a.effective(pair)
    assert torch.equal(sample(pair, latents, a.effective(pair)), sample(pair, latents, a))
    wider = dataclasses.replace(a, guidance_max=9.0)
    assert not torch.equal(sample(pair, latents, a), sample(pair, latents, wider))
    assert a.effective(pair) != wider.effective(pair)
    nothing = SamplerSettings(guidance=2.0, guidance_min=100.0)
    assert nothing.effective(pair) == SamplerSettings().effective(pair)
    assert SamplerSettings(guidance_min=1.0).effective(pair) == SamplerSettings().effective(pair)


@pytest.mark.parametrize("wrong", [{"guidance": -1}, {"guidance_min": -1}, {"guidance_min": 2, "guidance_max": 1}])
def test_bad_guidance_is_refused(wrong):
    with pytest.raises(InputError, match=rf"sampler\.{next(iter(wrong))}="):
        SamplerSettings(**wrong)
