"""Tune spaces: which sampler settings a sweep may try, as data (`tune_spaces/*.yaml`).

Any setting of a sampler can be searched. S_churn is searched as ``churn_fraction``, the share of its cap
num_steps * (sqrt(2) - 1), above which it changes nothing (or as a grid of ``s_churn``, as in the paper);
``churn_bins.0`` is the same share within the first bin. Settings that the solver of a point does not take are left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm_ray.config.load import validate
from edm_ray.config.text import read_yaml
from edm_ray.diffusion.samplers import SOLVERS, Euler, Heun, Sampler, with_changes
from edm_ray.diffusion.samplers.base import settings as settings_of
from edm_ray.diffusion.samplers.base import type_name
from edm_ray.diffusion.samplers.heun import GAMMA_MAX
from edm_ray.errors import PLAIN_NAME, InputError, nearest, plain_name, shortened
from edm_ray.search.dimensions import Choice, Grid, Range
from edm_ray.search.sampler_field import SamplerField

Point = Mapping[str, Any]
"""Value of each searched setting; churn as a share of its cap."""
CHURN = "churn_fraction"
BINS = "churn_bins"
GIVEN_BY_LEVELS = ("rho", "sigma_min", "sigma_max")
"""Settings that explicit noise levels stand for."""
IN_PAPER = {"s_churn": "S_churn", "s_tmin": "S_tmin", "s_tmax": "S_tmax", "s_noise": "S_noise"}
"""Settings that the paper writes otherwise."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep searches."""

    name: str
    about: str = ""
    sampler: SamplerField = field(default_factory=Heun)
    """Settings that are not searched; without churn: this is the deterministic baseline."""
    search: dict[str, Range | Grid | Choice] = field(default_factory=dict)
    """Setting -> where it may lie: {low, high, scale, integer}, {grid} or {choices}."""
    starts: dict[str, SamplerField] = field(default_factory=dict)
    """Named settings to evaluate first."""
    paper: str | None = None
    """The start that is the paper's choice: the confirmation compares with it."""

    @property
    def nfe(self) -> int | None:
        """The budget of network evaluations that its samplers keep to; only a `BudgetSpace` has one."""
        return None

    @property
    def unsearched(self) -> tuple[str, ...]:
        """Starts that are solvers at their defaults; only a `BudgetSpace` has them."""
        return ()

    def settings(self, point: Point) -> Sampler:
        """A point -> sampler. What the point lacks is that of ``sampler``; what its solver does not have is left out.

        A window with s_tmin > s_tmax holds no noise level: that is plain deterministic sampling. An interval with
        guidance_min > guidance_max is no guidance. Raises InputError for combinations that no sampler allows.
        """
        changes = dict(point)
        flat = self.sampler.to_dict() | changes
        cap = flat["num_steps"] * GAMMA_MAX
        if CHURN in point:
            changes["s_churn"] = point[CHURN] * cap
        shares = {name: share for name, share in point.items() if _bin(name) is not None}
        if shares:
            bins = enumerate(flat.get(BINS, ()))
            changes[BINS] = tuple((low, high, shares.get(f"{BINS}.{i}", 0.0) * cap) for i, (low, high, _) in bins)
        if flat.get("s_tmin", 0.0) > flat.get("s_tmax", math.inf):
            changes |= {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf}
        if flat["guidance_min"] > flat["guidance_max"]:
            changes |= {"guidance": 1.0, "guidance_min": 0.0, "guidance_max": math.inf}
        own = _names_of(flat["solver"])
        return with_changes(self.sampler, {name: value for name, value in changes.items() if name in own}, self.name)

    @property
    def searched(self) -> tuple[str, ...]:
        """Settings that the space's dimensions are of."""
        return tuple(dict.fromkeys(map(_setting, self.search)))

    def with_churn(self, share: float) -> Sampler | None:
        """``sampler`` with this share of the cap of S_churn at every noise level.

        None if churn is not searched so, or the sampler has none.
        """
        for name, amount in ((CHURN, share), ("s_churn", share * self.sampler.num_steps * GAMMA_MAX)):
            if name in self.search and isinstance(self.sampler, Euler):
                return self.settings({name: self.search[name].clip(amount)})
        return None

    def describe(self, settings: Sampler) -> dict[str, str]:
        """Setting -> its value in words: what is searched, and what else differs from ``sampler``.

        Bounds that ``sampler`` leaves open are told where they are searched only.
        """
        mine, base = settings.to_dict(), self.sampler.to_dict()
        if settings.sigmas:  # which say all of that
            mine = {name: value for name, value in mine.items() if name not in (*GIVEN_BY_LEVELS, "num_steps")}
        others = [name for name in mine if base.get(name) is not None and mine[name] != base[name]]
        return {name: text_of(mine[name]) for name in dict.fromkeys([*self.searched, *others]) if name in mine}

    def at(self, shares: Sequence[float]) -> Point:
        """Shares in [0, 1], one a dimension -> point."""
        return {name: where.at(share) for (name, where), share in zip(self.search.items(), shares, strict=True)}

    def features(self, point: Point) -> list[float]:
        """What a model of the FID sees of a point: numbers in [0, 1]; a choice is one-hot."""
        return [number for name, where in self.search.items() for number in where.features(point[name])]

    def point_of(self, settings: Sampler) -> Point:
        """The nearest point of the space; where the solver has no such setting, that of ``sampler``."""
        return {name: where.clip(_value(settings, name, self.sampler)) for name, where in self.search.items()}

    def count(self, points: int | None = None) -> int | None:
        """Points of the space, ranges cut into ``points`` values; None: infinitely many."""
        sizes = [where.size(points) for where in self.search.values()]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def every(self, points: int | None = None) -> list[Point]:
        """All points, ranges cut into ``points`` values, in the order of the file."""
        values = [where.values(points) for where in self.search.values()]
        return [dict(zip(self.search, row, strict=True)) for row in itertools.product(*values)]


def in_words(described: Mapping[str, str]) -> str:
    """What `Space.describe` gives, in one line."""
    return ", ".join(f"{IN_PAPER.get(name, name)} {text}" for name, text in described.items())


def text_of(value: Any) -> str:
    """A setting's value in words: noise levels, bins and restarts as numbers, yes or no."""
    if isinstance(value, (tuple, list)):
        rows = [row if isinstance(row, (tuple, list)) else (row,) for row in value]
        return " ".join(",".join(f"{number:.4g}" for number in row) for row in rows) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _fields() -> dict[str, str]:
    """Every setting of any solver -> its type."""
    return {"solver": "str", **{each.name: type_name(each) for cls in SOLVERS.values() for each in settings_of(cls)}}


def _names_of(solver: str) -> set[str]:
    """The settings that a solver has."""
    return {"solver", *(each.name for each in settings_of(SOLVERS[solver]))}


def _setting(name: str) -> str:
    """The setting that a dimension is of."""
    return "s_churn" if name == CHURN else name.partition(".")[0]


def _bin(name: str) -> int | None:
    """The index of ``churn_bins.INDEX``."""
    stem, _, index = name.partition(".")
    return int(index) if stem == BINS and index.isdecimal() else None


def _value(settings: Sampler, name: str, base: Sampler) -> Any:
    """Of a dimension; None where neither solver has such a setting."""
    index = _bin(name)
    if name == CHURN:
        return _share(settings, getattr(settings, "s_churn", 0.0))
    if index is not None:
        bins = getattr(settings, BINS, ())
        return _share(settings, bins[index][2] if index < len(bins) else 0.0)
    if settings.sigmas and name in ("sigma_min", "sigma_max"):
        return settings.sigmas[-1 if name == "sigma_min" else 0]
    return getattr(settings, name, getattr(base, name, None))


def _share(settings: Sampler, s_churn: float) -> float:
    """S_churn as a share of its cap."""
    return min(s_churn / (settings.num_steps * GAMMA_MAX), 1.0)


def load_space(path: str) -> Space:
    """Read a tune space. Raises InputError naming the file, the key, what was got and what is allowed."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such tune space")
    return space_of(read_yaml(path), path)


def space_of(given: Mapping[str, Any], path: str) -> Space:
    """A mapping as in a file -> Space."""
    known = {entry.name for entry in dataclasses.fields(Space)}
    for key in given:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}{nearest(str(key), known)}; known here: {', '.join(known)}")
    if not given.get("name"):
        raise InputError(f"{path}: key 'name' is missing")
    if not isinstance(given["name"], str) or not plain_name(given["name"]):
        raise InputError(f"{path}: name={shortened(given['name'])} is not allowed: {PLAIN_NAME}")
    sampler = with_changes(Heun(), given.get("sampler") or {}, f"{path}: sampler")
    if isinstance(sampler, Euler) and (sampler.s_churn or any(churn for _, _, churn in sampler.churn_bins)):
        raise InputError(f"{path}: sampler.s_churn={sampler.s_churn} is not allowed: 0, it is what is searched")
    search = given.get("search") or {}
    if not isinstance(search, dict) or not search:
        raise InputError(f"{path}: search must name the settings to search, for example churn_fraction; got nothing")
    starts = given.get("starts") or {}
    if not isinstance(starts, dict) or not all(isinstance(value, dict) for value in starts.values()):
        raise InputError(f"{path}: starts must be a mapping of names to sampler settings")
    named = {str(key): with_changes(sampler, value, f"{path}: starts.{key}") for key, value in starts.items()}
    paper = given.get("paper")
    if paper is not None and paper not in named:
        raise InputError(f"{path}: paper={paper!r} is not allowed: the name of a start{nearest(str(paper), named)}")
    bases = _bases(sampler, search.get("solver"))
    dimensions = {str(key): _dimension(bases, str(key), value, path) for key, value in search.items()}
    space = Space(
        name=str(given["name"]),
        about=str(given.get("about") or ""),
        sampler=sampler,
        search=dimensions,
        starts=named,
        paper=paper,
    )
    _require_something(space, path)
    return space


def _bases(sampler: Sampler, solver: Any) -> list[Sampler]:
    """``sampler``, and as it is with each solver that is searched: a setting may be one of those that have it."""
    bases = [sampler]
    choices = solver.get("choices") if isinstance(solver, dict) else None
    for name in choices if isinstance(choices, list) else []:
        with contextlib.suppress(InputError):  # said where the solvers are read
            bases.append(with_changes(sampler, {"solver": name}, "solver"))
    return bases


def _made(bases: Sequence[Sampler], name: str, value: Any, where: str) -> Sampler:
    """A sampler with this value, of the first base that allows it. Raises the last's InputError where none does."""
    owners = [base for base in bases if name == "solver" or hasattr(base, name)] or list(bases)
    for base in owners[:-1]:
        with contextlib.suppress(InputError):
            return _with_value(base, name, value, where)
    return _with_value(owners[-1], name, value, where)


def _with_value(base: Sampler, name: str, value: Any, where: str) -> Sampler:
    window = {"s_tmin": 0.0, "s_tmax": math.inf} if name in ("s_tmin", "s_tmax") else {}
    return with_changes(base, {**window, name: value}, where)


def _dimension(bases: Sequence[Sampler], name: str, given: Any, path: str) -> Range | Grid | Choice:
    """One entry of ``search``; every bound, grid value and choice must make a sampler of one of the solvers."""
    where, sampler = f"{path}: search.{name}", bases[0]
    _require_setting(sampler, name, where)
    if not isinstance(given, dict):
        raise InputError(f"{where}: give {{low, high}}, {{grid: [...]}} or {{choices: [...]}}, got {given!r}")
    kind: type[Range] | type[Grid] | type[Choice] = Choice if "choices" in given else Grid if "grid" in given else Range
    allowed = {entry.name for entry in dataclasses.fields(kind)}
    for key in given:
        if key not in allowed:
            raise InputError(
                f"{where}: unknown key {key!r}{nearest(str(key), allowed)}; known here: {', '.join(sorted(allowed))}"
            )
    dimension: Any = validate(kind, given, where)
    if name == "s_churn" and not isinstance(dimension, Grid):
        raise InputError(f"{where}: give {{grid: [...]}}, or search churn_fraction, the share of S_churn's cap")
    share = name == CHURN or _bin(name) is not None
    kind_of = "float" if share else _fields()[name]
    if isinstance(dimension, Choice):
        if share:
            raise InputError(f"{where}: churn is searched by {{low, high}} or {{grid: [...]}}")
        made = tuple(getattr(_made(bases, name, value, where), name) for value in dimension.choices)
        return Choice(choices=made)
    if kind_of not in ("float", "float | None", "int"):
        raise InputError(f"{where}: give {{choices: [...]}}, it is no number")
    for value in dimension.bounds():
        if share and not 0 <= value <= 1:
            raise InputError(f"{where}={value} is not allowed: a share of the cap, 0 to 1")
        if kind_of == "int" and not (float(value).is_integer() and getattr(dimension, "integer", True)):
            raise InputError(f"{where} is not allowed: whole numbers; add integer: true")
        if not share and not (name == "s_tmax" and value < getattr(sampler, "s_tmin", 0.0)):
            _made(bases, name, value, where)
    if kind_of == "int" and isinstance(dimension, Grid):
        dimension = Grid(grid=tuple(int(value) for value in dimension.grid))
    return dimension  # type: ignore[no-any-return]


def _require_setting(sampler: Sampler, name: str, where: str) -> None:
    stem, _, index = name.partition(".")
    if stem == BINS and index:
        bins = getattr(sampler, BINS, ())
        if not index.isdecimal() or int(index) >= len(bins):
            raise InputError(f"{where} is not allowed: sampler.churn_bins has {len(bins)} bins")
    elif name != CHURN and name not in _fields():
        known = [CHURN, *_fields()]
        raise InputError(f"{where}: no such setting{nearest(name, known)}; there are: {', '.join(known)}")


def _require_something(space: Space, path: str) -> None:
    """Some two points must be two samplers, as far as can be seen without a denoiser."""
    shares = itertools.islice(itertools.product((0.02, 0.5, 0.98), repeat=len(space.search)), 729)
    seen, why = set(), ""
    for row in shares:
        try:
            seen.add(space.settings(space.at(row)).effective(None))
        except InputError as error:
            why = str(error)
    if not seen:
        raise InputError(f"{path}: the space allows nothing: {why}")
    if len(seen) < 2 and not space.starts:
        raise InputError(
            f"{path}: the space allows nothing but one sampler, {_brief(next(iter(seen)))}; widen what search names"
        )


def _brief(settings: Sampler) -> str:
    plain = Heun().effective(None).to_dict()
    changed = {key: value for key, value in settings.to_dict().items() if value != plain.get(key)}
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "the deterministic one"
