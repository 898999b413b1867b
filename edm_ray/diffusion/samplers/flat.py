"""The flat form of samplers, which files and ``--set`` keep: ``solver: heun``, ``num_steps: 18``, ``s_churn: 40``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from edm_ray.diffusion.samplers.base import SOLVERS, Sampler, settings, type_name
from edm_ray.errors import InputError, nearest


def sampler(solver: str = "heun", **fields: Any) -> Sampler:
    """A sampler from its flat form. Raises InputError (a ValueError) naming field, value and what is allowed.

    A setting that only other solvers have may stand at its default, where it says that they would do nothing.
    """
    cls = solver_class(solver)
    own = {each.name for each in settings(cls)}
    for name, value in fields.items():
        if name not in own and not _is_default(name, value):
            raise InputError(f"sampler.{name}={value!r} is not allowed: {_why_not(cls, name)}")
    return cls(**{name: value for name, value in fields.items() if name in own})


def read_sampler(flat: Mapping[str, Any], source: str) -> Sampler:
    """`sampler` of a mapping from a file or the command line, which errors name; numbers may be text ("1e-3")."""
    if not isinstance(flat, Mapping):
        raise InputError(f"{source}: a mapping of sampler settings is expected, got {flat!r}")
    try:
        return sampler(**{str(key): _number(str(key), value) for key, value in flat.items()})
    except InputError as error:
        raise InputError(f"{source}: {error}") from error


def with_changes(base: Sampler, changes: Mapping[str, Any], source: str) -> Sampler:
    """``base`` with a flat mapping laid over it.

    Another solver drops those of base's fields that it does not have, and the order, which each solver has its own of.
    """
    if not isinstance(changes, Mapping):
        raise InputError(f"{source}: a mapping of sampler settings is expected, got {changes!r}")
    flat = base.to_dict()
    if flat["sigmas"] and "sigmas" in changes:
        del flat["num_steps"]
    solver = changes.get("solver", base.solver)
    if solver != base.solver and isinstance(solver, str) and solver in SOLVERS:  # what is no solver is refused below
        own = {each.name for each in settings(SOLVERS[solver])} - {"order"}
        flat = {name: value for name, value in flat.items() if name in own}
    return read_sampler({**flat, **changes}, source)


def setting_names(samplers: Iterable[Sampler]) -> list[str]:
    """The flat form's names that any of these samplers has, in the order of the classes."""
    classes = dict.fromkeys(type(each) for each in samplers)
    return list(dict.fromkeys(["solver", *(each.name for cls in classes for each in settings(cls))]))


def solver_class(solver: Any) -> type[Sampler]:
    if not isinstance(solver, str) or solver not in SOLVERS:
        close = nearest(str(solver), SOLVERS)
        raise InputError(f"sampler.solver={solver!r} is not allowed: {' or '.join(SOLVERS)}{close}")
    return SOLVERS[solver]


def _why_not(cls: type[Sampler], name: str) -> str:
    owners = [solver for solver, each in SOLVERS.items() if name in {field.name for field in settings(each)}]
    if owners:
        return f"solver {cls.solver} has no such setting; {' and '.join(owners)} {'have' if owners[1:] else 'has'} it"
    known = ["solver", *(each.name for each in settings(cls))]
    return f"no such setting{nearest(name, known)}; {cls.solver} has: {', '.join(known)}"


def _of_any_solver(name: str) -> dataclasses.Field[Any] | None:
    return next((each for cls in SOLVERS.values() for each in settings(cls) if each.name == name), None)


def _is_default(name: str, value: Any) -> bool:
    """Whether it is the default of every solver that has the setting (of ``order`` each has its own)."""
    plain = tuple(value) if isinstance(value, list) else value
    defaults = [each.default for cls in SOLVERS.values() for each in settings(cls) if each.name == name]
    return bool(defaults) and all(default == plain for default in defaults)


def _number(name: str, value: Any) -> Any:
    known = _of_any_solver(name)
    if isinstance(value, float) and value.is_integer() and known is not None and type_name(known) == "int":
        return int(value)
    if isinstance(value, str) and known is not None and type_name(known) in ("int", "float", "float | None"):
        try:
            return int(value) if type_name(known) == "int" else float(value)
        except ValueError:
            return value  # refused by the class, which says what it allows
    return value
