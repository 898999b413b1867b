from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import NETWORKS
from edm_ray.config.preconditioning import PRECONDITIONINGS
from edm_ray.config.presets import PRESETS
from edm_ray.networks.build import build_denoiser
from edm_ray.networks.cost import network_cost

TINY = DenoiserConfig(
    network=NETWORKS(img_resolution=8, model_channels=16, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())
)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar10-uncond-vp-a", 61_804_419),
        ("cifar10-uncond-ve-a", 62_758_787),
        ("cifar10-uncond-vp-f", 55_733_891),
        ("cifar10-cond-vp-f", 55_735_299),
        ("cifar10-uncond-ve-f", 56_397_827),
        ("ffhq64-vp-f", 61_805_571),
        ("afhqv2-64-ve-f", 62_761_091),
        ("imagenet64-adm", 295_899_267),
    ],
)
def test_the_recipes_have_the_papers_parameter_counts(name, parameters):
    entry = PRESETS[name]
    with torch.device("meta"):
        denoiser = build_denoiser(entry.make(entry.example).denoiser)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == parameters


def test_multiply_adds_are_those_of_the_layers_by_hand():
    denoiser, total = build_denoiser(TINY), 0

    def count(module, args, output):
        nonlocal total
        total += output.shape[-1] * output.shape[-2] * module.weight.numel()

    def count_linear(module, args, output):
        nonlocal total
        total += module.weight.numel()

    for module in denoiser.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 4:
            module.register_forward_hook(count)
        elif isinstance(weight, nn.Parameter) and weight.ndim == 2:
            module.register_forward_hook(count_linear)
    denoiser(torch.zeros(1, 3, 8, 8), torch.ones(1))
    # The one attention, at 4x4 with 32 channels: two products of 16 x 16 x 32, and its projection, a bare product.
    total += 2 * 16 * 16 * 32 + 16 * 32 * 32
    cost = network_cost(TINY)
    assert cost.parameters == sum(parameter.numel() for parameter in denoiser.parameters())
    assert cost.forward_macs == total


def test_a_network_is_counted_once_whatever_surrounds_it(monkeypatch):
    """54 presets share 24 networks; D and E are C's. Dropout of any strength costs the same, none less memory."""
    built = []
    original = build_denoiser
    monkeypatch.setattr("edm_ray.networks.cost.build_denoiser", lambda config: built.append(config) or original(config))
    network = replace(TINY.network, model_channels=20)  # no other test counts it
    for dropout in (0.1, 0.13, 0.25):
        for kind in ("edm", "vp", "ve"):
            config = DenoiserConfig(
                network=replace(network, dropout=dropout), preconditioning=PRECONDITIONINGS(kind=kind)
            )
            cost = network_cost(config)
    assert len(built) == 1
    bare = network_cost(DenoiserConfig(network=replace(network, dropout=0.0)))
    assert bare.forward_macs == cost.forward_macs and bare.saved_bytes < cost.saved_bytes
    iddpm = network_cost(replace(config, preconditioning=PRECONDITIONINGS(kind="iddpm")))
    assert iddpm.parameters == cost.parameters + 3 * (20 * 9 + 1) and len(built) == 3


def test_saved_activations_are_what_autograd_holds_for_a_real_image():
    denoiser = build_denoiser(TINY).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in denoiser.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        denoiser(torch.zeros(1, 3, 8, 8), torch.ones(1))
    real = sum(storage.nbytes() for storage in kept.values())
    assert network_cost(TINY).saved_bytes == pytest.approx(real, rel=0.02)
