"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021 as Karras et al. 2022 retrained them (Table 7, appendix F)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from edm_ray.config.network import SongNetwork
from edm_ray.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    LabelDropout,
    Linear,
    PositionalEmbedding,
)
from edm_ray.networks.normalise import normalise
from edm_ray.networks.unet import BlockStyle, UNet, UNetBlock

_INIT = Init("xavier_uniform")
_INIT_ZERO = Init("xavier_uniform", weight=1e-5)
_INIT_ATTN = Init("xavier_uniform", weight=math.sqrt(0.2))


class SongUNet(UNet):
    """F_theta with one-headed attention, additive embedding and skips scaled by sqrt(1/2).

    encoder_type: "standard"; "skip" adds a shrunk copy of the input to every lower level through a 1x1 convolution;
    "residual" carries it down through strided 3x3 convolutions.
    decoder_type: "standard", or "skip": every level has an image as output, and they are summed upwards.
    """

    config: SongNetwork

    def __init__(self, config: SongNetwork, out_channels: int) -> None:
        emb_channels = config.model_channels * config.channel_mult_emb
        noise_channels = config.model_channels * config.channel_mult_noise
        style = BlockStyle(
            emb_channels=emb_channels,
            dropout=config.dropout,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT_ATTN,
            resample_filter=tuple(config.resample_filter),
            resample_proj=True,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
        )
        super().__init__(config, out_channels, style)
        if config.embedding_type == "positional":
            self.map_noise = PositionalEmbedding(noise_channels, endpoint=True, swap=True)
        else:
            self.map_noise = FourierEmbedding(noise_channels)
        augments, classes = config.augment_dim, config.label_dim
        self.label_dropout = LabelDropout(config.label_dropout)
        self.map_label = Linear(classes, noise_channels, _INIT) if classes else None
        self.map_augment = Linear(augments, noise_channels, _INIT, bias=False) if augments else None
        self.map_layer0 = Linear(noise_channels, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)
        self.build_levels(first_channels=config.model_channels)

    def widen_encoder(self, level: int, channels: int) -> None:
        res, images, taps = self.img_resolution >> level, self.img_channels, self.style.resample_filter
        if self.config.encoder_type == "skip":
            self.enc[f"{res}x{res}_aux_down"] = Conv2d(images, images, 0, down=True, resample_filter=taps)
            self.enc[f"{res}x{res}_aux_skip"] = Conv2d(images, channels, 1, _INIT)
        if self.config.encoder_type == "residual":
            above = images if level == 1 else self.config.model_channels * self.config.channel_mult[level - 2]
            self.enc[f"{res}x{res}_aux_residual"] = Conv2d(
                above, channels, 3, _INIT, down=True, resample_filter=taps, fused_resample=True
            )

    def decoder_attends(self, index: int) -> bool:
        """The last block of a level only."""
        return index == self.config.num_blocks

    def widen_decoder(self, level: int, channels: int) -> None:
        every = self.config.decoder_type == "skip"
        if level and not every:
            return
        res, out = self.img_resolution >> level, self.out_channels
        if every and level < len(self.config.channel_mult) - 1:
            taps = self.style.resample_filter
            self.dec[f"{res}x{res}_aux_up"] = Conv2d(out, out, 0, up=True, resample_filter=taps)
        self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, self.style.eps)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, out, 3, _INIT_ZERO)

    def embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """All conditioning joins before the MLP."""
        emb: torch.Tensor = self.map_noise(noise_labels)
        if self.map_label is not None:
            if class_labels is None:
                class_labels = emb.new_zeros(1, self.label_dim)
            emb = emb + self.map_label(self.label_dropout(class_labels) * math.sqrt(self.label_dim))
        return F.silu(self.embed_augmented(emb, augment_labels))

    def encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
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
        return skips

    def decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        image: torch.Tensor | None = None
        x = head = skips[-1]
        for name, block in self.dec.items():
            if name.endswith("_aux_up"):
                image = block(image)
            elif name.endswith("_aux_norm"):
                assert isinstance(block, GroupNorm)
                head = normalise(block, x)
            elif name.endswith("_aux_conv"):
                head = block(head)
                image = head if image is None else image + head
            else:
                x = self.run(name, block, x, skips, emb)
        assert image is not None
        return image
