"""Official constructor arguments: sizes, state-dict names, and the configuration that says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from edm_ray.errors import InputError
from edm_ray.models import load_model, open_model, save_model
from edm_ray.models.interop import from_official
from edm_ray.models.interop.official import official_config
from tests.models.interop.foreign import CASES, IMAGES, NCSN, SONG, randomised, source_denoiser

VP = {"model_type": "SongUNet", "img_channels": 3, "channel_mult": [2, 2, 2], "img_resolution": 32, "augment_dim": 9}
VE = {
    **VP, "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
R64: dict[str, Any] = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2]}
BASE = {"img_resolution": 32, "img_channels": 3}
VE_BASE = {name: VE[name] for name in ("embedding_type", "channel_mult_noise", "encoder_type", "resample_filter")}
IMAGENET = {"img_resolution": 64, "img_channels": 3, "label_dim": 1000}
RELEASED: dict[str, tuple[int, str, dict[str, Any]]] = {
    "edm-cifar10-32x32-uncond-vp": (55_733_891, "EDMPrecond", VP),
    "edm-cifar10-32x32-cond-vp": (55_735_299, "EDMPrecond", {**VP, "label_dim": 10}),
    "edm-cifar10-32x32-uncond-ve": (56_397_827, "EDMPrecond", VE),
    "edm-cifar10-32x32-cond-ve": (56_400_643, "EDMPrecond", {**VE, "label_dim": 10}),
    "edm-ffhq-64x64-uncond-vp": (61_805_571, "EDMPrecond", {**VP, **R64}),
    "edm-ffhq-64x64-uncond-ve": (62_761_091, "EDMPrecond", {**VE, **R64}),
    "edm-imagenet-64x64-cond-adm": (295_899_267, "EDMPrecond", IMAGENET),
    "baseline-cifar10-32x32-uncond-vp": (61_804_419, "VPPrecond", BASE),
    "baseline-cifar10-32x32-uncond-ve": (62_758_787, "VEPrecond", {**BASE, **VE_BASE}),
    # Three output channels more, 192 x 3 x 3 weights and a bias each.
    "baseline-imagenet-64x64-cond-adm": (295_899_267 + 3 * (192 * 9 + 1), "iDDPMPrecond", IMAGENET),
}


def on_meta(class_name: str, kwargs: dict[str, Any]) -> torch.nn.Module:
    with torch.device("meta"):
        return from_official(class_name, kwargs)


def names(kwargs: dict[str, Any], adm: bool, iddpm: bool) -> set[str]:
    """The state dict's names, written down from the published naming: an enumeration of its own."""
    mult, blocks = kwargs.get("channel_mult", [1, 2, 3, 4] if adm else [1, 2, 2, 2]), 3 if adm else 4
    blocks = kwargs.get("num_blocks", blocks)
    attention = kwargs.get("attn_resolutions", [32, 16, 8] if adm else [16])
    encoder, decoder = kwargs.get("encoder_type", "standard"), kwargs.get("decoder_type", "standard")
    base = kwargs.get("model_channels", 192 if adm else 128)
    keys: set[str] = {"u"} if iddpm else set()

    def add(*parts: str) -> None:
        keys.update(f"model.{part}" for part in parts)

    def layer(name: str) -> None:
        add(f"{name}.weight", f"{name}.bias")

    def block(name: str, inputs: int, outputs: int, resample: bool = False, attend: bool = False) -> None:
        for part in ("norm0", "conv0", "affine", "norm1", "conv1", *(("norm2", "qkv", "proj") if attend else ())):
            layer(f"{name}.{part}")
        if inputs != outputs or (resample and not adm):
            layer(f"{name}.skip")
        if resample:
            add(f"{name}.conv0.resample_filter", f"{name}.skip.resample_filter")

    layer("map_layer0")
    layer("map_layer1")
    if kwargs.get("label_dim"):
        add("map_label.weight", *(() if adm else ("map_label.bias",)))
    if kwargs.get("augment_dim"):
        add("map_augment.weight")
    if kwargs.get("embedding_type") == "fourier":
        add("map_noise.freqs")
    sizes = [kwargs["img_resolution"] // 2**level for level in range(len(mult))]
    widths, channels = [], base * mult[0] if adm else base
    for level, (size, factor) in enumerate(zip(sizes, mult)):
        at = f"enc.{size}x{size}"
        if level == 0:
            layer(f"{at}_conv")
        else:
            block(f"{at}_down", channels, channels, resample=True)
            if encoder == "skip":
                add(f"{at}_aux_down.resample_filter")
                layer(f"{at}_aux_skip")
            if encoder == "residual":
                layer(f"{at}_aux_residual")
                add(f"{at}_aux_residual.resample_filter")
        widths.append(channels)
        for index in range(blocks):
            block(f"{at}_block{index}", channels, base * factor, attend=size in attention)
            channels = base * factor
            widths.append(channels)
    for level in range(len(mult) - 1, -1, -1):
        at, size = f"dec.{sizes[level]}x{sizes[level]}", sizes[level]
        if level == len(mult) - 1:
            block(f"{at}_in0", channels, channels, attend=True)
            block(f"{at}_in1", channels, channels)
        else:
            block(f"{at}_up", channels, channels, resample=True)
        for index in range(blocks + 1):
            attend = size in attention and (adm or index == blocks)
            block(f"{at}_block{index}", channels + widths.pop(), base * mult[level], attend=attend)
            channels = base * mult[level]
        if not adm and (decoder == "skip" or level == 0):
            if decoder == "skip" and level < len(mult) - 1:
                add(f"{at}_aux_up.resample_filter")
            layer(f"{at}_aux_norm")
            layer(f"{at}_aux_conv")
    if adm:
        layer("out_norm")
        layer("out_conv")
    return keys


@pytest.mark.parametrize("name", list(RELEASED))
def test_a_released_network_has_the_papers_parameter_count_and_official_names(name: str) -> None:
    count, class_name, kwargs = RELEASED[name]
    denoiser = on_meta(class_name, kwargs)
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == count
    state = denoiser.state_dict()
    assert state.keys() == names(kwargs, "adm" in name, class_name == "iDDPMPrecond")
    assert 425 <= len(state) <= 566


@pytest.mark.parametrize("encoder", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder", ["standard", "skip"])
def test_names_of_every_encoder_and_decoder_type(encoder: str, decoder: str) -> None:
    kwargs = {**IMAGES, **SONG, "encoder_type": encoder, "decoder_type": decoder, "label_dim": 3}
    assert on_meta("EDMPrecond", kwargs).state_dict().keys() == names(kwargs, adm=False, iddpm=False)


@pytest.mark.parametrize("case", list(CASES))
def test_a_model_directory_gives_back_an_official_network_bit_for_bit(tmp_path: Path, case: str) -> None:
    class_name, kwargs = CASES[case]
    source = source_denoiser(case)
    save_model(str(tmp_path / "model"), official_config(class_name, kwargs), source.state_dict(), {})
    loaded = load_model(str(tmp_path / "model")).module
    again = from_official(class_name, kwargs).eval()
    again.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(4)[1:3] if kwargs.get("label_dim") else None
    augment = torch.full((2, 9), 0.3) if kwargs.get("augment_dim") else None
    with torch.no_grad():
        for sigma in (torch.tensor(0.1), torch.tensor([0.5, 60.0])):
            expected = source(x, sigma, labels, augment)
            assert torch.equal(loaded(x, sigma, labels, augment), expected)
            assert torch.equal(again(x, sigma, labels, augment), expected)
    for name in ("sigma_min", "sigma_max", "sigma_data"):
        assert getattr(loaded, name) == getattr(source, name)
    assert open_model(str(tmp_path / "model")).config == official_config(class_name, kwargs)


def test_the_configuration_says_only_what_a_kind_does_not() -> None:
    assert official_config("VPPrecond", BASE).network.kind == "ddpmpp"
    config = official_config("VEPrecond", {**IMAGES, **NCSN})
    assert (config.network.kind, config.network.encoder_type) == ("ncsnpp", "residual")
    assert (config.preconditioning.kind, config.preconditioning.sigma_max) == ("ve", 100.0)
    config = official_config("VEPrecond", {**IMAGES, **NCSN, "decoder_type": "skip", "sigma_max": 50.0})
    assert (config.network.kind, config.network.embedding_type, config.network.decoder_type) == (
        "ddpmpp", "fourier", "skip",
    )  # fmt: skip
    assert config.preconditioning.sigma_max == 50.0
    # The original takes a resolution that no level has, and does nothing with it.
    assert official_config("EDMPrecond", {**IMAGES, "channel_mult": [1, 1]}).network.attn_resolutions == (8,)


def test_constants_of_the_preconditioning_reach_the_denoiser() -> None:
    vp = from_official("VPPrecond", {**IMAGES, **SONG, "beta_d": 10.0, "beta_min": 0.5, "M": 500, "epsilon_t": 1e-3})
    assert (vp.beta_d, vp.beta_min, vp.steps) == (10.0, 0.5, 500)
    assert vp.sigma_min == pytest.approx((2.718281828459045 ** (5e-6 + 5e-4) - 1) ** 0.5, rel=1e-6)
    ve = from_official("VEPrecond", {**IMAGES, **SONG, "sigma_min": 0.01, "sigma_max": 50})
    assert (ve.sigma_min, ve.sigma_max) == (0.01, 50)
    edm = from_official("EDMPrecond", {**IMAGES, **SONG, "sigma_min": 0.01, "sigma_max": 50, "sigma_data": 0.4})
    assert (edm.sigma_min, edm.sigma_max, edm.sigma_data) == (0.01, 50, 0.4)
    iddpm = from_official("iDDPMPrecond", {**IMAGES, **SONG, "C_1": 0.01, "C_2": 0.02, "M": 100})
    assert iddpm.u.shape == (101,) and iddpm.u[-1] == 0 and iddpm.sigma_max == float(iddpm.u[0])


@pytest.mark.parametrize(
    ("class_name", "kwargs", "says"),
    [
        ("EDMPrecon", IMAGES, "did you mean 'EDMPrecond'"),
        ("EDMPrecond", {**IMAGES, "model_typ": "SongUNet"}, "unknown argument 'model_typ'.*did you mean 'model_type'"),
        ("EDMPrecond", {**IMAGES, "model_type": "SongUnet"}, "did you mean 'SongUNet'"),
        ("EDMPrecond", {**IMAGES, "encoder_type": "skip"}, "EDMPrecond with DhariwalUNet: unknown argument"),
        ("EDMPrecond", {"img_resolution": 8}, "'img_channels' is missing"),
        ("EDMPrecond", {**IMAGES, **SONG, "encoder_type": "skipp"}, r"network.encoder_type='skipp' is not allowed"),
        ("EDMPrecond", {**IMAGES, **SONG, "num_blocks": 10**9}, "num_blocks='a larger one' is not allowed"),
        ("EDMPrecond", {**IMAGES, **SONG, "num_blocks": "4"}, "num_blocks='4' is not allowed: a whole number"),
        ("EDMPrecond", {**IMAGES, **SONG, "channel_mult": [1] * 1000}, "channel_mult is not a plain value"),
        ("EDMPrecond", {**IMAGES, **SONG, "channel_mult": [10**9]}, "whole numbers, at most 64"),
        ("EDMPrecond", {**IMAGES, **SONG, "dropout": {}}, "dropout is not a plain value"),
        ("iDDPMPrecond", {**IMAGES, **SONG, "M": 10**8}, "M='a larger one' is not allowed"),
        ("VPPrecond", {**IMAGES, **SONG, "sigma_data": 0.5}, "unknown argument 'sigma_data'"),
        ("VEPrecond", {**IMAGES, **SONG, "sigma_min": 200.0}, "preconditioning.sigma_min=200.0"),
        ("VPPrecond", {**IMAGES, **SONG, "beta_d": float("nan")}, "preconditioning.beta_d=nan"),
        ("EDMPrecond", {**IMAGES, **SONG, "resample_filter": [1, 2, 1]}, "network.resample_filter=.*even number"),
        ("EDMPrecond", {**IMAGES, **SONG, "resample_filter": [1, -1]}, "sum is not 0"),
    ],
)
def test_what_no_official_network_has_is_refused_and_the_nearest_named(
    class_name: str, kwargs: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        from_official(class_name, kwargs)


def test_small_adm_networks_that_would_silently_lose_their_attention_are_refused() -> None:
    with pytest.raises(InputError, match="at least 64 channels"):
        randomised(from_official("EDMPrecond", {**IMAGES, "model_channels": 32, "channel_mult": [1, 1]}))
