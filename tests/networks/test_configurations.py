"""Every choice of a configuration reaches the network, compiles, has right gradients, and bad ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from edm_ray.config.denoiser import DenoiserConfig
from edm_ray.config.network import NETWORKS
from edm_ray.config.preconditioning import PRECONDITIONINGS
from edm_ray.errors import InputError
from edm_ray.networks import build_denoiser, build_network

SMALL: dict[str, Any] = {
    "img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1,
    "attn_resolutions": (4,), "label_dim": 3, "augment_dim": 2,
}  # fmt: skip
FORMS: dict[str, dict[str, Any]] = {
    "ddpmpp": SMALL,
    "ncsnpp": {**SMALL, "kind": "ncsnpp"},
    "adm": {**SMALL, "kind": "adm", "model_channels": 64, "channel_mult": (1, 1)},
    "skip encoder": {**SMALL, "encoder_type": "skip", "resample_filter": (1, 3, 3, 1)},
    "skip decoder": {**SMALL, "decoder_type": "skip"},
    "skip both": {**SMALL, "kind": "ncsnpp", "encoder_type": "skip", "decoder_type": "skip"},
    "residual and skip": {**SMALL, "encoder_type": "residual", "decoder_type": "skip", "embedding_type": "fourier"},
}


def awake(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Evaluation mode, with random weights where the paper starts at (nearly) zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return network.to(dtype).eval()


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 1, 8, 8), (2,), (2, 3), (2, 2))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("form", list(FORMS))
def test_gradients_of_every_form_agree_with_finite_differences(form: str) -> None:
    network = awake(build_network(NETWORKS(**FORMS[form])), torch.float64)
    given = inputs(torch.float64)
    weights = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)).double()
    given[0].requires_grad_(True)
    variables = [given[0], *network.parameters()]
    gradients = torch.autograd.grad((network(*given) * weights).sum(), variables)
    generator, step = torch.Generator().manual_seed(3), 1e-6
    for chosen in [range(len(variables)), *([i] for i in range(0, len(variables), 12))]:
        directions = {i: torch.randn(variables[i].shape, generator=generator).double() for i in chosen}
        values = []
        with torch.no_grad():
            for sign in (1, -2, 1):
                for i, direction in directions.items():
                    variables[i].add_(direction, alpha=sign * step)
                values.append(float((network(*given) * weights).sum()))
        got = sum(float((gradients[i] * direction).sum()) for i, direction in directions.items())
        assert got == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("form", ["skip both", "residual and skip"])
def test_every_form_compiles_without_graph_breaks(form: str, mode: str) -> None:
    network = awake(build_network(NETWORKS(**{**FORMS[form], "dropout": 0.1, "label_dropout": 0.1})))
    network.train(mode == "train")
    torch._dynamo.reset()
    explained = torch._dynamo.explain(network)(*inputs())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    out = compiled(*inputs())
    if mode == "eval":
        torch.testing.assert_close(out, network(*inputs()))
    out.sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["edm", "vp", "ve", "iddpm"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_denoiser_compiles_without_graph_breaks(kind: str, mode: str) -> None:
    denoiser = build_denoiser(
        DenoiserConfig(network=NETWORKS(**SMALL), preconditioning=PRECONDITIONINGS(kind=kind))
    ).train(mode == "train")
    torch._dynamo.reset()
    x, _, labels, augment = inputs()
    sigma = torch.tensor([0.5, 20.0])
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    out = compiled(x, sigma, labels, augment)
    if mode == "eval":
        torch.testing.assert_close(out, denoiser(x, sigma, labels, augment))


@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp", "adm", "skip both"])
def test_channels_last_gives_the_same_image_and_stays_channels_last(form: str) -> None:
    network = awake(build_network(NETWORKS(**{**FORMS[form], "img_channels": 3})))
    x, *rest = inputs()
    x = x.expand(-1, 3, -1, -1).contiguous()
    expected = network(x, *rest)
    layouts: list[bool] = []
    for block in [*network.enc.values(), *network.dec.values()]:
        block.register_forward_hook(
            lambda module, got, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    out = network.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last), *rest)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert all(layouts) and len(layouts) > 6


@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp", "adm"])
def test_attention_is_the_fused_kernel_call(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = awake(build_network(NETWORKS(**FORMS[form])))
    calls: list[tuple[int, ...]] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(q.shape))
        return original(q, k, v)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", counted)
    network(*inputs())
    layers = sum(1 for name, _ in network.named_modules() if name.endswith(".qkv"))
    assert len(calls) == layers > 0 and all(shape[2] == 16 for shape in calls)  # 4 x 4 pixels


@pytest.mark.parametrize("form", ["ddpmpp", "ncsnpp", "adm"])
def test_weights_are_cast_by_autocast_alone_and_never_in_python(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cast of weights in every call would be seen here as a call of Tensor.to, .half, .float or .type."""
    network = awake(build_network(NETWORKS(**FORMS[form])))
    given = inputs()
    expected = network(*given)
    weights = {id(parameter) for parameter in network.parameters()}
    for name in ("to", "half", "float", "double", "bfloat16", "type"):
        original = getattr(torch.Tensor, name)

        def spied(self: torch.Tensor, *args: Any, original: Any = original, **kwargs: Any) -> Any:
            assert id(self) not in weights
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spied)
    network(*given)
    with torch.autocast("cpu", torch.bfloat16):
        low = network(*given)
    assert float((low - expected).detach().abs().max()) < 0.15 * float(expected.detach().abs().max())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("network.embedding_type='sine'", {"embedding_type": "sine"}),
        ("network.encoder_type='dense'", {"encoder_type": "dense"}),
        ("network.decoder_type='residual'", {"decoder_type": "residual"}),
        ("network.channel_mult_noise=0", {"channel_mult_noise": 0}),
        ("network.channel_mult_emb=0", {"channel_mult_emb": 0}),
        ("network.resample_filter=(1, 2, 1)", {"resample_filter": (1, 2, 1)}),
        ("network.resample_filter=()", {"resample_filter": ()}),
        ("network.resample_filter=(1, -1)", {"resample_filter": (1, -1)}),
        ("network.encoder_type='skip'", {"kind": "adm", "encoder_type": "skip"}),
        ("network.channel_mult_noise=2", {"kind": "adm", "channel_mult_noise": 2}),
    ],
)
def test_a_form_that_does_not_exist_is_refused_by_field(field: str, config: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        NETWORKS(**config)
    assert str(caught.value).startswith(field) and "is not allowed: " in str(caught.value)


@pytest.mark.parametrize(
    ("field", "config"),
    [
        ("preconditioning.sigma_data=inf", {"sigma_data": float("inf")}),
        ("preconditioning.beta_d=19.9", {"kind": "edm", "beta_d": 19.9}),
        ("preconditioning.c_1=0.001", {"kind": "vp", "c_1": 0.001}),
        ("preconditioning.sigma_max=80.0", {"kind": "iddpm", "sigma_max": 80.0}),
        ("preconditioning.sigma_min=200.0", {"kind": "ve", "sigma_min": 200.0}),
        ("preconditioning.sigma_min=0.02", {"kind": "ve", "sigma_max": 0.01}),
        ("preconditioning.sigma_min=-1.0", {"sigma_min": -1.0}),
        ("preconditioning.beta_d=0.0", {"kind": "vp", "beta_d": 0.0}),
        ("preconditioning.num_train_steps=1", {"kind": "iddpm", "num_train_steps": 1}),
        ("preconditioning.epsilon_t=nan", {"kind": "vp", "epsilon_t": float("nan")}),
    ],
)
def test_a_constant_that_a_preconditioning_cannot_have_is_refused_by_field(field: str, config: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        PRECONDITIONINGS(**config)
    assert str(caught.value).startswith(field) and "is not allowed: " in str(caught.value)


def test_a_form_given_in_full_is_the_same_network_as_its_kind() -> None:
    for kind, said in (
        ("ddpmpp", ("positional", 1, "standard", "standard", (1, 1))),
        ("ncsnpp", ("fourier", 2, "residual", "standard", (1, 3, 3, 1))),
    ):
        names = ("embedding_type", "channel_mult_noise", "encoder_type", "decoder_type", "resample_filter")
        full = build_network(NETWORKS(**SMALL, kind="ddpmpp", **dict(zip(names, said))))
        named = build_network(NETWORKS(**SMALL, kind=kind))
        assert full.state_dict().keys() == named.state_dict().keys()
        assert torch.equal(awake(full)(*inputs()), awake(named)(*inputs()))
