"""The page of a sweep by budget."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from rich.console import Console

from edm_ray.cli import main
from edm_ray.cli.tables import budgets_table
from edm_ray.diffusion.samplers import sampler
from edm_ray.evaluation.fid import FidEstimate
from edm_ray.report.by_budget import folder, save_by_budget, write_budgets_page
from edm_ray.report.forest import Interval, forest
from edm_ray.report.html import Context
from edm_ray.report.saved import save_progress, save_report
from edm_ray.search.budget_space import at_budget
from edm_ray.search.by_budget import rows_of
from edm_ray.search.races import Races
from edm_ray.search.result import SweepResult, result_of
from edm_ray.search.statistics import Difference
from tests.search.worlds import driver_of, run, space_from

SPACE = """
name: few
sampler: {solver: dpmpp_2m}
search:
  solver: {choices: [dpmpp_2m, deis]}
  rho: {low: 2, high: 12}
"""
CONTEXT = Context(title="T <b>", reference="R", seconds=1.0, commands=("edm-ray sweep --nfe 5,8",))


@pytest.fixture(scope="module")
def results() -> list[SweepResult]:
    races = Races([driver_of(at_budget(space_from(SPACE), nfe), strategy="random", num_global=4) for nfe in (5, 8)])
    run(races, fid=lambda settings: 9 - settings.nfe / 2 + abs(settings.rho - 5))
    return [result_of(each) for each in races.drivers]


def save(out: Path, results: list[SweepResult]) -> str:
    for result in results:
        save_report(folder(str(out), result.nfe), result, CONTEXT)
    save_by_budget(str(out), [result.nfe for result in results], CONTEXT)
    return write_budgets_page(str(out), results, (), CONTEXT)


def test_the_table_in_the_terminal_fits_80_columns(results):
    wide = sampler("dpmpp_3m_sde", num_steps=18)
    gaps = {"against_heun": Difference(gap=-957.6, se=12.0, low=-981.63, high=-933.65)}
    gaps["against_unsearched"] = Difference(gap=-0.0123, se=0.01, low=-0.0341, high=0.0099)
    rows = [
        dataclasses.replace(row, nfe=35, best=dataclasses.replace(row.best, settings=wide), **gaps)
        for row in rows_of(results)
    ]
    console = Console(width=80)
    with console.capture() as captured:
        console.print(budgets_table(rows))
    lines = [line.rstrip() for line in captured.get().splitlines()]
    found = [line for line in lines if "dpmpp_3m_sde, 18" in line]
    assert len(found) == 2 and all("-982 to -934" in line and "-0.034 to +0.0099" in line for line in found), lines
    assert max(map(len, lines)) <= 80 and not any("\u2026" in line for line in lines), lines


MARKS = ('id="found"', 'id="fid-nfe"', 'id="differences"', 'id="budgets"', 'id="ledger"')


def test_the_page_says_first_what_was_found_then_draws_it_then_lists_every_budget(results, tmp_path):
    text = Path(save(tmp_path, results)).read_text()
    places = [text.index(mark) for mark in MARKS]
    assert places == sorted(places) and text.count("<svg") == 2
    found = text[places[0] : places[1]]
    assert "5 evaluations: solver" in found and "8 evaluations: solver" in found
    for name in ("searched", "best unsearched solver", "Heun, rho 7"):
        assert f"<!-- {name} -->" in text, "the figure's legend"
    assert len(re.findall(r"<tr><td>[58]</td>", text[places[3] : places[4]])) == 2
    assert all(
        f'href="nfe-{nfe}/report.html"' in text and (tmp_path / f"nfe-{nfe}/report.html").exists() for nfe in (5, 8)
    )
    assert "<b>" not in text and not re.search("s_churn|s_tmin|s_tmax", text, re.I)


def test_the_page_of_a_budget_names_what_it_is_compared_with_and_no_setting_that_was_not_searched(results, tmp_path):
    save(tmp_path, results)
    text = (tmp_path / "nfe-8" / "report.html").read_text()
    assert "against the best unsearched solver, paired" in text and "against Heun, rho 7, paired" in text
    assert "of at most 8 network evaluations" in text
    headings = re.findall(r"<th>(.*?)</th>", text)
    assert {"solver", "rho"} <= set(headings) and not {"S_churn", "S_tmin", "S_tmax", "S_noise"} & set(headings)


def test_the_report_is_written_again_with_the_same_bytes(results, tmp_path, capsys):
    page = Path(save(tmp_path, results))
    pages = {path: path.read_bytes() for path in (page, tmp_path / "nfe-5/report.html", tmp_path / "nfe-8/report.html")}
    for path in pages:
        path.unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert {path: path.read_bytes() for path in pages} == pages
    assert "8 evaluations: solver" in capsys.readouterr().out


@pytest.mark.parametrize("ended", [0, 1])
def test_an_unfinished_sweep_shows_the_budgets_that_have_ended_and_names_the_others(results, tmp_path, capsys, ended):
    save_by_budget(str(tmp_path), [5, 8, 18], dataclasses.replace(CONTEXT, unfinished=True))
    for result in results[:ended]:
        save_report(folder(str(tmp_path), result.nfe), result, CONTEXT)
    save_progress(folder(str(tmp_path), results[ended].nfe), results[ended], CONTEXT)
    assert main(["report", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "This sweep has not ended: budgets " + ("5, 8, 18" if ended == 0 else "8, 18") + " are still to come" in told
    assert ("5 evaluations: solver" in told) == (ended == 1)


def test_a_forest_shows_the_paired_difference_in_percent_of_the_other():
    estimate = FidEstimate(fid=4.1, debiased=4.0, se=0.1, n=100, influence=(0.0,) * 10, reference="r", extractor="e")
    gap = Difference(gap=-1.0, se=0.1, low=-1.25, high=-0.75)
    assert Interval("8", estimate, gap, "k").percent == pytest.approx((-25.0, -20.0, -15.0))
    drawn = forest([Interval("8", estimate, gap, "k", "Heun"), Interval("5", estimate, gap, "k", "Heun")], "y", "x")
    assert drawn.startswith("<svg")
