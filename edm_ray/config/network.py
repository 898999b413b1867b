"""F_theta: which network, at which size (Karras et al. 2022, Table 7 and appendix F). One class a kind."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from edm_ray.config.kinds import Kinds
from edm_ray.errors import require

# Sizes beyond these are no network but a way to keep the reader busy.
LARGEST = {
    "img_resolution": 4096, "img_channels": 1024, "label_dim": 1_000_000, "augment_dim": 4096, "model_channels": 8192,
    "channel_mult_emb": 64, "num_blocks": 64, "channel_mult_noise": 64,
}  # fmt: skip
MOST_LEVELS, LARGEST_MULT = 16, 64


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What every network says of itself: the images it takes, and its labels."""

    kind: str = field(default="", init=False)
    img_resolution: int = 32
    """Pixels of a side; the data set's."""
    img_channels: int = 3
    """1 for grey, 3 for colour; the data set's."""
    label_dim: int = 0
    """Number of classes; 0 = unconditional."""
    augment_dim: int = 0
    """Width of the augmentation label; 0 = none, 9 = the paper's geometric transforms."""

    def __post_init__(self) -> None:
        self.at_least(1, "img_resolution", "img_channels")
        for name in ("label_dim", "augment_dim"):
            require(getattr(self, name) >= 0, f"network.{name}", getattr(self, name), "0 or more")
        for name, most in LARGEST.items():
            value = getattr(self, name, 0)
            require(value <= most, f"network.{name}", value, f"at most {most:,}")

    def at_least(self, least: int, *names: str) -> None:
        """Refuse a smaller number in one of these fields."""
        for name in names:
            require(getattr(self, name) >= least, f"network.{name}", getattr(self, name), f"at least {least}")


@dataclass(frozen=True, kw_only=True)
class UNetConfig(NetworkConfig):
    """What the U-Nets have in common."""

    model_channels: int = 128
    """Channels that channel_mult multiplies."""
    channel_mult: tuple[int, ...] = (2, 2, 2)
    """Width of each level, the highest resolution first; each level halves the resolution."""
    num_blocks: int = 4
    """Residual blocks a level in the encoder; the decoder has one more."""
    attn_resolutions: tuple[int, ...] = (16,)
    """Resolutions of the levels that have attention."""
    dropout: float = 0.10
    """Probability that an activation is dropped in training."""
    label_dropout: float = 0.0
    """Probability of training an image without its label (for classifier-free guidance)."""
    channel_mult_emb: int = 4
    """Width of the embedding's MLP, in model_channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "model_channels", "num_blocks", "channel_mult_emb")
        levels = self.channel_mult
        few = 1 <= len(levels) <= MOST_LEVELS and all(1 <= mult <= LARGEST_MULT for mult in levels)
        allowed = f"one multiplier a level, of 1 to {LARGEST_MULT}; at most {MOST_LEVELS} levels"
        require(few, "network.channel_mult", levels, allowed)
        require(
            len(self.attn_resolutions) <= MOST_LEVELS, "network.attn_resolutions", self.attn_resolutions, "one a level"
        )
        for name in ("dropout", "label_dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"network.{name}", getattr(self, name), "0 <= p < 1")


@dataclass(frozen=True, kw_only=True)
class SongNetwork(UNetConfig):
    """The U-Net of Song et al. 2021, in any form; `DDPMpp` and `NCSNpp` are the two that have a name."""

    embedding_type: str = "positional"
    """Noise embedding: positional | fourier."""
    channel_mult_noise: int = 1
    """Width of the noise embedding, in model_channels."""
    encoder_type: str = "standard"
    """standard | skip | residual."""
    decoder_type: str = "standard"
    """standard | skip."""
    resample_filter: tuple[float, ...] = (1.0, 1.0)
    """Taps of the resampling filter, an even number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choices = {"embedding_type": ("positional", "fourier"), "encoder_type": ("standard", "skip", "residual"),
                   "decoder_type": ("standard", "skip")}  # fmt: skip
        for name, allowed in choices.items():
            value = getattr(self, name)
            require(value in allowed, f"network.{name}", value, " or ".join(allowed))
        self.at_least(1, "channel_mult_noise")
        # An odd number of taps would make 2R - 1 pixels of R.
        taps = self.resample_filter
        even = 2 <= len(taps) <= 64 and len(taps) % 2 == 0 and all(math.isfinite(tap) for tap in taps)
        require(
            even and sum(taps) != 0,
            "network.resample_filter",
            taps,
            "an even number of finite taps whose sum is not 0",
        )
        # Floats, so that what a program made and what a file says are written in the same bytes.
        object.__setattr__(self, "resample_filter", tuple(float(tap) for tap in taps))


@dataclass(frozen=True, kw_only=True)
class DDPMpp(SongNetwork):
    """DDPM++: the VP column."""

    kind: str = field(default="ddpmpp", init=False)


@dataclass(frozen=True, kw_only=True)
class NCSNpp(SongNetwork):
    """NCSN++: the VE column."""

    kind: str = field(default="ncsnpp", init=False)
    embedding_type: str = "fourier"
    channel_mult_noise: int = 2
    encoder_type: str = "residual"
    resample_filter: tuple[float, ...] = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class ADM(UNetConfig):
    """The U-Net of Dhariwal and Nichol 2021; it has one form."""

    kind: str = field(default="adm", init=False)


@dataclass(frozen=True, kw_only=True)
class OwnNetwork(NetworkConfig):
    """A module of the user's own, passed in wherever the denoiser is built: files hold its weights and its name."""

    kind: str = field(default="own", init=False)
    class_path: str = ""
    """Its class, e.g. my_project.networks.Tiny: for messages only, nothing is imported by it."""


NETWORKS: Kinds[NetworkConfig] = Kinds("network", NetworkConfig, [DDPMpp, NCSNpp, ADM, OwnNetwork], shared=UNetConfig)
