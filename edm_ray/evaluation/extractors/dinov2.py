"""DINOv2's vision transformer (Oquab et al. 2023; Dosovitskiy et al. 2021), for its features alone.

Written here because torch-fidelity takes it from torch.hub, which runs code from the network. Official parameter names.
Patches of 14 pixels; LayerScale; heads of 64; the feature is the normalised class token.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from edm_ray.errors import IntegrityError

PATCH, HEAD = 14, 64
INPUT = 224
"""Images are resized to this: 16 x 16 patches."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The published networks stretch their position embedding by (16 + 0.1) / 37, not 16 / 37, and take 16 x 16 of it.
POSITION_OFFSET = 0.1


class Gelu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return result


class SwiGlu(nn.Module):
    """Of the largest network (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        result: torch.Tensor = self.w3(functional.silu(gate) * value)
        return result


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, count, 3, self.heads, HEAD).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, count, width))
        return result


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), (SwiGlu if gated else Gelu)(width, hidden)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        result: torch.Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return result


class DinoV2(nn.Module):
    """float32 [B, 3, H, W], normalised, H and W multiples of 14 -> class token [B, width]."""

    def __init__(self, width: int, depth: int, hidden: int, gated: bool, grid: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.blocks = nn.ModuleList([Block(width, hidden, gated) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.grid = grid

    def positions(self, high: int, wide: int) -> torch.Tensor:
        """Position embedding of the class token and of high x wide patches: [1, 1 + high * wide, width]."""
        if (high, wide) == (self.grid, self.grid):
            return self.pos_embed
        width = self.pos_embed.shape[-1]
        table = self.pos_embed[:, 1:].reshape(1, self.grid, self.grid, width).permute(0, 3, 1, 2)
        stretch = ((high + POSITION_OFFSET) / self.grid, (wide + POSITION_OFFSET) / self.grid)
        table = functional.interpolate(table, scale_factor=stretch, mode="bicubic")
        assert table.shape[2:] == (high, wide)
        return torch.cat([self.pos_embed[:, :1], table.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embed.proj(images)  # type: ignore[operator]
        high, wide = patches.shape[2:]
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        x = x + self.positions(high, wide)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = self.norm(x[:, 0])
        return result


def dinov2_from_state(state: dict[str, torch.Tensor], where: str) -> DinoV2:
    """The network whose official state dict this is; its size is read from the tensors. IntegrityError when it is not
    one, or is a variant with register tokens (other features under the same name)."""
    if "register_tokens" in state:
        raise IntegrityError(f"{where}: DINOv2 with register tokens; FD is defined on the networks without them")
    state = {name: tensor.float() for name, tensor in state.items() if name != "mask_token"}
    try:
        width, depth = state["cls_token"].shape[-1], len({n.split(".")[1] for n in state if n.startswith("blocks.")})
        gated = "blocks.0.mlp.w12.weight" in state
        hidden = state["blocks.0.mlp.w3.weight"].shape[1] if gated else state["blocks.0.mlp.fc1.weight"].shape[0]
        network = DinoV2(width, depth, hidden, gated, math.isqrt(state["pos_embed"].shape[1] - 1))
        network.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as error:
        raise IntegrityError(f"{where}: not weights of DINOv2: {str(error).splitlines()[0]}") from error
    return network.eval().requires_grad_(False)
