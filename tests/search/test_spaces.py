"""Tune spaces as data: what is read, what is refused, and that the files that ship keep to their schema."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import jsonschema
import pytest
import yaml

from edm_ray.diffusion.samplers import sampler
from edm_ray.errors import InputError
from edm_ray.search.dimensions import Choice, Grid, Range
from edm_ray.search.driver import Driver
from edm_ray.search.plan import SweepPlan, sweep_plan
from edm_ray.search.schema import schema
from edm_ray.search.schema import text as schema_text
from edm_ray.search.space import in_words, load_space
from tests.search.worlds import SPACE, space_from

FILES = sorted(Path("tune_spaces").glob("*.yaml"))
HEAD = "name: x\nsearch: "


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_space_that_ships_keeps_to_the_schema_and_can_be_searched(path):
    jsonschema.Draft202012Validator(schema()).validate(yaml.safe_load(path.read_text()))
    space = load_space(str(path))
    assert space.name == path.stem
    assert len(Driver(space, sweep_plan(strategy="random", num_global=5)).ask()) >= 6


def test_the_schema_that_ships_is_that_of_the_dataclass():
    assert Path("tune_spaces/schema.json").read_text() == schema_text(), "python -m edm_ray.search.schema > ..."


@pytest.mark.parametrize(
    "wrong",
    [{"nmae": "x"}, {"sampler": {"rhoo": 1}}, {"search": {"rho": {"low": 1}}}, {"search": {}}, {"starts": {"a": 1}}],
)
def test_the_schema_refuses_what_the_reader_refuses(wrong):
    content = {"name": "x", "search": {"rho": {"low": 3, "high": 9}}, **wrong}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(content)
    with pytest.raises(InputError):
        space_from(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (HEAD + "{churn_fractoin: {low: 0, high: 1}}", "did you mean 'churn_fraction'"),
        (HEAD + "{s_tmin: {low: 1, high: 0.5}}", "low < high"),
        (HEAD + "{s_tmin: {low: 0, high: 1, scale: log}}", "greater than 0"),
        (HEAD + "{s_tmin: {low: 0.1, high: 1, scael: log}}", "did you mean 'scale'"),
        (HEAD + "{churn_fraction: {low: 0, high: 2}}", "a share of the cap, 0 to 1"),
        (HEAD + "{s_churn: {low: 0, high: 2}}", "search churn_fraction"),
        (HEAD + "{num_steps: {low: 6, high: 12}}", "add integer: true"),
        (HEAD + "{solver: {low: 0, high: 1}}", "give {choices"),
        (HEAD + "{solver: {choices: [heunn]}}", r"search\.solver.*euler or heun"),
        (HEAD + "{rho: {grid: [3, 2]}}", "ascending"),
        (HEAD + "{rho: {grid: []}}", "one number or more"),
        (HEAD + "{rho: {low: -1, high: 2}}", "greater than 0"),
        (HEAD + "{churn_bins.0: {low: 0, high: 1}}", "has 0 bins"),
        (HEAD + "{rho: 7}", "got 7"),
        (HEAD + "{rho: {low: 3, high: 9}}\nsampler: {s_churn: 3}", r"sampler\.s_churn=3"),
        (HEAD + "{order: {grid: [2, 3]}}", r"search\.order.*solver heun has no such setting"),
        (
            HEAD + "{solver: {choices: [unipc]}, order: {grid: [1, 2]}}",
            r"search\.order.*order=1 is not allowed: 2 or 3",
        ),
        (HEAD + "{sigmas: {choices: [[9, 1], [1, 9]]}}", r"search\.sigmas.*descending"),
        (HEAD + "{sigmas: {choices: [[9, 1], [9, 4, 1]]}}\nsampler: {num_steps: 2}", r"num_steps=2.*3, the number of"),
        (HEAD + "{rho: {low: 3, high: 9}}\nsampler: {solver: deis, schedule: vp}", r"schedule='vp'.*steps between"),
        (HEAD + "{gammas: {choices: [[0.1, .nan]]}}\nsampler: {num_steps: 2}", r"search\.gammas.*from 0 to sqrt"),
        (HEAD + "{rho: {low: 3, high: 9}}\nname: y", "given twice"),
        (HEAD + "{rho: {low: 3, high: 9}}\nstarts: {a: {s_chrun: 1}}", "did you mean 's_churn'"),
        (HEAD + "{rho: {low: 3, high: 9}}\nstarts: {a: {rho: 5}}\npaper: b", "the name of a start"),
        (HEAD + "{rho: {low: 3, high: 9}}\nserach: 1", "unknown key 'serach'"),
        ("search: {rho: {low: 3, high: 9}}", "'name' is missing"),
        ("name: x", "search must name"),
        (HEAD + "{}", "search must name"),
    ],
)
def test_a_wrong_space_names_the_file_and_the_key(text, says):
    with pytest.raises(InputError, match=says) as caught:
        space_from(text)
    assert str(caught.value).startswith("space.yaml")


@pytest.mark.parametrize(
    "search",
    [
        "{churn_fraction: {grid: [0]}, s_noise: {low: 1, high: 1.01}}",  # no churn, so no noise
        "{churn_fraction: {low: 0, high: 1}, s_tmin: {grid: [60]}, s_tmax: {grid: [50]}}",  # an empty window
        "{alpha: {low: 0.5, high: 1}, solver: {choices: [dpmpp_2m]}}",  # nothing reads alpha
    ],
)
def test_a_space_that_allows_nothing_but_one_sampler_says_so(search):
    with pytest.raises(InputError, match="allows nothing but one sampler"):
        space_from(HEAD + search)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no such tune space"):
        load_space(str(tmp_path / "none.yaml"))


def test_churn_is_a_share_of_its_cap_whatever_the_steps():
    space = space_from(HEAD + "{churn_fraction: {low: 0, high: 1}, num_steps: {low: 4, high: 40, integer: true}}")
    for steps in (4, 18, 40):
        settings = space.settings({"churn_fraction": 0.5, "num_steps": steps})
        assert settings.s_churn == pytest.approx(0.5 * steps * (math.sqrt(2) - 1)) and settings.num_steps == steps
        assert space.point_of(settings) == {"churn_fraction": pytest.approx(0.5), "num_steps": steps}


def test_churn_by_bins_restarts_and_solvers_can_be_searched():
    space = space_from(
        HEAD + "{churn_bins.0: {low: 0, high: 1}, churn_bins.1: {low: 0, high: 1}}\n"
        "sampler: {churn_bins: [[0, 1, 0], [1, 50, 0]]}"
    )
    settings = space.settings({"churn_bins.0": 0.25, "churn_bins.1": 1.0})
    assert [churn / settings.churn_cap for _, _, churn in settings.churn_bins] == pytest.approx([0.25, 1.0])
    assert space.point_of(settings) == {"churn_bins.0": pytest.approx(0.25), "churn_bins.1": pytest.approx(1.0)}
    assert space.sampler.effective(None) == sampler().effective(None)
    space = space_from(
        HEAD + "{restarts: {choices: [[], [[0.14, 0.3, 3, 2]]]}, solver: {choices: [heun, dpmpp_2m]}, "
        "churn_fraction: {low: 0, high: 1}}"
    )
    restarts = space.search["restarts"].values()
    assert restarts == [(), ((0.14, 0.3, 3, 2),)]
    point = {"restarts": restarts[1], "solver": "dpmpp_2m", "churn_fraction": 1.0}
    assert space.settings(point) == sampler(solver="dpmpp_2m"), "what a solver does not take is left out"
    assert space.settings({**point, "solver": "heun"}).restarts == restarts[1]


def test_a_window_that_is_empty_is_the_deterministic_sampler():
    space = load_space("tune_spaces/imagenet64.yaml")
    empty = space.settings({"s_churn": 50, "s_tmin": 10, "s_tmax": 0.2, "s_noise": 1.005})
    assert empty.effective(None) == space.sampler.effective(None)


def test_the_papers_grid_holds_its_own_choice():
    space = load_space("tune_spaces/imagenet64.yaml")
    assert space.count() == 11 * 12 * 9 * 11
    paper = space.starts["paper"]
    assert space.settings(space.point_of(paper)) == paper
    registry = Driver(space, SweepPlan()).search.registry
    assert registry.paper == "paper" and registry.samplers["paper"].nfe == 511


@pytest.mark.parametrize(
    "dimension",
    [
        Range(low=0.0, high=1.0),
        Range(low=0.01, high=10.0, scale="log"),
        Range(low=2, high=9, integer=True),
        Grid(grid=(0.0, 0.5, 1.0, math.inf)),
        Choice(choices=("a", "b")),
    ],
    ids=["linear", "log", "integer", "grid", "choice"],
)
def test_dimensions_keep_to_their_bounds(dimension):
    values = [dimension.at(i / 50) for i in range(51)]
    for value in values:
        assert dimension.clip(value) == value
        assert all(0 <= number <= 1 for number in dimension.features(value))
        for spacing in (0.25, 0.05):
            near = dimension.beside(value, spacing)
            assert value not in near and len(set(near)) == len(near)
            assert all(dimension.clip(other) == other for other in near)
    points = dimension.values(4)
    assert len(points) == dimension.size(4) and len(set(points)) == len(points)
    for a, b in itertools.pairwise(points):
        assert dimension.features(a) != dimension.features(b)


def test_starts_outside_the_space_are_still_evaluated_as_they_are():
    space = space_from(SPACE + "  far: {s_churn: 2, s_noise: 1.5}\n")
    registry = Driver(space, SweepPlan()).search.registry
    assert registry.samplers["far"].s_noise == 1.5 and registry.points["far"]["s_noise"] == 1.01


def test_a_sampler_is_described_by_what_is_searched_and_what_differs():
    space = space_from(
        HEAD + "{churn_fraction: {low: 0, high: 1}, s_tmin: {low: 0, high: 1}}\nsampler: {num_steps: 12}"
    )
    assert space.describe(space.sampler) == {"s_churn": "0", "s_tmin": "0"}
    other = space.settings({"churn_fraction": 0.5, "s_tmin": 0.25, "rho": 5.0})
    assert space.describe(other) == {"s_churn": "2.485", "s_tmin": "0.25", "rho": "5"}
    assert in_words(space.describe(other)) == "S_churn 2.485, S_tmin 0.25, rho 5"
    space = space_from(HEAD + "{sigma_max: {low: 20, high: 80}, restarts: {choices: [[], [[0.14, 0.3, 3, 2]]]}}")
    effective = space.sampler.effective(None)
    assert space.describe(effective) == {"sigma_max": "80", "restarts": "none"}, "bounds left open are no difference"
    restarts = space.search["restarts"].values()[1]
    assert space.describe(space.settings({"restarts": restarts}))["restarts"] == "0.14,0.3,3,2"


def test_settings_of_some_of_the_solvers_are_searched_with_those_and_left_out_with_others():
    space = space_from(
        HEAD + "{solver: {choices: [heun, deis, unipc, sa_solver]}, order: {grid: [2, 3, 4]}, "
        "variant: {choices: [bh1, bh2]}, tau: {low: 0, high: 1.5}, afs: {choices: [false, true]}, "
        "alpha: {low: 0.5, high: 1}}\nsampler: {num_steps: 6}"
    )
    point = {"order": 3, "variant": "bh1", "tau": 0.5, "afs": True, "alpha": 0.7}
    own = {"heun": ["alpha"], "deis": ["order", "afs"], "unipc": ["order", "variant", "afs"]}
    own["sa_solver"] = ["order", "tau", "afs"]
    for solver, names in own.items():
        settings = space.settings({"solver": solver, **point})
        assert settings == sampler(solver=solver, num_steps=6, **{name: point[name] for name in names})
        told = space.describe(settings)
        assert set(told) == {"solver", *names} and told.get("afs", "yes") == "yes"
        assert {**space.point_of(settings), **{name: point[name] for name in names}} == space.point_of(settings)
    with pytest.raises(InputError, match=r"order=4 is not allowed: 2 or 3"):
        space.settings({"solver": "unipc", **point, "order": 4})


def test_noise_levels_and_churn_by_step_can_be_searched_and_are_told():
    space = space_from(
        HEAD + "{sigmas: {choices: [[80, 9, 1], [60, 9, 1]]}, gammas: {choices: [[], [0, 0.3, 0]]}}\n"
        "sampler: {solver: euler, num_steps: 3}"
    )
    settings = space.settings({"sigmas": (60.0, 9.0, 1.0), "gammas": (0.0, 0.3, 0.0)})
    assert settings == sampler(solver="euler", sigmas=[60, 9, 1], gammas=[0, 0.3, 0])
    assert in_words(space.describe(settings)) == "sigmas 60 9 1, gammas 0 0.3 0"
    assert space.settings(space.point_of(settings)) == settings
