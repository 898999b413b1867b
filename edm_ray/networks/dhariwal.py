"""ADM: the U-Net of Dhariwal and Nichol 2021 as Karras et al. 2022 retrained it (Table 7, appendix F)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from edm_ray.config.network import ADM
from edm_ray.networks.layers import Conv2d, GroupNorm, Init, LabelDropout, Linear, PositionalEmbedding
from edm_ray.networks.normalise import normalise
from edm_ray.networks.unet import BlockStyle, UNet

_INIT = Init("fan_in_uniform", weight=1.0, bias=1.0)
_INIT_ZERO = Init("fan_in_uniform", weight=0.0, bias=0.0)


class DhariwalUNet(UNet):
    """F_theta with adaptive group normalisation and attention heads of 64 channels."""

    def __init__(self, config: ADM, out_channels: int) -> None:
        width = config.model_channels
        emb_channels = width * config.channel_mult_emb
        style = BlockStyle(
            emb_channels=emb_channels,
            dropout=config.dropout,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT,
            channels_per_head=64,
            adaptive_scale=True,
            eps=1e-5,
        )
        super().__init__(config, out_channels, style)
        augments, classes = config.augment_dim, config.label_dim
        self.map_noise = PositionalEmbedding(width, endpoint=False, swap=False)
        self.map_augment = Linear(augments, width, _INIT_ZERO, bias=False) if augments else None
        self.map_layer0 = Linear(width, emb_channels, _INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, _INIT)
        self.label_dropout = LabelDropout(config.label_dropout)
        self.map_label = Linear(classes, emb_channels, Init("unit_normal"), bias=False) if classes else None
        self.build_levels(first_channels=width * config.channel_mult[0])

    def widen_decoder(self, level: int, channels: int) -> None:
        if level == 0:
            self.out_norm = GroupNorm(channels, self.style.eps)
            self.out_conv = Conv2d(channels, self.out_channels, 3, _INIT_ZERO)

    def embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """The class joins after the MLP."""
        emb = self.embed_augmented(self.map_noise(noise_labels), augment_labels)
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(self.label_dropout(class_labels))
        return F.silu(emb)

    def decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        x = skips[-1]
        for name, block in self.dec.items():
            x = self.run(name, block, x, skips, emb)
        out: torch.Tensor = self.out_conv(normalise(self.out_norm, x))
        return out
