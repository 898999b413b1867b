"""ADM: the U-Net of Dhariwal and Nichol 2021 as Karras et al. 2022 retrained it (Table 7, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edm_ray.networks.block import BlockStyle, UNetBlock, check_geometry, check_images, check_rows
from edm_ray.networks.layers import Conv2d, GroupNorm, Init, LabelDropout, Linear, PositionalEmbedding

_INIT = Init("fan_in_uniform", weight=1.0, bias=1.0)
_INIT_ZERO = Init("fan_in_uniform", weight=0.0, bias=0.0)


class DhariwalUNet(nn.Module):
    """F_theta with adaptive group normalisation and attention heads of 64 channels.

    Names and shapes of the parameters are those of the released networks.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: tuple[int, ...] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: tuple[int, ...] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_geometry(img_resolution, model_channels, channel_mult, attn_resolutions)
        self.img_resolution, self.img_channels, self.out_channels = img_resolution, in_channels, out_channels
        self.label_dim, self.augment_dim = label_dim, augment_dim
        emb_channels = model_channels * channel_mult_emb
        style = BlockStyle(
            emb_channels=emb_channels,
            dropout=dropout,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT,
            channels_per_head=64,
            adaptive_scale=True,
            eps=1e-5,
        )

        self.map_noise = PositionalEmbedding(model_channels, endpoint=False, swap=False)
        self.map_augment = Linear(augment_dim, model_channels, _INIT_ZERO, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)
        self.label_dropout = LabelDropout(label_dropout)
        self.map_label = Linear(label_dim, emb_channels, Init("unit_normal"), bias=False) if label_dim else None

        self.enc = nn.ModuleDict()
        widths: list[int] = []
        channels = in_channels
        for level, mult in enumerate(channel_mult):
            res, width = img_resolution >> level, model_channels * mult
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, width, 3, _INIT)
                channels = width
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, style, down=True)
            widths.append(channels)
            for index in range(num_blocks):
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                widths.append(channels)

        self.dec = nn.ModuleDict()
        for level in range(len(channel_mult) - 1, -1, -1):
            res, width = img_resolution >> level, model_channels * channel_mult[level]
            if level == len(channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, style, up=True)
            for index in range(num_blocks + 1):
                attention = res in attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels + widths.pop(), width, style, attention=attention
                )
                channels = width
        self.out_norm = GroupNorm(channels, 1e-5)
        self.out_conv = Conv2d(channels, out_channels, 3, _INIT_ZERO)

    def embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """noise_labels [B], labels [B or 1, dim] -> [B, emb_channels]; the class joins after the MLP."""
        emb: torch.Tensor = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(self.label_dropout(class_labels))
        return F.silu(emb)

    def forward(
        self,
        x: torch.Tensor,
        noise_labels: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x [B, C, R, R], noise_labels [B or 1], class_labels and augment_labels [B or 1, dim] -> [B, out, R, R].

        Missing labels are rows of zeros.
        """
        check_images(x, self.img_channels, self.img_resolution)
        class_labels = check_rows("class_labels", class_labels, self.label_dim, len(x))
        augment_labels = check_rows("augment_labels", augment_labels, self.augment_dim, len(x))
        emb = self.embed(noise_labels, class_labels, augment_labels)

        skips: list[torch.Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        out: torch.Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out
