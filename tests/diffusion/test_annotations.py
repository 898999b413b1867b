"""A sampler class of a file without postponed annotations: its fields have classes as types, ours have text."""

from dataclasses import dataclass, fields

import numpy as np
import pytest

from edm_ray.diffusion.samplers import SOLVERS, Sampler, read_sampler
from edm_ray.errors import InputError
from edm_ray.search.space import load_space


@pytest.fixture
def mine():
    """Known by its name as long as a test takes."""

    @dataclass(frozen=True, kw_only=True)
    class Mine(Sampler):
        solver = "tests_without_postponed_annotations"
        follows_schedule = False
        eta: float = 0.5
        rounds: int = 2
        stop: float | None = None
        weights: tuple[float, ...] = ()

        def run(self, D, x, levels, path, noise):
            return D(x, levels[0])

    yield Mine
    del SOLVERS[Mine.solver]


def test_this_file_is_one_of_them(mine):
    assert {each.name: each.type for each in fields(mine)}["eta"] is float


def test_numbers_of_any_library_become_plain_and_others_are_refused(mine):
    made = mine(eta=np.float32(0.25), rounds=np.int64(3), weights=[1, 2])
    assert [type(value) for value in (made.eta, made.rounds, made.weights)] == [float, int, tuple]
    assert made.weights == (1.0, 2.0) and made == mine(eta=0.25, rounds=3, weights=(1.0, 2.0))
    with pytest.raises(InputError, match=r"sampler\.eta='a' is not allowed: a number"):
        mine(eta="a")
    with pytest.raises(InputError, match=r"sampler\.rounds=1\.5 is not allowed: a whole number"):
        mine(rounds=1.5)


def test_files_may_hold_its_numbers_as_text(mine):
    flat = {"solver": mine.solver, "eta": "1e-1", "rounds": "4", "stop": "0.5"}
    assert read_sampler(flat, "file") == mine(eta=0.1, rounds=4, stop=0.5)


def test_a_tune_space_searches_it(mine, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        f"name: t\nsampler: {{solver: {mine.solver}, num_steps: 4}}\nsearch:\n  eta: {{low: 0, high: 0.9}}\n"
    )
    assert set(load_space(str(space)).search) == {"eta"}
