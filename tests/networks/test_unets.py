"""The three U-Nets: sizes, names, conditioning, gradients, initial weights and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import NETWORKS, DDPMpp
from edm_ray.config.preconditioning import PRECONDITIONINGS
from edm_ray.diffusion.preconditioning import PRECONDITIONERS
from edm_ray.errors import InputError
from edm_ray.networks import build_denoiser, build_network
from edm_ray.networks.song import SongUNet

R64 = {"img_resolution": 64, "channel_mult": (1, 2, 2, 2)}
ADM = {
    **R64, "kind": "adm", "channel_mult": (1, 2, 3, 4), "model_channels": 192, "num_blocks": 3,
    "attn_resolutions": (32, 16, 8), "label_dim": 1000,
}  # fmt: skip
DIGITS = {
    "img_resolution": 8, "img_channels": 1, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1,
    "attn_resolutions": (4,), "label_dim": 10,
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "ddpmpp": {**DIGITS, "model_channels": 8, "label_dim": 3, "augment_dim": 2},
    "ncsnpp": {**DIGITS, "model_channels": 8, "label_dim": 3, "augment_dim": 2, "kind": "ncsnpp"},
    "adm": {**DIGITS, "model_channels": 64, "channel_mult": (1, 1), "label_dim": 3, "augment_dim": 2, "kind": "adm"},
}


def on_meta(**config: Any) -> nn.Module:
    with torch.device("meta"):
        return build_network(NETWORKS(**config))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def awake(network: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with random weights where the paper starts at (nearly) zero."""
    network = network.double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.1)
    return network


def tiny_inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((batch, 1, 8, 8), (batch,), (batch, 3), (batch, 2))
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize(
    ("parameters", "config"),
    [
        (55_733_891, {"augment_dim": 9}),
        (55_735_299, {"augment_dim": 9, "label_dim": 10}),
        (56_397_827, {"augment_dim": 9, "kind": "ncsnpp"}),
        (56_400_643, {"augment_dim": 9, "label_dim": 10, "kind": "ncsnpp"}),
        (61_805_571, {**R64, "augment_dim": 9}),
        (62_761_091, {**R64, "augment_dim": 9, "kind": "ncsnpp"}),
        (61_804_419, {"channel_mult": (1, 2, 2, 2)}),
        (62_758_787, {"channel_mult": (1, 2, 2, 2), "kind": "ncsnpp"}),
        (295_899_267, ADM),
    ],
)
def test_parameter_counts_are_the_papers_to_the_last_digit(parameters: int, config: dict[str, Any]) -> None:
    assert count(on_meta(**config)) == parameters


def test_digits_network_has_three_quarters_of_a_million_parameters() -> None:
    assert 0.7e6 < count(on_meta(**DIGITS)) < 0.8e6


def test_official_names_and_shapes_of_ddpmpp() -> None:
    shapes = {name: tuple(t.shape) for name, t in on_meta(augment_dim=9, label_dim=10).state_dict().items()}
    expected = {
        "map_label.weight": (128, 10), "map_label.bias": (128,), "map_augment.weight": (128, 9),
        "map_layer0.weight": (512, 128), "map_layer1.bias": (512,),
        "enc.32x32_conv.weight": (128, 3, 3, 3), "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2), "enc.16x16_down.skip.resample_filter": (1, 1, 2, 2),
        "enc.16x16_down.skip.weight": (256, 256, 1, 1), "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "enc.16x16_block3.norm2.bias": (256,), "dec.8x8_in0.proj.weight": (256, 256, 1, 1),
        "dec.8x8_in1.norm1.weight": (256,), "dec.16x16_up.conv1.bias": (256,),
        "dec.16x16_block4.qkv.bias": (768,), "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
        "dec.32x32_block4.affine.weight": (256, 512), "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }  # fmt: skip
    assert {name: shapes.get(name) for name in expected} == expected
    assert "map_augment.bias" not in shapes and "map_noise.freqs" not in shapes
    # Attention: every encoder block at 16, in0, and of the decoder only the last block at 16.
    attention = [name for name in shapes if name.endswith("qkv.weight")]
    assert len(attention) == 6 and "dec.16x16_block3.qkv.weight" not in shapes


def test_official_names_and_shapes_of_ncsnpp() -> None:
    shapes = {name: tuple(t.shape) for name, t in on_meta(kind="ncsnpp").state_dict().items()}
    expected = {
        "map_noise.freqs": (128,), "map_layer0.weight": (512, 256),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3), "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
        "enc.8x8_aux_residual.resample_filter": (1, 1, 4, 4), "dec.32x32_up.conv0.resample_filter": (1, 1, 4, 4),
    }  # fmt: skip
    assert {name: shapes.get(name) for name in expected} == expected


def test_official_names_and_shapes_of_adm() -> None:
    shapes = {name: tuple(t.shape) for name, t in on_meta(**ADM).state_dict().items()}
    expected = {
        "map_label.weight": (768, 1000), "map_layer0.weight": (768, 192),
        "enc.64x64_conv.weight": (192, 3, 3, 3), "enc.32x32_down.skip.resample_filter": (1, 1, 2, 2),
        "enc.32x32_block0.affine.weight": (768, 768), "dec.8x8_in0.qkv.weight": (2304, 768, 1, 1),
        "out_norm.weight": (192,), "out_conv.weight": (3, 192, 3, 3),
    }  # fmt: skip
    assert {name: shapes.get(name) for name in expected} == expected
    assert not {"map_label.bias", "enc.32x32_down.skip.weight", "dec.64x64_aux_conv.weight"} & shapes.keys()
    attention = [name for name in shapes if name.endswith("qkv.weight")]
    assert sum(n.startswith("enc.") for n in attention) == 9 and sum(n.startswith("dec.") for n in attention) == 13


@pytest.mark.parametrize("kind", list(TINY))
def test_weights_depend_on_the_seed_alone_and_leave_the_global_generator_untouched(kind: str) -> None:
    config = NETWORKS(**TINY[kind])
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first = build_network(config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(321)
    again, other = build_network(config, seed=5).state_dict(), build_network(config, seed=6).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["map_layer0.weight"], other["map_layer0.weight"])


def test_song_embedding_takes_class_and_augmentation_before_the_mlp() -> None:
    network = awake(build_network(NETWORKS(**TINY["ddpmpp"])))
    _, c_noise, labels, augment = tiny_inputs()
    half = 4
    phase = c_noise[:, None] * torch.tensor([10000 ** (-k / (half - 1)) for k in range(half)], dtype=torch.float64)
    emb = torch.cat([phase.sin(), phase.cos()], dim=1)
    emb = emb + math.sqrt(3) * labels @ network.map_label.weight.T + network.map_label.bias
    emb = emb + augment @ network.map_augment.weight.T
    for layer in (network.map_layer0, network.map_layer1):
        emb = torch.nn.functional.silu(emb @ layer.weight.T + layer.bias)
    torch.testing.assert_close(network.embed(c_noise, labels, augment), emb)


def test_adm_embedding_takes_the_class_after_the_mlp() -> None:
    network = awake(build_network(NETWORKS(**TINY["adm"])))
    _, c_noise, labels, augment = tiny_inputs()
    phase = c_noise[:, None] * torch.tensor([10000 ** (-k / 32) for k in range(32)], dtype=torch.float64)
    emb = torch.cat([phase.cos(), phase.sin()], dim=1) + augment @ network.map_augment.weight.T
    emb = torch.nn.functional.silu(emb @ network.map_layer0.weight.T + network.map_layer0.bias)
    emb = emb @ network.map_layer1.weight.T + network.map_layer1.bias + labels @ network.map_label.weight.T
    torch.testing.assert_close(network.embed(c_noise, labels, augment), torch.nn.functional.silu(emb))


@pytest.mark.parametrize("kind", list(TINY))
def test_missing_labels_are_zeros_and_one_noise_label_serves_the_batch(kind: str) -> None:
    network = awake(build_network(NETWORKS(**TINY[kind])))
    x, c_noise, labels, augment = tiny_inputs()
    zeros = network(x, c_noise[:1].expand(2), torch.zeros_like(labels), torch.zeros_like(augment))
    torch.testing.assert_close(network(x, c_noise[:1]), zeros)
    assert zeros.shape == (2, 1, 8, 8)
    for changed in (network(x, c_noise[:1], labels), network(x, c_noise[:1], None, augment), network(x, c_noise)):
        assert float((changed - zeros).detach().abs().max()) > 1e-6


@pytest.mark.parametrize("kind", list(TINY))
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    network = awake(build_network(NETWORKS(**TINY[kind])))
    inputs = tiny_inputs()
    weights = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss() -> torch.Tensor:
        return (network(*inputs) * weights).sum()

    inputs[0].requires_grad_(True)
    variables = [inputs[0], *network.parameters()]
    gradients = torch.autograd.grad(loss(), variables)
    generator = torch.Generator().manual_seed(3)
    step = 1e-6
    # One random direction through everything, and one through every tenth tensor alone.
    for chosen in [range(len(variables)), *([i] for i in range(0, len(variables), 10))]:
        directions = {i: torch.randn(variables[i].shape, generator=generator, dtype=torch.float64) for i in chosen}
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for i, direction in directions.items():
                    variables[i].add_(direction, alpha=sign * step)
                values.append(float(loss()))
        expected = (values[0] - values[1]) / (2 * step)
        got = sum(float((gradients[i] * d).sum()) for i, d in directions.items())
        assert got == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_every_encoder_and_decoder_type_uses_all_its_parameters(encoder: Any, decoder: Any) -> None:
    network = awake(
        SongUNet(
            DDPMpp(
                img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1, 2, 2), num_blocks=1,
                attn_resolutions=(4,), encoder_type=encoder, decoder_type=decoder, resample_filter=(1, 3, 3, 1),
            ),
            out_channels=2,
        )
    )  # fmt: skip
    x, c_noise, *_ = tiny_inputs()
    out = network(x, c_noise)
    assert out.shape == (2, 2, 8, 8)
    out.square().sum().backward()
    unused = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert unused == []
    names = {name.split("_aux_")[1] for name in [*network.enc, *network.dec] if "_aux_" in name}
    extra = {"standard": set(), "skip": {"down", "skip"}, "residual": {"residual"}}[encoder]
    assert names == {"norm", "conv"} | extra | ({"up"} if decoder == "skip" else set())


@pytest.mark.parametrize("kind", list(TINY))
def test_an_image_does_not_depend_on_the_others_in_the_batch(kind: str) -> None:
    network = awake(build_network(NETWORKS(**TINY[kind])))
    inputs = tiny_inputs(3)
    torch.testing.assert_close(network(*inputs)[1:2], network(*(t[1:2] for t in inputs)))


@pytest.mark.parametrize("kind", list(TINY))
def test_the_network_compiles_without_graph_breaks(kind: str) -> None:
    network = awake(build_network(NETWORKS(**TINY[kind])))
    inputs = tiny_inputs()
    torch.testing.assert_close(torch.compile(network, backend="eager", fullgraph=True)(*inputs), network(*inputs))
    network.train()
    torch.compile(network, backend="eager", fullgraph=True)(*inputs)


@pytest.mark.parametrize("kind", list(PRECONDITIONERS))
def test_the_denoiser_holds_the_network_as_model_and_gives_images(kind: str) -> None:
    config = DenoiserConfig(
        network=NETWORKS(**DIGITS),
        preconditioning=PRECONDITIONINGS(kind, **({"sigma_data": 0.7} if kind == "edm" else {})),
    )
    denoiser = build_denoiser(config, seed=4).eval()
    weights = build_network(config.network, 4, out_channels=2 if kind == "iddpm" else None).state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in denoiser.model.state_dict().items())
    assert {f"model.{name}" for name in weights} == {n for n in denoiser.state_dict() if n.startswith("model.")}
    out = denoiser(torch.randn(3, 1, 8, 8), torch.ones(3), torch.eye(10)[:3])
    assert out.shape == (3, 1, 8, 8) and bool(out.isfinite().all())


@pytest.mark.parametrize("kind", list(TINY))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_the_denoiser_takes_labels_of_any_type_and_one_row_for_all(kind: str, dtype: torch.dtype) -> None:
    denoiser = build_denoiser(DenoiserConfig(network=NETWORKS(**TINY[kind])))
    awake(denoiser).float()
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 2.0])
    labels, augment = torch.eye(3)[1:2], torch.tensor([[1.0, 2.0]])
    expected = denoiser(x, sigma, labels.repeat(2, 1), augment.repeat(2, 1))
    assert torch.equal(denoiser(x.double(), sigma, labels.to(dtype), augment.to(dtype)), expected)
    assert not torch.equal(denoiser(x, sigma), expected) and expected.dtype == torch.float32
    with pytest.raises(InputError, match=r"^class_labels=\(3, 3\) is not allowed: .* \(2, 3\) or \(1, 3\)"):
        denoiser(x, sigma, torch.eye(3))


def test_a_preconditioning_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(PRECONDITIONERS, "edm")
    with pytest.raises(InputError, match=r"^preconditioning.kind='edm' is not allowed: "):
        build_denoiser(DenoiserConfig(network=NETWORKS(**DIGITS)))


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("network.attn_resolutions=(16,)", {**DIGITS, "attn_resolutions": (16,)}),
        ("network.img_resolution=10", {**DIGITS, "img_resolution": 10, "channel_mult": (1, 1, 1)}),
        ("network.model_channels=30", {**DIGITS, "model_channels": 30}),
        ("network.model_channels=48", {**DIGITS, "model_channels": 48}),
        ("network.model_channels=32", {**DIGITS, "kind": "adm", "channel_mult": (1, 1)}),
        ("network.channel_mult=(1, 0)", {**DIGITS, "channel_mult": (1, 0)}),
    ],
)
def test_an_impossible_configuration_is_refused_by_field_value_and_what_is_allowed(
    field: str, config: dict[str, Any]
) -> None:
    with pytest.raises(InputError) as caught:
        on_meta(**config)
    assert str(caught.value).startswith("network.") and field in str(caught.value)
    assert "is not allowed: " in str(caught.value)


def test_wrong_shapes_are_refused_by_tensor_name() -> None:
    network = build_network(NETWORKS(**DIGITS))
    x, c_noise = torch.zeros(2, 1, 8, 8), torch.zeros(2)
    for name, arguments in {
        "x": (torch.zeros(2, 3, 8, 8), c_noise),
        "class_labels": (x, c_noise, torch.zeros(2, 4)),
        "augment_labels": (x, c_noise, None, torch.zeros(2, 9)),
    }.items():
        with pytest.raises(InputError, match=rf"^{name} has shape .*expected"):
            network(*arguments)
