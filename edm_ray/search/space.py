"""Tune spaces: which sampler settings a sweep may try, as data (`tune_spaces/*.yaml`).

Any setting of a sampler can be searched. S_churn is searched as ``churn_fraction``, the share of its cap
num_steps * (sqrt(2) - 1), above which it changes nothing (or as a grid of ``s_churn``, as in the paper);
``churn_bins.0`` is the same share within the first bin. Settings that the solver of a point does not take are left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edm_ray.config.load import merge, parse_yaml, validate
from edm_ray.diffusion.samplers import SamplerSettings
from edm_ray.errors import InputError, nearest
from edm_ray.search.dimensions import Choice, Grid, Range

Point = Mapping[str, Any]
"""Value of each searched setting; churn as a share of its cap."""
CHURN = "churn_fraction"
BINS = "churn_bins"
IN_PAPER = {"s_churn": "S_churn", "s_tmin": "S_tmin", "s_tmax": "S_tmax", "s_noise": "S_noise"}
"""Settings that the paper writes otherwise."""
_FIELDS = {entry.name: entry.type for entry in dataclasses.fields(SamplerSettings)}
_TAKES_CHURN = ("heun", "euler")


@dataclass(frozen=True, kw_only=True)
class Space:
    """What a sweep searches."""

    name: str
    about: str = ""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    """Settings that are not searched; without churn: this is the deterministic baseline."""
    search: dict[str, Range | Grid | Choice] = field(default_factory=dict)
    """Setting -> where it may lie: {low, high, scale, integer}, {grid} or {choices}."""
    starts: dict[str, SamplerSettings] = field(default_factory=dict)
    """Named settings to evaluate first."""
    paper: str | None = None
    """The start that is the paper's choice: the confirmation compares with it."""

    def settings(self, point: Point) -> SamplerSettings:
        """A point -> sampler settings; what is missing from it is that of ``sampler``.

        A window with s_tmin > s_tmax holds no noise level, and a solver that takes no churn gets none: both are plain
        deterministic settings. An interval with guidance_min > guidance_max is no guidance. Raises InputError for
        combinations that no sampler allows.
        """
        flat = flat_of(self.sampler) | {name: value for name, value in point.items() if name in _FIELDS}
        cap = dataclasses.replace(self.sampler, num_steps=flat["num_steps"]).churn_cap
        if CHURN in point:
            flat["s_churn"] = point[CHURN] * cap
        shares = {name: share for name, share in point.items() if _bin(name) is not None}
        if shares:
            flat[BINS] = tuple(
                (low, high, shares.get(f"{BINS}.{i}", 0.0) * cap) for i, (low, high, _) in enumerate(flat[BINS])
            )
        if flat["s_tmin"] > flat["s_tmax"]:
            flat |= {"s_churn": 0.0, "s_tmin": 0.0, "s_tmax": math.inf}
        if flat["guidance_min"] > flat["guidance_max"]:
            flat |= {"guidance": 1.0, "guidance_min": 0.0, "guidance_max": math.inf}
        if flat["solver"] not in _TAKES_CHURN:
            flat |= {"s_churn": 0.0, BINS: (), "restarts": ()}
        return SamplerSettings(**flat)

    def with_churn(self, share: float) -> SamplerSettings | None:
        """``sampler`` with this share of the cap of S_churn at every noise level; None if churn is not searched so."""
        for name, amount in ((CHURN, share), ("s_churn", share * self.sampler.churn_cap)):
            if name in self.search:
                return self.settings({name: self.search[name].clip(amount)})
        return None

    def describe(self, settings: SamplerSettings) -> dict[str, str]:
        """Setting -> its value in words: what is searched, and what else differs from ``sampler``.

        Bounds that ``sampler`` leaves open are told where they are searched only.
        """
        mine, base = flat_of(settings), flat_of(self.sampler)
        searched = dict.fromkeys("s_churn" if name == CHURN else name.partition(".")[0] for name in self.search)
        others = [name for name in mine if base.get(name) is not None and mine[name] != base[name]]
        return {name: _text(mine[name]) for name in dict.fromkeys([*searched, *others]) if name in mine}

    def at(self, shares: Sequence[float]) -> Point:
        """Shares in [0, 1], one a dimension -> point."""
        return {name: where.at(share) for (name, where), share in zip(self.search.items(), shares, strict=True)}

    def features(self, point: Point) -> list[float]:
        """What a model of the FID sees of a point: numbers in [0, 1]; a choice is one-hot."""
        return [number for name, where in self.search.items() for number in where.features(point[name])]

    def point_of(self, settings: SamplerSettings) -> Point:
        """The nearest point of the space."""
        return {name: where.clip(_searched(settings, name)) for name, where in self.search.items()}

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


def _text(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return " ".join(",".join(f"{number:.4g}" for number in row) for row in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def flat_of(settings: SamplerSettings) -> dict[str, Any]:
    """The flat form that files keep."""
    return {name: getattr(settings, name) for name in _FIELDS}


def _bin(name: str) -> int | None:
    """The index of ``churn_bins.INDEX``."""
    stem, _, index = name.partition(".")
    return int(index) if stem == BINS and index.isdecimal() else None


def _searched(settings: SamplerSettings, name: str) -> Any:
    """The value of a dimension in a sampler; None where its solver has no such setting."""
    index = _bin(name)
    if name == CHURN:
        return min(settings.s_churn / settings.churn_cap, 1.0)
    if index is not None:
        churn = settings.churn_bins[index][2] if index < len(settings.churn_bins) else 0.0
        return min(churn / settings.churn_cap, 1.0)
    return getattr(settings, name, None)


def load_space(path: str) -> Space:
    """Read a tune space. Raises InputError naming the file, the key, what was got and what is allowed."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such tune space; the repository has some in tune_spaces/")
    return space_of(parse_yaml(Path(path).read_text(), path), path)


def space_of(given: Mapping[str, Any], path: str) -> Space:
    """A mapping as in a file -> Space."""
    known = {entry.name for entry in dataclasses.fields(Space)}
    for key in given:
        if key not in known:
            raise InputError(f"{path}: unknown key {key!r}{nearest(str(key), known)}; known here: {', '.join(known)}")
    if not given.get("name"):
        raise InputError(f"{path}: key 'name' is missing")
    sampler = _sampler(SamplerSettings(), given.get("sampler") or {}, f"{path}: sampler")
    if sampler.s_churn or any(churn for _, _, churn in sampler.churn_bins):
        raise InputError(f"{path}: sampler.s_churn={sampler.s_churn} is not allowed: 0, it is what is searched")
    search = given.get("search") or {}
    if not isinstance(search, dict) or not search:
        raise InputError(f"{path}: search must name the settings to search, for example churn_fraction; got nothing")
    starts = given.get("starts") or {}
    if not isinstance(starts, dict) or not all(isinstance(value, dict) for value in starts.values()):
        raise InputError(f"{path}: starts must be a mapping of names to sampler settings")
    named = {str(key): _sampler(sampler, value, f"{path}: starts.{key}") for key, value in starts.items()}
    paper = given.get("paper")
    if paper is not None and paper not in named:
        raise InputError(f"{path}: paper={paper!r} is not allowed: the name of a start{nearest(str(paper), named)}")
    dimensions = {str(key): _dimension(sampler, str(key), value, path) for key, value in search.items()}
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


def _sampler(base: SamplerSettings, changes: Mapping[str, Any], where: str) -> SamplerSettings:
    if not isinstance(changes, Mapping):
        raise InputError(f"{where}: a mapping of sampler settings is expected, got {changes!r}")
    return validate(SamplerSettings, merge(dataclasses.asdict(base), changes, where), where)


def _dimension(sampler: SamplerSettings, name: str, given: Any, path: str) -> Range | Grid | Choice:
    """One entry of ``search``; every bound, grid value and choice must make a sampler."""
    where = f"{path}: search.{name}"
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
    kind_of = "float" if share else str(_FIELDS[name])
    if isinstance(dimension, Choice):
        if share:
            raise InputError(f"{where}: churn is searched by {{low, high}} or {{grid: [...]}}")
        # What another solver does not take is left out when it is chosen, and does not speak against it.
        base = dataclasses.replace(sampler, churn_bins=(), restarts=()) if name == "solver" else sampler
        made = tuple(getattr(_sampler(base, {name: value}, where), name) for value in dimension.choices)
        return Choice(choices=made)
    if kind_of not in ("float", "float | None", "int"):
        raise InputError(f"{where}: give {{choices: [...]}}, it is no number")
    for value in dimension.bounds():
        if share and not 0 <= value <= 1:
            raise InputError(f"{where}={value} is not allowed: a share of the cap, 0 to 1")
        if kind_of == "int" and not (float(value).is_integer() and getattr(dimension, "integer", True)):
            raise InputError(f"{where} is not allowed: whole numbers; add integer: true")
        if not share and not (name == "s_tmax" and value < sampler.s_tmin):
            _sampler(dataclasses.replace(sampler, s_tmin=0.0, s_tmax=math.inf), {name: value}, where)
    if kind_of == "int" and isinstance(dimension, Grid):
        dimension = Grid(grid=tuple(int(value) for value in dimension.grid))
    return dimension  # type: ignore[no-any-return]


def _require_setting(sampler: SamplerSettings, name: str, where: str) -> None:
    stem, _, index = name.partition(".")
    if stem == BINS and index:
        if not index.isdecimal() or int(index) >= len(sampler.churn_bins):
            raise InputError(f"{where} is not allowed: sampler.churn_bins has {len(sampler.churn_bins)} bins")
    elif name != CHURN and name not in _FIELDS:
        known = [CHURN, *_FIELDS]
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


def _brief(settings: SamplerSettings) -> str:
    plain = dataclasses.asdict(SamplerSettings().effective(None))
    changed = {key: value for key, value in dataclasses.asdict(settings).items() if value != plain[key]}
    return ", ".join(f"{key}={value}" for key, value in changed.items()) or "the deterministic one"
