"""The same numbers on a GPU as on a CPU: integers equal, float32 within rounding."""

from __future__ import annotations

import copy

import pytest
import torch

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import ADM, NETWORKS
from edm_ray.diffusion.samplers import sample, sampler
from edm_ray.models.denoiser import ModelDenoiser
from edm_ray.networks.build import build_denoiser, build_network, on_device
from edm_ray.seeding import image_noise, stream_key, words

NETWORK = {"img_resolution": 16, "img_channels": 3, "label_dim": 10, "augment_dim": 9}
SMALL = {"model_channels": 64, "channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (8,)}
KINDS = {
    "ddpmpp": NETWORKS(kind="ddpmpp", **NETWORK, **SMALL),
    "ncsnpp": NETWORKS(kind="ncsnpp", **NETWORK, **SMALL),
    "adm": ADM(**NETWORK, **SMALL),
}


def _shaken(config) -> torch.nn.Module:
    """Initial weights of zero would hide half of the network."""
    network = build_network(config).eval().requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=draw))
    return network


def _inputs(count: int = 4):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(count, 3, 16, 16, generator=draw)
    return x, torch.randn(count, generator=draw), torch.eye(10)[:count], torch.randn(count, 9, generator=draw)


def _error(value: torch.Tensor, truth: torch.Tensor) -> float:
    value, truth = value.cpu().double(), truth.double()
    return float((value - truth).norm() / truth.norm())


def test_tf32_is_off_unless_asked_for() -> None:
    a, b = (torch.randn(512, 512, device="cuda") for _ in range(2))
    assert _error(a @ b, a.cpu().double() @ b.cpu().double()) < 2e-6


def test_philox_integers_are_those_of_the_cpu() -> None:
    images = torch.arange(2**40, 2**40 + 64)
    key = stream_key("latents")
    assert torch.equal(words(key, images.cuda(), 1000).cpu(), words(key, images, 1000))


def test_noise_is_that_of_the_cpu_to_the_last_bits() -> None:
    noise = [image_noise(torch.arange(8, device=device), "churn", (3, 16, 16))(3) for device in ("cpu", "cuda")]
    assert (noise[1].cpu() - noise[0]).abs().max() < 1e-14


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_float32_is_that_of_float64_to_rounding(kind: str, layout: torch.memory_format) -> None:
    """Relative error of the output, and of all gradients together; bfloat16 within a hundredth."""
    network, inputs = _shaken(KINDS[kind]), _inputs()
    truth_net = copy.deepcopy(network).double().requires_grad_()
    truth = truth_net(*(each.double() for each in inputs))
    truth.square().sum().backward()
    wanted = torch.cat([p.grad.flatten() for p in truth_net.parameters() if p.grad is not None])
    ours = copy.deepcopy(network).cuda().to(memory_format=layout).requires_grad_()
    for dtype, bound in ((torch.float32, 5e-6), (torch.bfloat16, 3e-2)):
        ours.zero_grad()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            out = ours(*(each.cuda() for each in inputs))
        out.float().square().sum().backward()
        got = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
        print(kind, layout, dtype, _error(out.detach(), truth.detach()), _error(got, wanted))
        assert _error(out.detach(), truth.detach()) < bound
        assert _error(got, wanted) < 10 * bound


@pytest.mark.parametrize(
    "settings",
    [{}, {"s_churn": 20.0, "s_noise": 1.003}, {"solver": "dpmpp_2m"}, {"solver": "euler", "schedule": "vp"}],
    ids=str,
)
def test_images_are_those_of_the_cpu(settings: dict) -> None:
    """As float64 within 1e-3 of the range, which is a third of a grey level; replayed with the same bits as called."""
    config = DenoiserConfig(network=KINDS["ddpmpp"])
    module = build_denoiser(config).eval().requires_grad_(False)
    module.model.load_state_dict(_shaken(config.network).state_dict())
    chosen, found = sampler(num_steps=8, **settings), {}
    for name in ("cpu", "cuda", "recorded"):
        device = torch.device("cpu" if name == "cpu" else "cuda")
        denoiser = ModelDenoiser(on_device(copy.deepcopy(module), device), config.network)
        if name == "recorded":
            denoiser.record()
        seeds = torch.arange(4, device=device)
        latents = image_noise(seeds, "latents", denoiser.shape)(0)
        labels = torch.eye(10, device=device)[:4]
        with torch.inference_mode():
            noise = image_noise(seeds, "churn", denoiser.shape)
            found[name] = sample(denoiser, latents, chosen, labels, noise).cpu()
    scale = found["cpu"].abs().max()
    print(settings, float((found["cuda"] - found["cpu"]).abs().max() / scale))
    assert (found["cuda"] - found["cpu"]).abs().max() < 1e-3 * scale
    assert torch.equal(found["recorded"], found["cuda"])
