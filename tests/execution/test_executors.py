"""What an executor promises, here and on Ray: what is missing is made, once, with set-up once a worker."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edm_ray.distributed.executor import Ray
from edm_ray.errors import InputError
from edm_ray.execution.executor import Needs, make_all
from edm_ray.execution.local import Local
from edm_ray.storage import artifacts


@pytest.fixture(params=[Local(), pytest.param(Ray(workers=2), marks=pytest.mark.ray)], ids=["here", "on Ray"])
def executor(request):
    if isinstance(request.param, Ray):
        request.getfixturevalue("ray_session")
    return request.param


@dataclass(frozen=True)
class Square:
    kind = "square"
    number: int

    @property
    def identity(self) -> dict[str, Any]:
        return {"number": self.number}

    def __str__(self) -> str:
        return f"square of {self.number}"


@dataclass(frozen=True)
class Squares:
    """The recipe. 13 is refused; 5 takes the process with it, the first time."""

    store: str
    fail: bool = False

    @property
    def needs(self) -> Needs:
        return Needs(what="squaring", cpus=0.5)

    def setup(self, device: str) -> SquareWorker:
        (Path(self.store) / f"setup-{os.getpid()}-{len(list(Path(self.store).glob('setup-*')))}").touch()
        return SquareWorker(self)

    def is_stored(self, artifact: artifacts.Artifact) -> bool:
        return artifacts.is_stored(self.store, artifact)


class SquareWorker:
    def __init__(self, recipe: Squares) -> None:
        self.recipe = recipe

    def make(self, item: tuple[Square, ...]) -> None:
        for each in item:
            if each.number == 13:
                raise InputError(f"{each}: unlucky")
            if each.number == 5 and self.recipe.fail and not (mark := Path(self.recipe.store) / "struck").exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            artifacts.write(self.recipe.store, each, {"square": np.array([each.number**2])})


def _squares(store, numbers) -> list[int]:
    return [int(artifacts.read(str(store), Square(n)).arrays["square"][0]) for n in numbers]


def test_what_is_missing_is_made_and_what_is_there_is_not(executor, tmp_path):
    recipe, told = Squares(str(tmp_path)), []
    artifacts.write(str(tmp_path), Square(2), {"square": np.array([-1])})
    items = [(Square(n), Square(n + 100)) for n in range(8)]
    with executor.open(recipe) as (maker,):
        make_all(maker, [(Square(2),)])
        assert not list(tmp_path.glob("setup-*")) or isinstance(executor, Ray), "nothing was set up for what is there"
        make_all(maker, items, lambda done, total: told.append((done, total)))
        assert sorted(maker.make(items)) == list(range(8))
    assert _squares(tmp_path, (0, 1, 7, 102, 107)) == [0, 1, 49, 102**2, 107**2]
    assert told == [(i, 8) for i in range(1, 9)]
    assert 1 <= len(list(tmp_path.glob("setup-*"))) <= executor.size, "once a worker"


def test_wrong_input_ends_it_with_its_own_words_and_the_rest_can_be_made(executor, tmp_path):
    with executor.open(Squares(str(tmp_path))) as (maker,):
        with pytest.raises(InputError, match=r"^square of 13: unlucky$"):
            make_all(maker, [(Square(13),)])
        make_all(maker, [(Square(3),)])
    assert _squares(tmp_path, [3]) == [9]


@pytest.mark.ray
def test_a_worker_that_is_lost_is_replaced(ray_session, tmp_path):
    with Ray(workers=1).open(Squares(str(tmp_path), fail=True)) as (maker,):
        make_all(maker, [(Square(n),) for n in range(8)])
    assert _squares(tmp_path, range(8)) == [n**2 for n in range(8)] and (tmp_path / "struck").exists()


@pytest.mark.parametrize(("workers", "least", "share"), [(0, None, 1), (2, 3, 1), (1, None, 0)])
def test_a_ray_that_cannot_be_is_refused_and_building_one_imports_nothing(workers, least, share):
    with pytest.raises(InputError, match="give 1 or more"):
        Ray(workers=workers, least=least, actors_per_gpu=share)
