"""Guidance: extrapolate from a weaker denoiser through the main one, within an interval of noise levels.

Classifier-free guidance (Ho and Salimans 2022), autoguidance (Karras et al. 2024), interval (Kynkaanniemi et al. 2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from edm_ray.diffusion.samplers.common import Denoiser, denoise
from edm_ray.diffusion.samplers.settings import SamplerSettings
from edm_ray.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """D = guide + weight (main - guide) where sigma_min <= sigma <= sigma_max, the main denoiser elsewhere."""

    weight: float = 1.0
    """1 = no guidance."""
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    kind: str = "classifier_free"
    """classifier_free: the guide gets no labels; auto: it gets the same labels."""

    def __post_init__(self) -> None:
        def require(condition: bool, name: str, allowed: str) -> None:
            if not condition:
                raise InputError(f"guidance.{name}={getattr(self, name)!r} is not allowed: {allowed}")

        require(0 <= self.weight < math.inf, "weight", "0 or more, finite")
        require(0 <= self.sigma_min < math.inf, "sigma_min", "0 or more, finite")
        require(self.sigma_min <= self.sigma_max, "sigma_min", f"at most sigma_max={self.sigma_max}")
        require(self.kind in ("classifier_free", "auto"), "kind", "classifier_free or auto")


class Guided:
    """A denoiser made of two; `at_level` decides by the host's number whether the guide is needed at all."""

    def __init__(self, denoiser: Denoiser, guide: Denoiser, settings: GuidanceSettings) -> None:
        self.denoiser, self.guide, self.settings = denoiser, guide, settings
        pair: tuple[Any, Any] = (denoiser, guide)
        self.sigma_min = max(float(getattr(part, "sigma_min", 0.0)) for part in pair)
        self.sigma_max = min(float(getattr(part, "sigma_max", math.inf)) for part in pair)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """As the main denoiser does."""
        rounder = getattr(self.denoiser, "round_sigma", None)
        return sigma if rounder is None else rounder(sigma)

    def _guide_labels(self, class_labels: torch.Tensor | None) -> torch.Tensor | None:
        return None if self.settings.kind == "classifier_free" else class_labels

    def at_level(self, x: torch.Tensor, level: float, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D(x; level), float64 [B, C, H, W]; one call outside the interval or at weight 1, two inside."""
        main = denoise(self.denoiser, x, level, class_labels)
        if self.settings.weight == 1 or not self.settings.sigma_min <= level <= self.settings.sigma_max:
            return main
        guide = denoise(self.guide, x, level, self._guide_labels(class_labels))
        return guide + self.settings.weight * (main - guide)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D(x; sigma) for noise levels on the device, [B] or a scalar: always two calls, and no wait for the device."""
        main = self.denoiser(x, sigma, class_labels)
        guide = self.guide(x, sigma, self._guide_labels(class_labels))
        inside = ((sigma >= self.settings.sigma_min) & (sigma <= self.settings.sigma_max)).reshape(-1, 1, 1, 1)
        return torch.where(inside, guide + self.settings.weight * (main - guide), main)


def guided(denoiser: Denoiser, guide: Denoiser, settings: GuidanceSettings) -> Guided:
    """A denoiser guided by another: for classifier-free guidance by one model, give the same model twice."""
    return Guided(denoiser, guide, settings)


def guided_by_settings(denoiser: Denoiser, settings: SamplerSettings, class_labels: torch.Tensor | None) -> Denoiser:
    """The denoiser as these settings guide it: by its ``guide``, or by itself without labels.

    Raises InputError when it has no guide and there are no labels to leave out.
    """
    if settings.guidance == 1:
        return denoiser
    guide = getattr(denoiser, "guide", None)
    if guide is None and class_labels is None:
        raise InputError(
            f"sampler.guidance={settings.guidance} is not allowed: 1 for a model without classes, unless another model "
            "guides it (--guide MODEL)"
        )
    # A guide without classes takes no labels.
    plain = guide is None or getattr(getattr(guide, "model", None), "label_dim", 1) == 0
    return Guided(
        denoiser,
        guide or denoiser,
        GuidanceSettings(
            weight=settings.guidance,
            sigma_min=settings.guidance_min,
            sigma_max=settings.guidance_max,
            kind="classifier_free" if plain else "auto",
        ),
    )
