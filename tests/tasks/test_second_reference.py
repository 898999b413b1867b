"""A second reference of a sweep: measures what was confirmed, decides nothing, and is heard when it disagrees."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest

import edm_ray as edm
from edm_ray.cli import main
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.saved import RESULT
from edm_ray.search.result import SweepResult
from edm_ray.search.second import SecondOpinion
from tests.tasks.small_sweep import PLAN, SPACE


@pytest.fixture(scope="module")
def second(digits_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of other images; one of another extractor is opened and measured in the same way."""
    out = str(tmp_path_factory.mktemp("second") / "heldout")
    edm.reference(str(digits_dir / "heldout"), out, extractor="digits")
    return out


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return str(path)


def test_it_measures_the_confirmed_samplers_on_their_seeds_and_changes_no_decision(
    model, digits_reference, second, space, tmp_path
) -> None:
    def swept(name: str, **options: object) -> SweepResult:
        return edm.sweep(model, digits_reference, space, str(tmp_path / name), plan=PLAN, grid=10, **options).result

    alone, both = swept("alone"), swept("both", second_reference=second)
    assert dataclasses.replace(both, second=None, trials=(), costs=()) == dataclasses.replace(
        alone, trials=(), costs=()
    )
    assert both.second is not None and set(both.second.estimates) == {each.label for each in both.confirmed}
    for each in both.confirmed:
        assert both.second.estimates[each.label].n == each.estimate.n == 100
        assert both.second.estimates[each.label].reference != each.estimate.reference
    assert "second reference, digits heldout" in " ".join(both.summary())
    assert both.second.reference in (tmp_path / "both" / "report.html").read_text()
    saved = SweepResult.from_dict(json.loads((tmp_path / "both" / RESULT).read_text()), RESULT)
    assert saved == both
    chunks = len(list((tmp_path / "both" / "chunks").rglob("*.safetensors")))
    assert swept("both", second_reference=second).second == both.second
    assert len(list((tmp_path / "both" / "chunks").rglob("*.safetensors"))) == chunks, "nothing is sampled again"


def test_a_plan_counts_its_images_and_the_same_reference_twice_is_refused(
    capsys, model, digits_reference, second, space, tmp_path
) -> None:
    command = ["sweep", "--model", model, "--reference", digits_reference, "--space", space, "--out", f"{tmp_path}/s"]
    command += ["--workers", "0", "--confirm-chunks", "1", "--chunk-size", "100", "--dry-run", "--json"]
    assert main(command) == 0
    alone = json.loads(capsys.readouterr().out)["images"]
    assert main([*command, "--second-reference", second]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == alone + 3 * 100  # best, runner-up, deterministic
    assert main([*command, "--second-reference", digits_reference]) == 2
    assert "the same as --reference; give one of another extractor" in capsys.readouterr().err


def opinion(**fids: tuple[float, tuple[float, ...]]) -> SecondOpinion:
    def estimate(fid: float, influence: tuple[float, ...]) -> FidEstimate:
        kept = {"se": 0.1, "n": 100, "reference": "r", "extractor": "e"}
        return FidEstimate(fid=fid, debiased=fid, influence=influence, **kept)

    return SecondOpinion(reference="R", estimates={label: estimate(*each) for label, each in fids.items()})


def test_it_warns_of_each_sampler_that_it_finds_better_beyond_the_interval() -> None:
    noise, other = (0.1, -0.1, 0.05, -0.05), (0.05, -0.1, 0.1, -0.05)
    words = {"plain": "plain sampling", "paper": "the paper's", "failed": "?"}
    [said] = opinion(best=(5.0, noise), plain=(3.0, other), paper=(4.9, other)).sentences("best", words)
    assert "worse than plain sampling (difference +2.000" in said and "the paper's" not in said
    assert "compare pictures" in said
    [said] = opinion(best=(5.0, noise), plain=(7.0, other), paper=(5.1, other)).sentences("best", words)
    assert "finds no other confirmed sampler better; the one found is better than plain sampling." in said
    [said] = opinion(best=(5.0, noise), paper=(5.1, other)).sentences("best", words)
    assert "not clearly different from any of them" in said
    assert opinion(best=(5.0, noise)).sentences("best", words) == []


@dataclasses.dataclass(frozen=True)
class OneAtATime(edm.Local):
    """Workers that hold all of a machine: nothing else can start before they have ended."""

    held: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def open(self, *recipes):
        assert not self.held, "its workers would wait for those of the search for ever"
        self.held.append("open")
        try:
            with super().open(*recipes) as makers:
                yield makers
        finally:
            self.held.clear()


def test_its_workers_start_when_those_of_the_search_have_ended(
    model, digits_reference, second, space, tmp_path
) -> None:
    how = {"plan": PLAN, "grid": 10, "on": OneAtATime(), "second_reference": second}
    assert edm.sweep(model, digits_reference, space, str(tmp_path / "s"), **how).result.second is not None
