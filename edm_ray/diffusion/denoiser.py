"""What a denoiser is, and how samplers call one: at noise levels that the host knows, with its labels bound.

Networks, closed forms (`analysis.analytic`) and `Guided` pairs are denoisers; a plain function becomes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch

from edm_ray.errors import InputError


@runtime_checkable
class Denoiser(Protocol):
    """D(x; sigma), the estimate of y from x = y + sigma n (Karras et al. 2022, section 2)."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level that it knows; 0 where it knows all."""
        ...

    @property
    def sigma_max(self) -> float:
        """Highest noise level that it knows; infinity where it knows all."""
        ...

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """The nearest noise levels that it knows, in the shape and type of ``sigma``."""
        ...

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None, /) -> Any:
        """x [B, C, H, W], sigma [B], class_labels one-hot [B, classes] -> D, a tensor like x."""
        ...


class EveryLevel:
    """Base of denoisers that know every noise level, such as closed forms."""

    sigma_min = 0.0
    sigma_max = math.inf

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return sigma


class Plain:
    """A function of (x, sigma, class_labels) as a denoiser; what it lacks is as if it knew every level."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        self.function = function
        self.sigma_min = float(getattr(function, "sigma_min", 0.0))
        self.sigma_max = float(getattr(function, "sigma_max", math.inf))
        self.label_dim = getattr(function, "label_dim", None)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        rounder = getattr(self.function, "round_sigma", None)
        return sigma if rounder is None else rounder(sigma)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        return self.function(x, sigma, class_labels)


def as_denoiser(given: Any) -> Denoiser:
    """A denoiser as it is; a plain function as one that knows every noise level."""
    if isinstance(given, Denoiser):
        return given
    if callable(given):
        return Plain(given)
    raise InputError(f"denoiser={type(given).__name__} is not allowed: a function of (x, sigma, class_labels)")


class Guided:
    """D = guide + weight (main - guide) where sigma_min <= sigma <= sigma_max, the main denoiser elsewhere.

    Classifier-free guidance (Ho and Salimans 2022): no ``guide``; the main denoiser without its labels is the guide.
    Autoguidance (Karras et al. 2024): a weaker denoiser is the guide. Interval: Kynkaanniemi et al. 2024.
    """

    def __init__(
        self,
        denoiser: Any,
        guide: Any | None = None,
        *,
        weight: float = 1.0,
        interval: tuple[float, float] = (0.0, math.inf),
    ) -> None:
        low, high = interval
        if not 0 <= weight < math.inf:
            raise InputError(f"guidance.weight={weight!r} is not allowed: 0 or more, finite; 1 is no guidance")
        if not 0 <= low <= high:
            raise InputError(f"guidance.interval={interval!r} is not allowed: 0 <= low <= high")
        self.main, self.weight, self.interval = as_denoiser(denoiser), weight, (low, high)
        self.guide = self.main if guide is None else as_denoiser(guide)
        # Without a guide of its own, and for one without classes, the guide gets no labels.
        self.labelled = guide is not None and getattr(guide, "label_dim", None) != 0
        self.sigma_min = max(self.main.sigma_min, self.guide.sigma_min)
        self.sigma_max = min(self.main.sigma_max, self.guide.sigma_max)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        """As the main denoiser does."""
        return self.main.round_sigma(sigma)

    def inside(self, level: float) -> bool:
        """Whether the guide acts at this noise level."""
        return self.weight != 1 and self.interval[0] <= level <= self.interval[1]

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """D(x; sigma) for noise levels on the device, [B] or a scalar: always two calls, and no wait for the device."""
        main = self.main(x, sigma, class_labels)
        guide = self.guide(x, sigma, class_labels if self.labelled else None)
        inside = ((sigma >= self.interval[0]) & (sigma <= self.interval[1])).reshape(-1, 1, 1, 1)
        return torch.where(inside, guide + self.weight * (main - guide), main)


class AtLevel:
    """D(x; level) as samplers see it: ``level`` is a host float, labels are bound, the result is float64.

    A `Guided` pair decides by the host's number whether its guide is needed: one call outside the interval, two inside.
    """

    def __init__(self, denoiser: Denoiser, class_labels: torch.Tensor | None = None) -> None:
        self.denoiser, self.class_labels = denoiser, class_labels
        self.sigma_min, self.sigma_max = float(denoiser.sigma_min), float(denoiser.sigma_max)

    def round_sigma(self, sigma: torch.Tensor) -> torch.Tensor:
        return self.denoiser.round_sigma(sigma)

    def __call__(self, x: torch.Tensor, level: float) -> torch.Tensor:
        """x [B, C, H, W] without scaling -> float64 [B, C, H, W]."""
        return self._at(self.denoiser, x, level, self.class_labels)

    def _at(self, denoiser: Denoiser, x: torch.Tensor, level: float, labels: torch.Tensor | None) -> torch.Tensor:
        if isinstance(denoiser, Guided):
            main = self._at(denoiser.main, x, level, labels)
            if not denoiser.inside(level):
                return main
            guide = self._at(denoiser.guide, x, level, labels if denoiser.labelled else None)
            return guide + denoiser.weight * (main - guide)
        sigma = torch.full((len(x),), level, dtype=torch.float64, device=x.device)
        result: torch.Tensor = denoiser(x, sigma, labels)
        if result.shape != x.shape:
            raise InputError(
                f"the denoiser gave {tuple(result.shape)} for images of {tuple(x.shape)}: the same is expected"
            )
        return result.to(torch.float64)

    def of_image(self, k: int) -> AtLevel:
        """The same for image k of the batch alone."""
        return AtLevel(self.denoiser, None if self.class_labels is None else self.class_labels[k : k + 1])
