"""What all three U-Nets have in common: the residual block, the levels, the forward pass, and what they check
(Karras et al. 2022, appendix F)."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from edm_ray.config.network import UNetConfig
from edm_ray.errors import InputError
from edm_ray.networks.backend import one_kernel
from edm_ray.networks.layers import Conv2d, Dropout, GroupNorm, Init, LabelDropout, Linear
from edm_ray.networks.normalise import Join, add_scaled, concatenate, normalise


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network have in common."""

    emb_channels: int
    dropout: float
    init: Init
    init_zero: Init
    init_attn: Init
    channels_per_head: int | None = None
    """Attention heads are out_channels // channels_per_head; None = one head."""
    resample_filter: tuple[float, ...] = (1, 1)
    resample_proj: bool = False
    """A 1x1 convolution on the skip of a resampling block even where the channels agree."""
    adaptive_scale: bool = False
    """The embedding gives scale and shift after norm1, not an offset before it."""
    skip_scale: float = 1.0
    eps: float = 1e-5


class UNetBlock(nn.Module):
    """Residual block with optional resampling by two and self-attention.

    h = conv0(silu(norm0(x))), resampled before the convolution; the embedding's projection p comes in as
    silu(norm1(h + p)), or with ``adaptive_scale`` as silu(norm1(h) (1 + scale) + shift);
    y = (conv1(dropout(.)) + skip(x)) skip_scale; with attention y = (proj(attention(norm2(y))) + y) skip_scale.
    x: [B, in_channels, H, W], emb: [B or 1, emb_channels] -> [B, out_channels, H', W'].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        *,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.adaptive_scale, self.skip_scale = style.adaptive_scale, style.skip_scale
        self.num_heads = attention_heads(out_channels, style.channels_per_head) if attention else 0

        f = style.resample_filter
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, up=up, down=down, resample_filter=f)
        self.affine = Linear(style.emb_channels, out_channels * (2 if style.adaptive_scale else 1), style.init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.dropout = Dropout(style.dropout)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_zero)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or ((up or down) and style.resample_proj):
            self.skip = Conv2d(in_channels, out_channels, 1, style.init, up=up, down=down, resample_filter=f)
        elif up or down:
            self.skip = Conv2d(in_channels, out_channels, 0, up=up, down=down, resample_filter=f)
        if attention:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_attn)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_zero)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """x: [B, in_channels, H, W], emb: [B or 1, emb_channels] -> [B, out_channels, H', W']."""
        # Where sums are kernels of ours, they add the biases too: cuDNN would take a pass for each.
        ours = one_kernel(x)
        h = self.conv0(normalise(self.norm0, x), biased=not ours)
        join = self._join(self.affine(emb), self.conv0.bias if ours else None)
        h = self.conv1(normalise(self.norm1, h, join, self.dropout), biased=not ours)
        skip = x if self.skip is None else self.skip(x, biased=not ours)
        biases = (self.conv1.bias, None if self.skip is None else self.skip.bias) if ours else ()
        y = add_scaled(h, skip, self.skip_scale, biases)
        if self.num_heads:
            attended = attend(normalise(self.norm2, y, silu=False), self.qkv, self.proj, self.num_heads)
            y = add_scaled(y, attended, self.skip_scale)
        return y

    def _join(self, p: torch.Tensor, bias: torch.Tensor | None) -> Join:
        """How the embedding's projection joins; bias: of the convolution before, where that has left it out."""
        if self.adaptive_scale:
            scale, shift = p.chunk(2, dim=1)
            return Join(offset=None if bias is None else bias[None], scale=scale, shift=shift)
        return Join(offset=p if bias is None else p + bias)


def attention_heads(channels: int, channels_per_head: int | None) -> int:
    """Heads of a layer with ``channels``; refuses what would silently give none, or heads of unequal size."""
    heads = 1 if channels_per_head is None else channels // channels_per_head
    if heads == 0 or channels % heads:
        raise InputError(
            f"a layer with attention has {channels} channels, which make {heads} heads: allowed are at least "
            f"{channels_per_head} channels, divisible by channels // {channels_per_head}"
        )
    return heads


def attend(x: torch.Tensor, qkv: Conv2d, proj: Conv2d, heads: int) -> torch.Tensor:
    """Self-attention over the pixels. x: [B, C, H, W] -> [B, C, H, W].

    Output channel (head C/heads + c) 3 + j of ``qkv`` is channel c of the head's query, key or value (j = 0, 1, 2).
    Reordering the weight's rows to query, key, value costs less than gathering every third activation, and leaves
    operands that the fused attention kernels take as they are.
    """
    assert qkv.weight is not None and qkv.bias is not None and proj.weight is not None
    batch, channels, height, width = x.shape
    weight = qkv.weight.view(channels, 3, channels).transpose(0, 1).reshape(3 * channels, channels)
    bias = qkv.bias.view(channels, 3).transpose(0, 1).reshape(3 * channels)
    tokens = F.linear(x.flatten(2).transpose(1, 2), weight, bias)
    q, k, v = tokens.view(batch, height * width, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, height * width, channels)
    out = F.linear(out, proj.weight.view(channels, channels), proj.bias)
    return out.transpose(1, 2).reshape(batch, channels, height, width)


class UNet(nn.Module, abc.ABC):
    """F_theta: the noise level and the labels become one embedding, which every block of the encoder and the decoder
    takes; the decoder's blocks also take the encoder's outputs, in reverse order.

    Names and shapes of the parameters are those of the released networks, and so is the order in which initial weights
    are drawn: that in which the layers are made. Subclasses make the maps of the embedding, then call `build_levels`.
    """

    map_noise: nn.Module
    map_label: Linear | None
    map_augment: Linear | None
    map_layer0: Linear
    map_layer1: Linear
    label_dropout: LabelDropout

    def __init__(self, config: UNetConfig, out_channels: int, style: BlockStyle) -> None:
        super().__init__()
        check_geometry(config)
        self.config, self.style = config, style
        self.img_resolution, self.img_channels, self.out_channels = (
            config.img_resolution,
            config.img_channels,
            out_channels,
        )
        self.label_dim, self.augment_dim = config.label_dim, config.augment_dim

    def build_levels(self, first_channels: int) -> None:
        """Make ``enc`` and ``dec``; ``first_channels`` is the width of the first convolution."""
        config, style = self.config, self.style
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        sizes = [config.img_resolution >> level for level in range(len(config.channel_mult))]
        channels, widths = first_channels, []
        for level, (res, mult) in enumerate(zip(sizes, config.channel_mult)):
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(config.img_channels, channels, 3, style.init)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, style, down=True)
                self.widen_encoder(level, channels)
            widths.append(channels)
            for index in range(config.num_blocks):
                width, attention = config.model_channels * mult, res in config.attn_resolutions
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                widths.append(channels)
        for level in reversed(range(len(sizes))):
            res = sizes[level]
            if level == len(sizes) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, style, up=True)
            for index in range(config.num_blocks + 1):
                width = config.model_channels * config.channel_mult[level]
                attention = res in config.attn_resolutions and self.decoder_attends(index)
                joined = channels + widths.pop()
                self.dec[f"{res}x{res}_block{index}"] = UNetBlock(joined, width, style, attention=attention)
                channels = width
            self.widen_decoder(level, channels)

    def widen_encoder(self, level: int, channels: int) -> None:
        """Add what a lower level of the encoder has besides its blocks; nothing here."""

    def decoder_attends(self, index: int) -> bool:
        """Whether this block of a level with attention has it: every one, unless overridden."""
        return True

    @abc.abstractmethod
    def widen_decoder(self, level: int, channels: int) -> None:
        """Add what turns ``channels`` of a level into (a part of) the output."""

    @abc.abstractmethod
    def embed(
        self, noise_labels: torch.Tensor, class_labels: torch.Tensor | None, augment_labels: torch.Tensor | None
    ) -> torch.Tensor:
        """noise_labels [B or 1], labels [B or 1, dim] -> [B or 1, emb_channels]."""

    def embed_augmented(self, emb: torch.Tensor, augment_labels: torch.Tensor | None) -> torch.Tensor:
        """The augmentation joins, then the MLP without its last activation."""
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        out: torch.Tensor = self.map_layer1(F.silu(self.map_layer0(emb)))
        return out

    def encode(self, x: torch.Tensor, emb: torch.Tensor) -> list[torch.Tensor]:
        """The output of every block; the decoder starts at the last."""
        skips: list[torch.Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        return skips

    def run(
        self, name: str, block: nn.Module, x: torch.Tensor, skips: list[torch.Tensor], emb: torch.Tensor
    ) -> torch.Tensor:
        """One block of the decoder; it takes the last of ``skips`` away where it is one that joins."""
        out: torch.Tensor = block(concatenate(x, skips.pop()) if "_block" in name else x, emb)
        return out

    @abc.abstractmethod
    def decode(self, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        """Outputs of the encoder -> [B, out, R, R]."""

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
        return self.decode(self.encode(x, emb), emb)


def check_geometry(config: UNetConfig) -> None:
    """Refuse a resolution that cannot be halved once a level, and attention at a resolution no level has."""
    channel_mult = config.channel_mult
    if any(mult < 1 for mult in channel_mult):
        raise InputError(f"network.channel_mult={channel_mult!r} is not allowed: one multiplier, 1 or more, a level")
    levels = len(channel_mult)
    step = 2 ** (levels - 1)
    if config.img_resolution % step:
        raise InputError(
            f"network.img_resolution={config.img_resolution!r} is not allowed: a multiple of {step}, "
            f"because network.channel_mult={channel_mult!r} has {levels} levels"
        )
    resolutions = [config.img_resolution >> level for level in range(levels)]
    if any(res not in resolutions for res in config.attn_resolutions):
        raise InputError(
            f"network.attn_resolutions={config.attn_resolutions!r} is not allowed: the network's levels are at "
            + ", ".join(map(str, resolutions))
        )
    if config.model_channels < 4 or config.model_channels % 4:
        raise InputError(f"network.model_channels={config.model_channels!r} is not allowed: a multiple of 4")


def check_images(x: torch.Tensor, channels: int, resolution: int) -> None:
    """Refuse images that are not [B, channels, resolution, resolution]."""
    if x.ndim != 4 or x.shape[1:] != (channels, resolution, resolution):
        raise InputError(f"x has shape {tuple(x.shape)}, expected [B, {channels}, {resolution}, {resolution}]")


def check_rows(name: str, labels: torch.Tensor | None, width: int, batch: int) -> torch.Tensor | None:
    """Refuse labels that are not [batch or 1, width]; None where there is nothing to use (none given, or width 0)."""
    if labels is None:
        return None
    if labels.ndim != 2 or labels.shape[1] != width or labels.shape[0] not in (1, batch):
        raise InputError(f"{name} has shape {tuple(labels.shape)}, expected [{batch}, {width}] or [1, {width}]")
    return labels if width else None
