"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021 as Karras et al. 2022 retrained them (Table 7, appendix F)."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from edm_ray.networks.block import BlockStyle, UNetBlock, check_geometry, check_images, check_rows
from edm_ray.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    LabelDropout,
    Linear,
    PositionalEmbedding,
)

_INIT = Init("xavier_uniform")
_INIT_ZERO = Init("xavier_uniform", weight=1e-5)
_INIT_ATTN = Init("xavier_uniform", weight=math.sqrt(0.2))


class SongUNet(nn.Module):
    """F_theta with one-headed attention, additive embedding and skips scaled by sqrt(1/2).

    DDPM++ is the default; NCSN++ has embedding_type "fourier", channel_mult_noise 2, encoder_type "residual" and
    resample_filter (1, 3, 3, 1). Names and shapes of the parameters are those of the released networks.

    encoder_type: "standard"; "skip" adds a shrunk copy of the input to every lower level through a 1x1 convolution;
    "residual" carries it down through strided 3x3 convolutions.
    decoder_type: "standard", or "skip": every level has an image as output, and they are summed upwards.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
    ) -> None:
        super().__init__()
        check_geometry(img_resolution, model_channels, channel_mult, attn_resolutions)
        self.img_resolution, self.img_channels, self.out_channels = img_resolution, in_channels, out_channels
        self.label_dim, self.augment_dim = label_dim, augment_dim
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = BlockStyle(
            emb_channels=emb_channels,
            dropout=dropout,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT_ATTN,
            resample_filter=resample_filter,
            resample_proj=True,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
        )

        self.map_noise: nn.Module
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True, swap=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        self.label_dropout = LabelDropout(label_dropout)
        self.map_label = Linear(label_dim, noise_channels, _INIT) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, _INIT, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)

        self.enc = nn.ModuleDict()
        widths: list[int] = []
        channels, aux_channels = in_channels, in_channels
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(channels, model_channels, 3, _INIT)
                channels = model_channels
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, style, down=True)
                if encoder_type == "skip":
                    self.enc[f"{res}x{res}_aux_down"] = Conv2d(
                        aux_channels, aux_channels, 0, down=True, resample_filter=resample_filter
                    )
                    self.enc[f"{res}x{res}_aux_skip"] = Conv2d(aux_channels, channels, 1, _INIT)
                if encoder_type == "residual":
                    self.enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        aux_channels, channels, 3, _INIT, down=True,
                        resample_filter=resample_filter, fused_resample=True,
                    )  # fmt: skip
                    aux_channels = channels
            widths.append(channels)
            for index in range(num_blocks):
                width = model_channels * mult
                attention = res in attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                widths.append(channels)

        self.dec = nn.ModuleDict()
        last = len(channel_mult) - 1
        for level in range(last, -1, -1):
            res = img_resolution >> level
            if level == last:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, style, up=True)
            for index in range(num_blocks + 1):
                width = model_channels * channel_mult[level]
                attention = index == num_blocks and res in attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels + widths.pop(), width, style, attention=attention
                )
                channels = width
            if decoder_type == "skip" or level == 0:
                if level < last and decoder_type == "skip":
                    self.dec[f"{res}x{res}_aux_up"] = Conv2d(
                        out_channels, out_channels, 0, up=True, resample_filter=resample_filter
                    )
                self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, 1e-6)
                self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out_channels, 3, _INIT_ZERO)

    def embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """noise_labels [B], labels [B or 1, dim] -> [B, emb_channels]; all conditioning joins before the MLP."""
        emb: torch.Tensor = self.map_noise(noise_labels)
        if self.map_label is not None:
            if class_labels is None:
                class_labels = emb.new_zeros(1, self.label_dim)
            emb = emb + self.map_label(self.label_dropout(class_labels) * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

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
        aux = x
        for name, block in self.enc.items():
            if name.endswith("_aux_down"):
                aux = block(aux)
            elif name.endswith("_aux_skip"):
                x = skips[-1] = x + block(aux)
            elif name.endswith("_aux_residual"):
                x = skips[-1] = aux = (x + block(aux)) * math.sqrt(0.5)
            else:
                x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
                skips.append(x)

        image: torch.Tensor | None = None
        head = x
        for name, block in self.dec.items():
            if name.endswith("_aux_up"):
                image = block(image)
            elif name.endswith("_aux_norm"):
                head = block(x)
            elif name.endswith("_aux_conv"):
                head = block(F.silu(head))
                image = head if image is None else image + head
            else:
                x = block(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        assert image is not None
        return image
