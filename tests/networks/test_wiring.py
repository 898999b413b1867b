"""How the U-Nets are wired and where their weights start, observed on small networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edm_ray.config.network import ADM, DDPMpp
from edm_ray.networks.dhariwal import DhariwalUNet
from edm_ray.networks.layers import GroupNorm
from edm_ray.networks.song import SongUNet


def song(**arguments: Any) -> SongUNet:
    sizes = {"model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "dropout": 0.0}
    return SongUNet(DDPMpp(img_resolution=8, img_channels=1, **(sizes | arguments)), 1).double()


def adm(**arguments: Any) -> DhariwalUNet:
    sizes = {"model_channels": 64, "channel_mult": (1, 1), "num_blocks": 1, "attn_resolutions": (4,)}
    return DhariwalUNet(ADM(img_resolution=8, img_channels=1, **(sizes | arguments)), 1)


def traffic(network: nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """One random image through the network: the image, and the first input and the output of every block by name."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, got: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            inputs[name], outputs[name] = got[0], out

        return hook

    for part in ("enc", "dec"):
        for name, block in getattr(network, part).items():
            block.register_forward_hook(record(f"{part}.{name}"))
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    network(x, torch.randn(2, dtype=torch.float64))
    return x, inputs, outputs


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
def test_what_the_encoder_adds_to_a_level_goes_on_to_the_next_block_and_to_the_decoder(encoder: Any) -> None:
    x, inputs, outputs = traffic(song(encoder_type=encoder))
    expected = outputs["enc.4x4_down"]
    if encoder == "skip":
        torch.testing.assert_close(outputs["enc.4x4_aux_down"], nn.functional.avg_pool2d(x, 2))
        expected = expected + outputs["enc.4x4_aux_skip"]
    if encoder == "residual":
        assert inputs["enc.4x4_aux_residual"] is x
        expected = (expected + outputs["enc.4x4_aux_residual"]) / math.sqrt(2)
    torch.testing.assert_close(inputs["enc.4x4_block0"], expected)
    torch.testing.assert_close(inputs["dec.4x4_block1"][:, 16:], expected)
    torch.testing.assert_close(inputs["dec.4x4_block1"][:, :16], outputs["dec.4x4_block0"])


def test_a_residual_encoder_carries_its_sum_to_the_level_below() -> None:
    _, inputs, _ = traffic(song(encoder_type="residual", channel_mult=(1, 1, 1)))
    assert inputs["enc.2x2_aux_residual"] is inputs["enc.4x4_block0"]


def test_skips_of_the_encoder_reach_the_decoder_in_reverse_order() -> None:
    names = ["8x8_conv", "8x8_block0", "4x4_down", "4x4_block0"]
    for network, width in ((song(), 8), (adm(dropout=0.0).double(), 64)):
        _, inputs, outputs = traffic(network)
        for reader, source in zip(["8x8_block1", "8x8_block0", "4x4_block1", "4x4_block0"], names, strict=True):
            source_out = outputs[f"enc.{source}"]
            assert torch.equal(inputs[f"dec.{reader}"][:, -source_out.shape[1] :], source_out), (reader, width)


def test_a_skip_decoder_sums_the_images_of_all_levels() -> None:
    network = song(decoder_type="skip")
    _, _, outputs = traffic(network)
    up = outputs["dec.4x4_aux_conv"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(outputs["dec.8x8_aux_up"], up)
    x, c_noise = torch.randn(1, 1, 8, 8, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    heads: list[torch.Tensor] = []
    for name in ("8x8_aux_up", "8x8_aux_conv"):
        network.dec[name].register_forward_hook(lambda module, got, out: heads.append(out))
    torch.testing.assert_close(network(x, c_noise), heads[0] + heads[1])


def scale(weight: torch.Tensor) -> float:
    """The largest magnitude as a share of the Xavier bound sqrt(6 / (fan_in + fan_out))."""
    field = math.prod(weight.shape[2:])
    return float(weight.detach().abs().max()) / math.sqrt(6 / (field * (weight.shape[0] + weight.shape[1])))


def test_song_starts_with_small_attention_and_nearly_zero_last_layers() -> None:
    state = dict(song(label_dim=5, augment_dim=9).named_parameters())
    for name, weight in state.items():
        if name.endswith(".bias"):
            assert not weight.any()
        elif weight.ndim >= 2:
            last = name.endswith(("conv1.weight", "proj.weight", "aux_conv.weight"))
            top = 1e-5 if last else math.sqrt(0.2) if "qkv" in name else 1.0
            assert 0.85 * top < scale(weight) <= top * (1 + 1e-6), name


def test_adm_starts_with_zero_last_layers_and_augmentation() -> None:
    network = adm(label_dim=5, augment_dim=9)
    for name, weight in network.named_parameters():
        zero = any(part in name for part in (".conv1.", ".proj.", "out_conv.", "map_augment."))
        if "norm" not in name and "map_label" not in name:
            assert zero == (not weight.any()), name
    weight, bias = network.enc["8x8_block0"].conv0.weight, network.enc["8x8_block0"].conv0.bias
    assert 0.95 < float(weight.detach().abs().max()) * math.sqrt(9 * 64) <= 1 + 1e-6
    assert 0.85 < float(bias.detach().abs().max()) * math.sqrt(9 * 64) <= 1 + 1e-6


def test_the_constants_of_the_blocks_are_the_papers() -> None:
    for network, eps, skip_scale in (
        (song(), 1e-6, math.sqrt(0.5)),
        (adm(), 1e-5, 1.0),
    ):
        norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
        assert {norm.eps for norm in norms} == {eps}
        assert {block.skip_scale for block in network.dec.values() if hasattr(block, "skip_scale")} == {skip_scale}
    heads = adm(channel_mult=(1, 3), attn_resolutions=(8, 4))
    assert (heads.enc["8x8_block0"].num_heads, heads.dec["4x4_in0"].num_heads) == (1, 3)
