"""What all samplers share: which noise levels are visited, along which path, with what guidance; and how one samples.

Table 1 of Karras et al. 2022 ("Sampling"): time steps, schedule sigma(t) and scaling s(t) are choices of their own,
whatever the solver. A sampler is a frozen dataclass, one class a solver; `run` is its algorithm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch

from edm_ray.diffusion.denoiser import AtLevel, Denoiser, Guided, as_denoiser
from edm_ray.diffusion.noise import MOST_LEVELS, VE, VP, IDDPMGrid, Linear, Path, iddpm_grid, make_path
from edm_ray.diffusion.samplers.evaluation import Evaluation
from edm_ray.diffusion.samplers.levels import distinct, edm_levels, known_range, rounded
from edm_ray.diffusion.samplers.values import brief, is_real, is_whole, plain, require
from edm_ray.errors import InputError

Noise = Callable[..., torch.Tensor]
"""noise(step, draw=0) -> unit normal, of the shape of the latents."""
RANGES = {"edm": (0.002, 80.0), "iddpm": (0.002, 81.0), "ve": (VE.sigma_min, VE.sigma_max)}
"""Default noise levels of each discretization (Table 1); those of vp follow from epsilon_s."""
SOLVERS: dict[str, type[Sampler]] = {}
"""Name in files and ``--set`` -> class; a class enters when it is defined."""
HISTORY = 3
"""Levels before a step that a multistep solver may look at."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    """Settings that every solver has. Subclasses add their own and `run`."""

    solver: str = field(default="", init=False)
    """The solver's name in files and ``--set``: a class sets it, ``solver = "heun"``."""
    evaluations: ClassVar[int] = 1
    """Network evaluations of a step."""
    follows_schedule: ClassVar[bool] = True
    """Whether it integrates over t of sigma(t) and s(t); a solver between noise levels does not."""
    follows_scaling: ClassVar[bool] = True
    source_hash: ClassVar[str | None] = None
    """sha256 of the source text of a class that is not edm_ray's, and of its bases that are not; None: cannot be read.
    Taken when the class is defined, so that it travels with it."""
    is_sde: ClassVar[bool] = False
    """Whether it solves the reverse SDE: then it draws noise at every step, whatever its settings."""

    num_steps: int = 18
    """Number of time steps N; 2 to 10,000."""
    sigma_min: float | None = None
    """None: that of the discretization, or the denoiser's own bound where that is higher."""
    sigma_max: float | None = None
    """None: that of the discretization, or the denoiser's own bound where that is lower."""
    rho: float = 7.0
    """Warp of the edm time steps: larger = shorter steps at low noise."""
    discretization: str = "edm"
    """Which noise levels are visited: edm, vp, ve or iddpm."""
    schedule: str = "linear"
    """sigma(t): linear, vp or ve."""
    scaling: str = "none"
    """s(t): none or vp."""
    epsilon_s: float = 1e-3
    """Smallest t of the vp schedule and discretization."""
    c_1: float = IDDPMGrid.c_1
    """iddpm: least ratio of neighbouring abar."""
    c_2: float = IDDPMGrid.c_2
    """iddpm: offset of the cosine schedule."""
    num_train_steps: int = IDDPMGrid.num_train_steps
    """iddpm: M, the number of noise levels of its grid."""
    sigmas: tuple[float, ...] = ()
    """Explicit noise levels sigma_0 > ... > sigma_{N-1} > 0, instead of a discretization; num_steps is their number.
    The step from the last to 0 is implied."""
    guidance: float = 1.0
    """Weight of guidance: D = guide + guidance (D - guide), where the guide is another denoiser (autoguidance), or it
    is the denoiser itself without labels (classifier-free). 1 = none."""
    guidance_min: float = 0.0
    guidance_max: float = math.inf
    """Guided where guidance_min <= sigma <= guidance_max only."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.source_hash = _source_of(cls)
        cls.solver = cls.__dict__.get("solver", "")  # its base's name would be another class in files
        if name := cls.solver:
            other = SOLVERS.setdefault(name, cls)
            if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
                raise InputError(f"solver={name!r} is taken by {other.__module__}.{other.__qualname__}; choose another")
            SOLVERS[name] = cls  # a dataclass with slots, or a module read again, is a new class of the same name

    def __post_init__(self) -> None:
        self._take_plain_types()
        self._check()

    def __str__(self) -> str:
        """The solver, its steps, and what differs from the defaults."""
        values = {each.name: (getattr(self, each.name), each.default) for each in settings(type(self))}
        shown = {name: value for name, (value, default) in values.items() if name == "num_steps" or value != default}
        return " ".join(
            [self.solver or type(self).__name__, *(f"{name}={brief(value)}" for name, value in shown.items())]
        )

    # -- noise levels ------------------------------------------------------------------------------------------------

    def sigma_range(self, denoiser: Any = None) -> tuple[float, float]:
        """(sigma_min, sigma_max) within what the denoiser knows. Raises InputError when nothing is left."""
        known = known_range(denoiser)
        if self.sigmas:
            for level in (self.sigmas[0], self.sigmas[-1]):
                allowed = f"within {known}, the model's range"
                require(known[0] <= level <= known[1], "sigmas", list(self.sigmas), allowed)
            return self.sigmas[-1], self.sigmas[0]
        low, high = self._table_range()
        low, high = max(self.sigma_min or low, known[0]), min(self.sigma_max or high, known[1])
        require(low < high, "sigma_min", low, f"less than sigma_max={high}")
        return low, high

    def noise_levels(self, denoiser: Any = None) -> list[float]:
        """sigma_0 > ... > sigma_{N-1} > 0, rounded to what the denoiser knows (equal neighbours can come of that).

        Raises InputError when the iDDPM grid has fewer levels in the range than ``num_steps``.
        """
        low, high = self.sigma_range(denoiser)
        count = self.num_steps
        shares = [i / (count - 1) for i in range(count)]
        if self.sigmas:
            levels = list(self.sigmas)
        elif self.discretization == "vp":
            vp = VP.from_range(low, high, self.epsilon_s)
            levels = [vp.sigma(1 + share * (self.epsilon_s - 1)) for share in shares]
        elif self.discretization == "ve":
            levels = [math.sqrt(high**2 * (low**2 / high**2) ** share) for share in shares]
        elif self.discretization == "iddpm":
            grid = self._grid(low, high)
            allowed = f"at most {len(grid)}, the noise levels of the iddpm grid in [{low}, {high}]"
            require(len(grid) >= count, "num_steps", count, allowed)
            levels = [grid[round((len(grid) - 1) / (count - 1) * i)] for i in range(count)]
        else:
            levels = edm_levels(low, high, count, self.rho)
        return rounded(levels, denoiser)

    def path(self, denoiser: Any = None) -> Path:
        """sigma(t) and s(t) that the solver follows; the betas of vp are solved from the range in use."""
        if not self.follows_schedule:
            return Path(Linear())
        return make_path(self.schedule, self.scaling, *self.sigma_range(denoiser), self.epsilon_s)

    def time_steps(self, denoiser: Any = None) -> torch.Tensor:
        """t_0 > ... > t_{N-1} > t_N = 0: float64 [N + 1] on the host; t = sigma for the linear schedule."""
        path = self.path(denoiser)
        return torch.tensor([*map(path.sigma_inv, self.noise_levels(denoiser)), 0.0], dtype=torch.float64)

    # -- sampling ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def run(self, D: AtLevel, x: torch.Tensor, levels: list[float], path: Path, noise: Noise) -> torch.Tensor:
        """The algorithm: x float64 [B, C, H, W] at noise level levels[0] (scaled by s) -> images, float64.

        levels: sigma_0 > ... > sigma_{N-1} > sigma_N = 0. noise(step, draw=0): unit normal like x.
        """

    def needs_noise(self, denoiser: Any = None) -> bool:
        """Whether it draws noise beyond the latents."""
        return self.is_sde

    def drift_rate(self, level: float) -> float:
        """The mean of a step that starts here follows dx/dsigma = rate (x - D) / sigma: 1 is the ODE, 2 the SDE."""
        return 2.0 if self.is_sde else 1.0

    def mean_step(
        self, D: AtLevel, x: torch.Tensor, start: float, end: float, history: list[Evaluation]
    ) -> torch.Tensor:
        """One step from noise level start to end without noise, x without scaling (`analysis.truncation`).

        history: evaluations at up to HISTORY levels before the start, the nearest first.
        """
        raise InputError(f"sampler.solver={self.solver!r} is not allowed here: it does not tell its single steps")

    def mean_steps(self, denoiser: Any = None) -> list[tuple[float, float, list[float]]]:
        """(start, end, levels before the start, nearest first) of every step but the last, which goes to 0."""
        levels = distinct(self.noise_levels(denoiser))
        return [(a, b, levels[max(i - HISTORY, 0) : i][::-1]) for i, (a, b) in enumerate(itertools.pairwise(levels))]

    def guided(self, denoiser: Any, class_labels: torch.Tensor | None = None, guide: Any = None) -> Denoiser:
        """The denoiser as ``guidance`` has it: guided by ``guide``, else by itself without labels.

        Raises InputError when there is neither a guide nor labels to leave out.
        """
        if self.guidance == 1:
            return as_denoiser(denoiser)
        if guide is None and class_labels is None:
            allowed = "1 for a model without classes, unless another model guides it (--guide MODEL)"
            require(False, "guidance", self.guidance, allowed)
        return Guided(denoiser, guide, weight=self.guidance, interval=(self.guidance_min, self.guidance_max))

    # -- cost --------------------------------------------------------------------------------------------------------

    @property
    def nfe(self) -> int:
        """Network evaluations an image; the guide is evaluated too where it guides."""
        return self.evaluations * self.num_steps + self._nfe_of_guide()

    def _nfe_of_guide(self) -> int:
        """At the time steps' own noise levels."""
        return self.evaluations * sum(self._guided_levels())

    def _guided_levels(self) -> list[bool]:
        if self.guidance == 1:
            return []
        return [self.guidance_min <= level <= self.guidance_max for level in self.noise_levels()]

    # -- forms -------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The flat form that files and ``--set`` keep, all fields: plain values, lists for tuples."""
        return {each.name: plain(getattr(self, each.name)) for each in dataclasses.fields(self)}

    @property
    def identity(self) -> dict[str, Any]:
        """What names its images in a store: the flat form; of a class that is not edm_ray's, its source text too."""
        if _is_ours(type(self)):
            return self.to_dict()
        if self.source_hash is None:
            raise InputError(
                f"sampler {type(self).__qualname__}: its source cannot be read, so its images cannot be told from "
                "those of another version; define the class in a file"
            )
        return {**self.to_dict(), "source": self.source_hash}

    def replace(self, **changes: Any) -> Self:
        """A copy with other values of its own fields."""
        return dataclasses.replace(self, **changes)

    def effective(self, denoiser: Any = None) -> Self:
        """One form for all settings that give the same images: bounds written out, what nothing reads at its default.

        It names chunks of evaluations, so that no sampler is evaluated twice, and it is what a best-sampler.yaml holds;
        so it is a sampler itself, one that gives those images to the bit. Known to stay apart although the images are
        the same: amounts of churn, and numbers of steps, that a network's grid of noise levels makes the same; alpha
        above 1 where every step would look below noise level 0; guidance intervals with rk45 or alpha not 1.
        """
        low, high = self.sigma_range(denoiser)
        form = self.replace(sigmas=tuple(self.noise_levels(denoiser))) if self.sigmas else self
        if not self.sigmas:
            form = form.replace(sigma_min=low, sigma_max=high)
        form = form._acting(denoiser)
        form = form.replace(**form._acting_guidance(denoiser))
        form = form._with_defaults(form._unread())
        return form._on_the_grid() if form.discretization == "iddpm" and not form.sigmas else form

    def _acting(self, denoiser: Any) -> Self:
        """With what the solver's own settings do at these time steps. Raises InputError for what could not sample."""
        self.noise_levels(denoiser)
        self.path(denoiser)
        return self

    def _acting_levels(self, denoiser: Any) -> list[float] | None:
        """The noise levels at which the denoiser is called; None where nobody knows them beforehand."""
        return self.noise_levels(denoiser)

    def _acting_guidance(self, denoiser: Any) -> dict[str, Any]:
        """The interval from the lowest to the highest noise level that is guided; no guidance where none is."""
        levels = self._acting_levels(denoiser)
        if self.guidance == 1 or levels is None:
            return {}
        path = self.path(denoiser)
        if self.follows_schedule:  # the denoiser gets what comes back from time
            levels = [path.sigma(path.sigma_inv(level)) for level in levels]
        inside = [level for level in levels if self.guidance_min <= level <= self.guidance_max]
        return {"guidance_min": min(inside), "guidance_max": max(inside)} if inside else {"guidance": 1.0}

    def _unread(self) -> set[str]:
        """Names of settings that do not act together with the others."""
        unread = set()
        if not self.follows_schedule:
            unread.add("schedule")
        if not self.follows_scaling:
            unread.add("scaling")
        if self.discretization != "edm" or self.sigmas:
            unread.add("rho")
        if self.sigmas:
            unread |= {"discretization", "c_1", "c_2", "num_train_steps"}
        if self.discretization != "iddpm":
            unread |= {"c_1", "c_2", "num_train_steps"}
        vp_levels = self.discretization == "vp" and not self.sigmas
        if not vp_levels and (self.schedule != "vp" or not self.follows_schedule):
            unread.add("epsilon_s")
        if self.guidance == 1:
            unread |= {"guidance_min", "guidance_max"}
        return unread

    def _with_defaults(self, names: Iterable[str]) -> Self:
        defaults = {each.name: each.default for each in settings(type(self))}
        return self.replace(**{name: defaults[name] for name in names if name in defaults})

    def _on_the_grid(self) -> Self:
        """The iddpm grid is cut to the range: bounds move to its ends; a c_1 that changes nothing goes."""
        form, kept = self, self._grid(*self.sigma_range())
        default = form._with_defaults({"c_1"})
        if default._grid(*default.sigma_range()) == kept:
            form = default
        vp = form.schedule == "vp" and form.follows_schedule  # its betas are solved from the bounds
        return form if vp else form.replace(sigma_min=kept[-1], sigma_max=kept[0])

    def _grid(self, low: float, high: float) -> list[float]:
        """The levels of the iddpm grid in [low, high], descending."""
        return [u for u in iddpm_grid(self.num_train_steps, self.c_1, self.c_2) if low <= u <= high]

    def _table_range(self) -> tuple[float, float]:
        if self.discretization == "vp":
            return VP().sigma(self.epsilon_s), VP().sigma(1.0)
        return RANGES[self.discretization]

    # -- checks ------------------------------------------------------------------------------------------------------

    def _take_plain_types(self) -> None:
        """Numbers of any library and lists become float, int and tuple, so that equal settings are written equally."""
        for each in settings(type(self)):
            name, value, kind = each.name, getattr(self, each.name), type_name(each)
            if kind == "int":
                require(is_whole(value), name, value, "a whole number")
                value = int(value)
            elif kind == "float" or (kind == "float | None" and value is not None):
                require(is_real(value), name, value, "a number")
                value = float(value)
            elif kind == "tuple[float, ...]":
                require(isinstance(value, (list, tuple)) and all(map(is_real, value)), name, value, NUMBERS)
                value = tuple(map(float, value))
            object.__setattr__(self, name, value)

    def _check(self) -> None:
        """Raises InputError with the field, what was got and what is allowed."""

        def check(condition: bool, name: str, allowed: str) -> None:
            require(condition, name, getattr(self, name), allowed)

        self._check_levels(check)
        for name, allowed in (
            ("discretization", ("edm", "vp", "ve", "iddpm")),
            ("schedule", ("linear", "vp", "ve")),
            ("scaling", ("none", "vp")),
        ):
            check(getattr(self, name) in allowed, name, " or ".join(allowed))
        for name in ("num_steps", "num_train_steps"):
            check(2 <= getattr(self, name) <= MOST_LEVELS, name, f"a whole number from 2 to {MOST_LEVELS:,}")
        for name in ("rho", "c_1", "c_2"):
            check(0 < getattr(self, name) < math.inf, name, "greater than 0, finite")
        check(0 < self.epsilon_s < 1, "epsilon_s", "between 0 and 1")
        check(0 <= self.guidance < math.inf, "guidance", "0 or more, finite; 1 is none")
        check(0 <= self.guidance_min < math.inf, "guidance_min", "0 or more, finite")
        check(self.guidance_min <= self.guidance_max, "guidance_min", f"at most guidance_max={self.guidance_max}")

    def _check_levels(self, check: Callable[[bool, str, str], None]) -> None:
        for name in ("sigma_min", "sigma_max"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, name, "greater than 0, finite")
        if self.sigma_min is not None and self.sigma_max is not None:
            check(self.sigma_min < self.sigma_max, "sigma_min", f"less than sigma_max={self.sigma_max}")
        if not self.sigmas:
            return
        count, levels = len(self.sigmas), self.sigmas
        falling = all(a > b for a, b in itertools.pairwise(levels))
        known = falling and levels[-1] > 0 and levels[0] < math.inf
        check(2 <= count <= MOST_LEVELS and known, "sigmas", DESCENDING)
        for name in ("sigma_min", "sigma_max"):
            check(getattr(self, name) is None, name, "none with sigmas, which give the noise levels themselves")
        check(self.num_steps in (Sampler.num_steps, count), "num_steps", f"{count}, the number of sigmas, or left out")
        object.__setattr__(self, "num_steps", count)


NUMBERS = "numbers in brackets, as [80, 7.5, 0.5]"
DESCENDING = "two noise levels or more, descending, each greater than 0 and finite; the 0 after the last is implied"


def _is_ours(cls: type) -> bool:
    return cls.__module__.startswith("edm_ray.")


def _source_of(cls: type) -> str | None:
    texts = []
    for each in cls.__mro__:
        if issubclass(each, Sampler) and not _is_ours(each):
            try:
                texts.append(inspect.getsource(each))
            except (OSError, TypeError):  # typed into a shell, or sent to a worker: there it comes with the class
                return None
    return hashlib.sha256("".join(texts).encode()).hexdigest()


def settings(cls: type[Sampler]) -> list[dataclasses.Field[Any]]:
    """The fields that a caller may give."""
    return [each for each in dataclasses.fields(cls) if each.init]


def type_name(setting: dataclasses.Field[Any]) -> str:
    """Its type as text, as files with and without postponed annotations say it: "int", "float | None"."""
    return setting.type.__name__ if isinstance(setting.type, type) else str(setting.type)


def sample(
    denoiser: Any,
    latents: torch.Tensor,
    sampler: Sampler,
    class_labels: torch.Tensor | None = None,
    noise: Noise | None = None,
    guide: Any = None,
) -> torch.Tensor:
    """Sample images from latents.

    denoiser: D(x, sigma, class_labels) -> like x; sigma is float64 [B] (`Denoiser`, or a plain function).
    latents: unit normal [B, C, H, W].
    noise(step, draw=0): unit normal like latents; asked for only at steps that add noise.
    guide: the denoiser that guides where ``sampler.guidance`` is not 1 (autoguidance); without it, guidance is
    classifier-free.
    Returns float64 [B, C, H, W]. Noise levels are host numbers decided before the loop: no step waits for the device
    (rk45 excepted: its steps adapt on the host).
    Raises InputError when the sampler adds noise and there is no ``noise``, or shapes do not fit.
    """
    if latents.ndim != 4:
        raise InputError(f"latents={tuple(latents.shape)} is not allowed: [B, C, H, W]")
    if class_labels is not None and len(class_labels) != len(latents):
        raise InputError(f"class_labels={tuple(class_labels.shape)} is not allowed: one row an image, {len(latents)}")
    D = AtLevel(sampler.guided(denoiser, class_labels, guide), class_labels)
    if noise is None and sampler.needs_noise(D):
        raise InputError(f"sampler {sampler} adds noise: pass noise=, for example seeding.image_noise")
    levels, path = sampler.noise_levels(D), sampler.path(D)
    first = path.sigma_inv(levels[0])
    x = latents.to(torch.float64) * (path.sigma(first) * path.s(first))
    return sampler.run(D, x, [*levels, 0.0], path, _checked(noise, latents.shape))


def _checked(noise: Noise | None, shape: torch.Size) -> Noise:
    """Noise of another shape would be broadcast in silence: the same for all images, or all pixels."""

    def checked(step: int, draw: int = 0) -> torch.Tensor:
        assert noise is not None, "noise was asked for where the sampler draws none"
        drawn: torch.Tensor = noise(step, draw=draw) if draw else noise(step)
        if drawn.shape != shape:
            raise InputError(f"noise={tuple(drawn.shape)} is not allowed: the shape of the latents, {tuple(shape)}")
        return drawn

    return checked
