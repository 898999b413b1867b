"""Processes wait at a named point until a test lets them go on: Python runs this at the start of every process that has
this folder in PYTHONPATH, so also in those that Ray starts.

EDM_RAY_TEST_GATES names a folder. The first process that comes to the point written in its file ``armed`` makes the
folder ``reached`` with its number in it, and waits for the file ``open``.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

MOST_S = 300.0


def _below(part: str) -> Callable[..., bool]:
    return lambda *args, **_: part in str(args[0])


def _always(*_: Any, **__: Any) -> bool:
    return True


POINTS: dict[str, list[tuple[str, str, Callable[..., bool]]]] = {
    # Trainings, in the rank that comes first.
    "group starts": [("edm_ray.training.loop", "TrainingState", _always)],
    "first step": [("edm_ray.training.step", "TrainingStep.take", _always)],
    "in a step": [
        ("edm_ray.training.step", "TrainingStep.take", lambda step, *_: step.state.images_seen >= 14 * 24),
    ],
    "checkpoint": [("edm_ray.storage.uris", "write_bytes", _below("nimg-"))],
    "model": [("edm_ray.storage.uris", "write_bytes", _below("/model/"))],
    # Pools.
    "sampler starts": [("edm_ray.generation.features", "GenerateFeatures.setup", _always)],
    "judge starts": [("edm_ray.evaluation.fid_worker", "MeasureSets.setup", _always)],
    "first chunk": [("edm_ray.generation.features", "generate", _always)],
    "in a chunk": [("edm_ray.generation.features", "write_chunk", _always)],
    "chunk written": [("edm_ray.storage.uris", "write_bytes", _below("/chunk/"))],
    "measurement": [("edm_ray.evaluation.fid_worker", "measure_rows", _always)],
    "measurement written": [("edm_ray.storage.uris", "write_bytes", _below("/measurement/"))],
    # A sweep's chunk of fresh seeds, in its sampler.
    "confirming": [("edm_ray.generation.features", "generate", lambda _, seeds, *rest: int(seeds[0]) >= 1 << 30)],
}
"""Point -> (module, function or class or its method, of which calls)."""


def wait_at(point: str) -> None:
    folder = Path(os.environ["EDM_RAY_TEST_GATES"])
    try:
        if (folder / "armed").read_text() != point:
            return
        (folder / "reached").mkdir()
    except (FileNotFoundError, FileExistsError):
        return
    (folder / "reached" / "pid").write_text(str(os.getpid()))
    end = time.monotonic() + MOST_S
    while not (folder / "open").exists() and time.monotonic() < end:
        time.sleep(0.02)


def _gated(original: Callable[..., Any], point: str, of: Callable[..., bool]) -> Callable[..., Any]:
    @functools.wraps(original, updated=())
    def call(*args: Any, **kwargs: Any) -> Any:
        if of(*args, **kwargs):
            wait_at(point)
        return original(*args, **kwargs)

    return call


def _gate(module: ModuleType) -> None:
    for point, places in POINTS.items():
        for name, path, of in places:
            if name == module.__name__:
                owner: Any = module
                *above, last = path.split(".")
                for part in above:
                    owner = getattr(owner, part)
                setattr(owner, last, _gated(getattr(owner, last), point, of))


class _Finder(importlib.abc.MetaPathFinder):
    """Puts gates into modules as they are imported."""

    names = frozenset(name for places in POINTS.values() for name, *_ in places)

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in self.names:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _gate(module)

        with contextlib.suppress(AttributeError):
            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("EDM_RAY_TEST_GATES"):
    sys.meta_path.insert(0, _Finder())
