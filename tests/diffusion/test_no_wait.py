"""Sampling never waits for the device: shown on the "meta" device, where there is nothing that a host could read.

A kernel launch is all that a step may ask of a device. What makes the host wait is reading a number from it (item,
bool, tolist, cpu) or copying host memory to it; on "meta" the first raises, and copies between devices and tensors made
of host numbers are caught as they are made.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edm_ray.diffusion.analysis.langevin import langevin
from edm_ray.diffusion.denoiser import Guided
from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.seeding import image_noise

SETTINGS = {
    "heun": sampler(num_steps=6),
    "euler": sampler(num_steps=6, solver="euler"),
    "churn": sampler(num_steps=6, s_churn=3.0, s_tmin=0.05),
    "bins": sampler(num_steps=6, churn_bins=((0.0, 1.0, 1.0), (1.0, 90.0, 2.0))),
    "restarts": sampler(num_steps=6, restarts=((0.3, 5.0, 3, 2),)),
    "vp": sampler(num_steps=6, s_churn=3.0, discretization="vp", schedule="vp", scaling="vp"),
    "dpmpp_2m": sampler(num_steps=6, solver="dpmpp_2m"),
    "dpmpp_3m_sde": sampler(num_steps=6, solver="dpmpp_3m_sde"),
    "ipndm": sampler(num_steps=6, solver="ipndm"),
    "deis": sampler(num_steps=6, solver="deis", afs=True),
    "dpmpp_3m": sampler(num_steps=6, solver="dpmpp_3m"),
    "dpmpp_2m_sde": sampler(num_steps=6, solver="dpmpp_2m_sde"),
    "unipc": sampler(num_steps=6, solver="unipc", lower_order_final=True),
    "sa_solver": sampler(num_steps=6, solver="sa_solver"),
    "dpm_2": sampler(num_steps=6, solver="dpm_2", afs=True),
    "euler_maruyama": sampler(num_steps=6, solver="euler_maruyama"),
    "predictor_corrector": sampler(num_steps=6, solver="predictor_corrector"),
}


class NoCopies(TorchDispatchMode):
    """Refuses whatever takes tensors of one device and gives those of another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.device.type for t in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = {t.device.type for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)}
        assert len(given | made) < 2, f"{func}: {sorted(given)} to {sorted(made)}"
        return result


class NoHostNumbers(TorchFunctionMode):
    """Refuses tensors made on a device out of numbers of the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor):
            assert torch.device(kwargs.get("device") or "cpu").type == "cpu", func
        return func(*args, **kwargs)


class Network(torch.nn.Module):
    label_dim = 0

    def forward(self, x, noise_labels, class_labels=None, augment_labels=None):
        return x * 0.5


def test_this_test_sees_what_would_wait() -> None:
    on_device = torch.ones(2, device="meta")
    with NoCopies():
        for read in (bool, float, torch.Tensor.tolist):
            with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
                read(on_device[:1])
        with pytest.raises(AssertionError, match="cpu"):
            torch.ones(2).to(on_device)
    with NoHostNumbers(), pytest.raises(AssertionError):
        torch.tensor([1.0, 2.0], device="meta")


@pytest.mark.parametrize("name", SETTINGS)
def test_no_step_reads_from_the_device_or_copies_to_it(name) -> None:
    latents = torch.empty(2, 3, 4, 4, device="meta")
    noise = image_noise(torch.arange(2, device="meta"), "churn", (3, 4, 4))
    denoiser = PRECONDITIONERS["edm"](Network())
    weak = Guided(denoiser, weight=2.0, interval=(0.1, 5.0))
    with NoHostNumbers(), NoCopies():
        for each in (denoiser, weak):
            images = sample(each, latents, SETTINGS[name], noise=noise)
            assert images.device.type == "meta" and images.shape == latents.shape
        langevin(denoiser, latents, 0.5, 3, noise)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_networks_grid_of_noise_levels_is_read_before_the_first_step(name) -> None:
    """On a GPU that waits, since the grid lies there; once the network runs, nothing may."""
    happened = []

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = PRECONDITIONERS["iddpm"](Network())
            self.sigma_min, self.sigma_max = self.inner.sigma_min, self.inner.sigma_max

        def round_sigma(self, sigma):
            happened.append("round")
            return self.inner.round_sigma(sigma)

        def forward(self, x, sigma, class_labels=None):
            happened.append("denoise")
            return self.inner(x, sigma)

    sample(Watched(), torch.zeros(2, 3, 4, 4), SETTINGS[name], noise=image_noise(torch.arange(2), "churn", (3, 4, 4)))
    first = happened.index("denoise")
    assert "round" in happened[:first] and "round" not in happened[first:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_cuda_itself_finds_no_synchronisation(name) -> None:
    seeds = torch.arange(2, device="cuda")
    latents = image_noise(seeds, "latents", (3, 4, 4))(0)
    noise = image_noise(seeds, "churn", (3, 4, 4))
    denoiser = PRECONDITIONERS["edm"](Network()).to("cuda")
    sample(denoiser, latents, SETTINGS[name], noise=noise)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(denoiser, latents, SETTINGS[name], noise=noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
