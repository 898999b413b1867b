"""How far a call of `generate` is, told without touching the denoiser."""

from __future__ import annotations

import pytest
import torch

from edm_ray.diffusion.samplers import sampler
from edm_ray.execution import activity
from edm_ray.generation.generate import generate
from edm_ray.models import load_model


@pytest.mark.parametrize("solver", ["heun", "dpmpp_2m"])
def test_every_evaluation_is_told_and_nothing_is_set_on_the_denoiser(tiny_model, monkeypatch, solver):
    denoiser, seeds, settings = load_model(tiny_model), torch.arange(6), sampler(solver, num_steps=4)
    silent = generate(denoiser, seeds, settings, micro_batch=4)
    before, told = dict(vars(denoiser)), []
    monkeypatch.setattr(activity, "is_shown", lambda: True)
    monkeypatch.setattr(activity, "within", lambda *said: told.append(said))
    assert torch.equal(generate(denoiser, seeds, settings, micro_batch=4), silent)
    most = 2 * settings.nfe  # two micro-batches
    assert told == [(done, most, "network call") for done in range(1, most + 1)]
    assert vars(denoiser) == before
