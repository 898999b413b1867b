"""Whole networks against the paper's formulas (appendix F, Table 7), written as one function of a state dict.

Nothing of the package's layers is used: convolutions are sums over shifted copies, resampling is a product with a
matrix, attention a softmax of products. In float64, so that agreement to 1e-10 leaves no room for a misplaced factor.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from edm_ray.config.network import NETWORKS, SongNetwork, UNetConfig
from edm_ray.networks import build_network

State = dict[str, torch.Tensor]
SMALL: dict[str, Any] = {
    "img_resolution": 8, "img_channels": 2, "model_channels": 8, "channel_mult": (1, 2, 3), "num_blocks": 2,
    "attn_resolutions": (4,), "label_dim": 3, "augment_dim": 9,
}  # fmt: skip
NCSN = {"kind": "ncsnpp"}
FORMS: dict[str, dict[str, Any]] = {
    "ddpmpp": {},
    "ncsnpp": NCSN,
    "skip encoder": {**NCSN, "encoder_type": "skip"},
    "skip decoder": {"decoder_type": "skip", "embedding_type": "fourier"},
    "skip and skip": {**NCSN, "encoder_type": "skip", "decoder_type": "skip"},
    "residual and skip": {"encoder_type": "residual", "decoder_type": "skip", "resample_filter": (1, 3, 3, 1)},
    "unconditional": {"label_dim": 0, "augment_dim": 0, "channel_mult_noise": 3, "channel_mult_emb": 2},
    "adm": {"kind": "adm", "model_channels": 64, "channel_mult": (1, 2), "num_blocks": 2, "attn_resolutions": (8, 4)},
    "adm, wide heads": {"kind": "adm", "model_channels": 96, "channel_mult": (1, 2), "attn_resolutions": ()},
}


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, pad: int) -> torch.Tensor:
    size, wide = weight.shape[-1], torch.nn.functional.pad(x, (pad,) * 4)
    rows, columns = (wide.shape[i] - size + 1 for i in (2, 3))
    out = bias[None, :, None, None]
    for i in range(size):
        for j in range(size):
            shifted = wide[:, :, i : i + rows, j : j + columns]
            out = out + torch.einsum("oc,bcyx->boyx", weight[:, :, i, j], shifted)
    return out


def halving(size: int, taps: tuple[float, ...], pad: int) -> torch.Tensor:
    """[size', size]: row i sums f[a] / sum(f) of pixel 2 i + a - pad; zero outside."""
    count = (size + 2 * pad - len(taps)) // 2 + 1
    matrix = torch.zeros(count, size, dtype=torch.float64)
    for i in range(count):
        for a, tap in enumerate(taps):
            if 0 <= 2 * i + a - pad < size:
                matrix[i, 2 * i + a - pad] += tap / sum(taps)
    return matrix


def resample(x: torch.Tensor, up: bool, taps: tuple[float, ...], pad: int | None = None) -> torch.Tensor:
    """Down by the filter; up is twice its transpose an axis (the filter times four)."""
    size = x.shape[-1]
    pad = (len(taps) - 1) // 2 if pad is None else pad
    matrix = 2 * halving(2 * size, taps, pad).T if up else halving(size, taps, pad)
    return torch.einsum("ih,jw,bchw->bcij", matrix, matrix, x)


def normalise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    groups = x.reshape(len(x), min(32, x.shape[1] // 4), -1)
    centred = groups - groups.mean(2, keepdim=True)
    scaled = centred / (centred.square().mean(2, keepdim=True) + eps).sqrt()
    return scaled.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


class Plain:
    """A configuration and a state dict, as a function of images and labels."""

    def __init__(self, config: UNetConfig, state: State) -> None:
        self.config, self.state, self.adm = config, state, config.kind == "adm"
        song = config if isinstance(config, SongNetwork) else SongNetwork()
        self.taps, self.encoder, self.decoder = song.resample_filter, song.encoder_type, song.decoder_type
        self.fourier = song.embedding_type == "fourier"
        self.eps, self.scale = (1e-5, 1.0) if self.adm else (1e-6, math.sqrt(0.5))

    def layer(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.state[f"{name}.weight"], self.state[f"{name}.bias"]

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight = self.state[f"{name}.weight"]
        return x @ weight.T + self.state.get(f"{name}.bias", torch.zeros(len(weight), dtype=x.dtype))

    def embedding(self, c_noise: torch.Tensor, labels: torch.Tensor, augment: torch.Tensor) -> torch.Tensor:
        if self.fourier:
            phase = 2 * math.pi * c_noise[:, None] * self.state["map_noise.freqs"]
        else:
            width = self.state["map_layer0.weight"].shape[1]
            last = width / 2 - (0 if self.adm else 1)
            phase = c_noise[:, None] * torch.tensor([10000 ** (-k / last) for k in range(width // 2)]).double()
        halves = [phase.cos(), phase.sin()] if self.adm else [phase.sin(), phase.cos()]
        emb = torch.cat(halves, 1)
        if self.config.label_dim and not self.adm:
            emb = emb + self.linear("map_label", labels * math.sqrt(self.config.label_dim))
        if self.config.augment_dim:
            emb = emb + self.linear("map_augment", augment)
        emb = self.linear("map_layer1", silu(self.linear("map_layer0", emb)))
        if self.config.label_dim and self.adm:
            emb = emb + self.linear("map_label", labels)
        return silu(emb)

    def block(self, name: str, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        up, down = name.endswith("_up"), name.endswith("_down")

        def change(h: torch.Tensor) -> torch.Tensor:
            return resample(h, up, self.taps) if up or down else h

        h = change(silu(normalise(x, *self.layer(f"{name}.norm0"), self.eps)))
        h = convolve(h, *self.layer(f"{name}.conv0"), 1)
        p = self.linear(f"{name}.affine", emb)[:, :, None, None]
        if self.adm:
            scale, shift = p[:, : h.shape[1]], p[:, h.shape[1] :]
            h = silu(normalise(h, *self.layer(f"{name}.norm1"), self.eps) * (1 + scale) + shift)
        else:
            h = silu(normalise(h + p, *self.layer(f"{name}.norm1"), self.eps))
        h = convolve(h, *self.layer(f"{name}.conv1"), 1)
        skip = change(x)
        if f"{name}.skip.weight" in self.state:
            skip = convolve(skip, *self.layer(f"{name}.skip"), 0)
        h = (h + skip) * self.scale
        if f"{name}.qkv.weight" in self.state:
            h = (self.attention(name, h) + h) * self.scale
        return h

    def attention(self, name: str, h: torch.Tensor) -> torch.Tensor:
        """q, k, v of channel c of head n are rows 3 (n C / heads + c) + 0, 1, 2 of qkv."""
        heads = h.shape[1] // 64 if self.adm else 1
        qkv = convolve(normalise(h, *self.layer(f"{name}.norm2"), self.eps), *self.layer(f"{name}.qkv"), 0)
        q, k, v = (qkv[:, part::3].reshape(len(h), heads, -1, h.shape[2] * h.shape[3]) for part in range(3))
        weights = torch.einsum("bncq,bnck->bnqk", q, k).div(math.sqrt(q.shape[2])).softmax(-1)
        mixed = torch.einsum("bnqk,bnck->bncq", weights, v).reshape(h.shape)
        return convolve(mixed, *self.layer(f"{name}.proj"), 0)

    def __call__(
        self, x: torch.Tensor, c_noise: torch.Tensor, labels: torch.Tensor, augment: torch.Tensor
    ) -> torch.Tensor:
        config, emb = self.config, self.embedding(c_noise, labels, augment)
        sizes = [config.img_resolution // 2**level for level in range(len(config.channel_mult))]
        skips, aux = [], x
        for level, size in enumerate(sizes):
            at = f"enc.{size}x{size}"
            if level == 0:
                x = convolve(x, *self.layer(f"{at}_conv"), 1)
            else:
                x = self.block(f"{at}_down", x, emb)
                if self.encoder == "skip":
                    aux = resample(aux, False, self.taps)
                    x = x + convolve(aux, *self.layer(f"{at}_aux_skip"), 0)
                if self.encoder == "residual":
                    pad = (len(self.taps) - 1) // 2
                    wide = convolve(aux, *self.layer(f"{at}_aux_residual"), 1 + pad)
                    x = aux = (x + resample(wide, False, self.taps, 0)) / math.sqrt(2)
            skips.append(x)
            for index in range(config.num_blocks):
                x = self.block(f"{at}_block{index}", x, emb)
                skips.append(x)
        image: torch.Tensor | None = None
        for level, size in reversed(list(enumerate(sizes))):
            at = f"dec.{size}x{size}"
            if level == len(sizes) - 1:
                x = self.block(f"{at}_in1", self.block(f"{at}_in0", x, emb), emb)
            else:
                x = self.block(f"{at}_up", x, emb)
            for index in range(config.num_blocks + 1):
                x = self.block(f"{at}_block{index}", torch.cat([x, skips.pop()], 1), emb)
            if not self.adm and (self.decoder == "skip" or level == 0):
                head = silu(normalise(x, *self.layer(f"{at}_aux_norm"), 1e-6))
                head = convolve(head, *self.layer(f"{at}_aux_conv"), 1)
                image = head if image is None else resample(image, True, self.taps) + head
        if self.adm:
            return convolve(silu(normalise(x, *self.layer("out_norm"), 1e-5)), *self.layer("out_conv"), 1)
        assert image is not None and not skips
        return image


@pytest.mark.parametrize("form", list(FORMS))
def test_a_whole_network_is_the_papers_formulas(form: str) -> None:
    config = NETWORKS(**{**SMALL, **FORMS[form]})
    network = build_network(config, seed=1).double().eval()
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        for parameter in network.parameters():  # nothing stays at zero or one, where mistakes would not show
            parameter += 0.2 * draw(*parameter.shape) / max(1, parameter[0].numel()) ** 0.5
        x, c_noise = draw(2, 2, 8, 8), draw(2)
        labels, augment = draw(2, config.label_dim), draw(2, config.augment_dim)
        found = network(x, c_noise, labels, augment)
        expected = Plain(config, network.state_dict())(x, c_noise, labels, augment)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
