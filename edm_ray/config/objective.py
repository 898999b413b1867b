"""p_train(sigma) and lambda(sigma) (Table 1, "Training"). One class a kind; free of the preconditioning.

A constant that is left out (none) is the preconditioning's where that is of the same kind, else that of Table 1.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from edm_ray.config.kinds import Kinds
from edm_ray.config.preconditioning import PreconditioningConfig
from edm_ray.diffusion import noise
from edm_ray.errors import InputError, require

ROUNDING = 1e-6
"""Relative: ranges of noise levels are compared up to the rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What the four have in common."""

    kind: str = field(default="", init=False)

    def constants(self, preconditioning: PreconditioningConfig) -> dict[str, Any]:
        """All that is known of its constants beside this preconditioning, by name.

        Raises InputError for one that contradicts a preconditioning of the same kind.
        """
        names = [entry.name for entry in dataclasses.fields(self) if entry.name != "kind"]
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if preconditioning.kind != self.kind:
            return given
        shared = {name: getattr(preconditioning, name) for name in names if hasattr(preconditioning, name)}
        for name in given.keys() & shared.keys():
            allowed = f"preconditioning.{name}={shared[name]!r}, since both are {self.kind}; leave it out here"
            require(given[name] == shared[name], f"objective.{name}", given[name], allowed)
        return {**given, **shared}

    def check_beside(self, preconditioning: PreconditioningConfig) -> None:
        """Raises InputError where it would train on noise levels that the denoiser does not know."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EDMObjective(ObjectiveConfig):
    """The paper's own: ln sigma ~ N(p_mean, p_std^2), restricted to the range that the preconditioning knows."""

    kind: str = field(default="edm", init=False)
    p_mean: float = noise.LogNormal.p_mean
    """Mean of ln sigma."""
    p_std: float = noise.LogNormal.p_std
    """Standard deviation of ln sigma."""
    sigma_data: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""

    def __post_init__(self) -> None:
        noise.LogNormal(self.p_mean, self.p_std).check("objective")

    def constants(self, preconditioning: PreconditioningConfig) -> dict[str, Any]:
        low, high = preconditioning.noise_range
        return {**super().constants(preconditioning), "sigma_min": low, "sigma_max": high}

    def check_beside(self, preconditioning: PreconditioningConfig) -> None:
        self.constants(preconditioning)
        noise.LogNormal(self.p_mean, self.p_std).shares(*preconditioning.noise_range)


@dataclass(frozen=True, kw_only=True)
class _Bounded(ObjectiveConfig):
    """Objectives that train on a range of noise levels of their own."""

    levels: ClassVar[type[noise.VP] | type[noise.VE] | type[noise.IDDPMGrid]]

    def check_beside(self, preconditioning: PreconditioningConfig) -> None:
        mine = self.levels(**self.constants(preconditioning))
        mine.check("objective")
        require(mine.sigma_min > 0, "objective.sigma_min", mine.sigma_min, "greater than 0")
        low, high = preconditioning.noise_range
        if mine.sigma_min < low * (1 - ROUNDING) or mine.sigma_max > high * (1 + ROUNDING):
            raise InputError(
                f"objective.kind={self.kind!r} trains on noise levels {mine.sigma_min:.6g}..{mine.sigma_max:.6g}, but "
                f"denoiser.preconditioning.kind={preconditioning.kind!r} knows {low:.6g}..{high:.6g} only; give one of "
                "them other constants, or both the same kind"
            )


@dataclass(frozen=True, kw_only=True)
class VPObjective(_Bounded):
    """t ~ U(epsilon_t, 1), sigma = sigma_VP(t)."""

    levels: ClassVar = noise.VP
    kind: str = field(default="vp", init=False)
    beta_d: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""
    beta_min: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""
    epsilon_t: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""


@dataclass(frozen=True, kw_only=True)
class VEObjective(_Bounded):
    """ln sigma ~ U(ln sigma_min, ln sigma_max)."""

    levels: ClassVar = noise.VE
    kind: str = field(default="ve", init=False)
    sigma_min: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""
    sigma_max: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""


@dataclass(frozen=True, kw_only=True)
class IDDPMObjective(_Bounded):
    """sigma = u_j, j uniform in 0..M-1."""

    levels: ClassVar = noise.IDDPMGrid
    kind: str = field(default="iddpm", init=False)
    num_train_steps: int | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""
    c_1: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""
    c_2: float | None = None
    """none: the preconditioning's where that is of this kind, else that of Table 1."""


OBJECTIVES: Kinds[ObjectiveConfig] = Kinds(
    "objective", ObjectiveConfig, [EDMObjective, VPObjective, VEObjective, IDDPMObjective]
)
