"""DINOv2 with random weights, against the parts of it that torch has. (Once, by hand: equal to timm's network, bit for
bit, with both kinds of feed-forward layer.)"""

from __future__ import annotations

import pytest
import torch

from edm_ray.errors import IntegrityError
from edm_ray.evaluation.extractors.dinov2 import DinoV2, dinov2_from_state
from edm_ray.evaluation.extractors.registry import load_extractor


def _state(gated: bool = False, grid: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = DinoV2(width=128, depth=2, hidden=96, gated=gated, grid=grid).state_dict()
    return {name: torch.randn(t.shape, generator=generator) * 0.2 for name, t in state.items()}


def _by_torchs_parts(state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """The same network out of torch's own attention layer, at the size its positions are for."""

    def linear(x, name):
        return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    tiles = torch.nn.functional.unfold(images, 14, stride=14).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), tiles @ weight.flatten(1).T + bias], dim=1)
    x = x + state["pos_embed"]
    for i in range(2):
        block = f"blocks.{i}"
        attention = torch.nn.MultiheadAttention(128, 2, batch_first=True, dtype=torch.float64).eval()
        attention.load_state_dict(
            {
                "in_proj_weight": state[f"{block}.attn.qkv.weight"],
                "in_proj_bias": state[f"{block}.attn.qkv.bias"],
                "out_proj.weight": state[f"{block}.attn.proj.weight"],
                "out_proj.bias": state[f"{block}.attn.proj.bias"],
            }
        )
        y = norm(x, f"{block}.norm1")
        x = x + state[f"{block}.ls1.gamma"] * attention(y, y, y)[0]
        y = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in state:
            gate, value = linear(y, f"{block}.mlp.w12").chunk(2, dim=-1)
            y = linear(gate * torch.sigmoid(gate) * value, f"{block}.mlp.w3")
        else:
            y = linear(y, f"{block}.mlp.fc1")
            y = linear(y * 0.5 * (1 + torch.erf(y / 2**0.5)), f"{block}.mlp.fc2")
        x = x + state[f"{block}.ls2.gamma"] * y
    return norm(x, "norm")[:, 0]


@pytest.mark.parametrize("gated", [False, True])
def test_the_network_is_that_of_torchs_own_parts(gated):
    state = {name: tensor.double() for name, tensor in _state(gated).items()}
    images = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        expected, found = _by_torchs_parts(state, images), dinov2_from_state(state, "f").double()(images)
    assert float(expected.abs().max()) > 0.3
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def test_positions_are_stretched_over_another_size_by_its_offset():
    """A ramp stays a ramp, at the places that (16 + 0.1) / 37 puts them; with 16 / 37 it would be 0.1 off on average.
    (Torch's bicubic bends a ramp by up to 0.05.)"""
    network = DinoV2(width=64, depth=1, hidden=8, gated=False, grid=37)
    ramp = torch.arange(37.0).repeat(37, 1).flatten()[None, :, None].expand(1, -1, 64)
    network.pos_embed.data = torch.cat([torch.full((1, 1, 64), -5.0), ramp], dim=1)
    with torch.no_grad():
        found = network.positions(16, 16)[0, :, 0]
    assert found.shape == (257,) and float(found[0]) == -5.0
    places = (torch.arange(16.0) + 0.5) * 37 / 16.1 - 0.5
    gap = found[1:].reshape(16, 16)[5, 1:-1] - places[1:-1]
    assert float(gap.abs().max()) < 0.06 and abs(float(gap.mean())) < 0.03


def test_the_extractor_takes_a_state_dict_of_torch_save(tmp_path):
    path = tmp_path / "dinov2.pth"
    torch.save({**_state(grid=16), "mask_token": torch.zeros(1, 128)}, path)
    extractor = load_extractor("dinov2", path)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    features = extractor.extract(images)
    assert features.shape == (3, 128) == (3, extractor.dim) and len({tuple(row) for row in features.tolist()}) == 3
    assert not extractor.has_head and extractor.identity != load_extractor("dinov2", _other(tmp_path)).identity


def _other(folder):
    path = folder / "other.pth"
    torch.save(_state(gated=True, grid=16), path)
    return path


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    for change, says in (
        ({"register_tokens": torch.zeros(1, 4, 128)}, "with register tokens"),
        ({"more": torch.zeros(1)}, "not weights of DINOv2"),
    ):
        torch.save({**_state(), **change}, path)
        with pytest.raises(IntegrityError, match=says):
            load_extractor("dinov2", path)
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(IntegrityError, match="not weights of DINOv2"):
        load_extractor("dinov2", path)
