"""The samplers of a sweep: one label for each, whatever settings name it, and where it lies in the space."""

from __future__ import annotations

from typing import Any

from edm_ray.diffusion.samplers import Sampler
from edm_ray.errors import InputError
from edm_ray.search.space import Point, Space

DETERMINISTIC = "deterministic"
"""The label of the space's own sampler, without churn: everything is compared with it."""


class Registry:
    """Labels and samplers. ``denoiser`` is asked for its range of sigma only, to tell which settings are the same."""

    def __init__(self, space: Space, denoiser: Any, decisions: list[str]) -> None:
        self.space = space
        self.samplers: dict[str, Sampler] = {}
        """Label -> sampler in its effective form; a sampler has one label."""
        self.labels: dict[str, str] = {}
        """Label -> the label under which the same sampler is evaluated."""
        self.points: dict[str, Point] = {}
        self.denoiser, self._decisions = denoiser, decisions
        self._known: dict[Sampler, str] = {}
        self.enter(DETERMINISTIC, space.sampler)
        for label, settings in space.starts.items():
            self.enter(label, settings)
        self.given = tuple(self.samplers)
        """Deterministic sampling and the space's starts."""
        self.paper = self.labels.get(space.paper or "")
        """The paper's choice, where the space names one."""

    def enter(self, label: str, settings: Sampler, point: Point | None = None) -> str:
        """Register a sampler; returns the label it is evaluated under, another one if the same sampler has one."""
        effective = settings.effective(self.denoiser)
        other = self._known.setdefault(effective, label)
        self.labels[label] = other
        if other != label:
            self._decisions.append(f"{label} is the same sampler as {other}: evaluated once")
        else:
            self.samplers[label] = effective
            self.points[label] = self.space.point_of(settings) if point is None else point
        return other

    def add(self, point: Point, label: str) -> str | None:
        """Register a point: its label, an older one where the sampler has one; None if the point is no sampler."""
        try:
            settings = self.space.settings(point)
        except InputError:
            return None
        return self._label_of(settings) or self.enter(label, settings, point)

    def name(self, settings: Sampler, label: str, point: Point) -> str:
        """The label of a sampler that lies beside the space, an older one where it has one; ``point`` is near it."""
        return self._label_of(settings) or self.enter(label, settings, point)

    def is_new(self, point: Point) -> bool:
        """Whether a point is a sampler that has no label yet."""
        try:
            return self._label_of(self.space.settings(point)) is None
        except InputError:
            return False

    def _label_of(self, settings: Sampler) -> str | None:
        return self._known.get(settings.effective(self.denoiser))
