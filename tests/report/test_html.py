from __future__ import annotations

import dataclasses
import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edm_ray.cli import main
from edm_ray.report.figures import drawings
from edm_ray.report.html import Context, render_report
from edm_ray.report.parameters import cell_means, looks_of, searched, searched_choices
from edm_ray.report.saved import load_report, save_progress, save_report
from edm_ray.search.dimensions import Choice
from edm_ray.search.result import result_of
from edm_ray.search.sampler_file import best_sampler_yaml, settings_from_yaml
from edm_ray.search.space import load_space
from tests.search.worlds import SPACE, driver_of, run, simulate

# Figure -> panels: four parameters are searched.
FIGURES = {"differences": 1, "fid-churn": 1, "fid-parameters": 4, "fid-pairs": 6, "race": 1, "chunks": 1, "fid-all": 1}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("s") / "space.yaml"
    path.write_text(SPACE.replace("  paper:", "  <script>alert(1)</script>:"))
    driver = driver_of(load_space(str(path)))
    run(driver)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, format="PNG")
    result = result_of(driver)
    context = Context(
        title="T",
        reference="digits <b>train</b> (n=1297), extractor digits",
        grids={"deterministic": buffer.getvalue()},
        real={"dataset": "heldout", "n": "1000", "fid": "1.234", "se": "0.1", "debiased": "1.0"},
        seconds=12.0,
        commands=("edm-ray sweep --model M",),
    )
    return render_report(result, context), result


@pytest.fixture(scope="module")
def browser():
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    return found or pytest.skip("no Chromium or Chrome on this machine")


def test_a_browser_shows_every_figure_and_has_nothing_to_complain_of(page, browser, tmp_path):
    """Headless, with an address for every name that leads nowhere: a request to the outside would be an error."""
    path, picture = tmp_path / "report.html", tmp_path / "page.png"
    path.write_text(page[0])
    checked = page[0].replace("</body>", f"<script>{CHECK}</script></body>")
    (tmp_path / "checked.html").write_text(checked)
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=400,3000"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run(
        [browser, *options, "--dump-dom", f"file://{tmp_path / 'checked.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr and "ERR_" not in shown.stderr
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", shown.stdout).group(1)))
    assert found["figures"] == FIGURES and found["drawn"] == sum(FIGURES.values()) and found["broken"] == 0
    assert found["spare"] >= 0, "nothing sticks out of a narrow screen"
    subprocess.run(
        [browser, *options, f"--screenshot={picture}", f"file://{path}"], capture_output=True, timeout=120, check=True
    )
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.std() > 5, "the picture of the page is not blank"


CHECK = """
const figures = [...document.querySelectorAll('figure[id]')];
document.title = JSON.stringify({
  figures: Object.fromEntries(figures.map(f => [f.id, f.querySelectorAll('svg').length])),
  drawn: [...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height > 50).length,
  broken: [...document.images].filter(i => !i.naturalWidth).length,
  spare: innerWidth - document.documentElement.scrollWidth});
"""


def test_a_saved_report_is_written_again_with_the_same_bytes(page, tmp_path, capsys):
    result = page[1]
    context = Context(title="T", reference="R", grids={"one": b"\x89PNG"}, seconds=1.0, commands=("c",))
    path = Path(save_report(str(tmp_path), result, context))
    assert load_report(str(tmp_path)) == (result, context)
    before = path.read_bytes()
    path.unlink()
    assert main(["report", str(tmp_path)]) == 0
    assert path.read_bytes() == before and "report.html" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [0, 1, 18])
def test_an_unfinished_sweep_gets_a_report_so_far_that_says_so(tmp_path, capsys, answers):
    driver = driver_of(SPACE)
    told = 0
    while told < answers:
        for evaluation in driver.ask():
            if told < answers:
                driver.tell(evaluation.id, simulate(evaluation))
            told += 1
    context = Context(title="T", reference="R", commands=("edm-ray sweep --model M",))
    save_progress(str(tmp_path), result_of(driver), context)
    assert main(["report", str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert "This sweep has not ended" in text and "edm-ray sweep --model M" in text
    assert "This sweep has not ended" in capsys.readouterr().out
    assert ("Best so far" in text) == ('id="fid-all"' in text) == (answers > 0)


def test_a_cell_of_a_heat_map_without_a_sampler_stays_empty():
    means = cell_means(np.array([0, 0, 3]), np.array([1, 1, 2]), np.array([4.0, 6.0, 7.0]))
    assert means.count() == 2 and means[0, 1] == 5 and means[3, 2] == 7


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no sweep there"),
        ({"chunks/x": "1"}, "a sweep that has not ended, with nothing to report yet; run its command again"),
        ({"chunks/x": "1", "run.json": "{}"}, "a training run, not a sweep"),
        ({"chunks/x": "1", "evaluation.json": "{}"}, "an evaluation, not a sweep"),
        ({"progress.json": "[]"}, "progress.json: not a JSON object; run the sweep's command again"),
        ({"sweep.json": "{"}, "sweep.json: not JSON"),
        ({"sweep.json": "{}"}, "sweep.json: space"),
    ],
)
def test_a_directory_without_a_finished_sweep_is_named(tmp_path, capsys, files, message):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_front_of_cost_is_drawn_where_costs_differ():
    space = "name: t\nsearch:\n  churn_fraction: {low: 0, high: 1}\n  num_steps: {low: 8, high: 24, integer: true}\n"
    driver = driver_of(space, objective=("fid", "nfe"))
    run(driver)
    assert {"pareto", "fid-pairs"} < {drawing.id for drawing in drawings(result_of(driver))}


@pytest.mark.slow
def test_settings_that_are_no_numbers_and_churn_by_bins_are_drawn_and_listed():
    space = (
        "name: t\nsampler: {churn_bins: [[0, 1, 0], [1, 50, 0]]}\nsearch:\n"
        "  churn_bins.0: {low: 0, high: 1}\n  churn_bins.1: {low: 0, high: 1}\n"
        "  solver: {choices: [heun, euler, dpmpp_2m]}\n  restarts: {choices: [[], [[0.14, 0.3, 3, 2]]]}\n"
    )
    driver = driver_of(space, num_global=16)
    run(driver)
    result = result_of(driver)
    first = looks_of(result, result.first_chunks)
    assert {"solver", "restarts"} <= set(searched_choices(first)) and "churn_bins.1" in searched(first)
    found = {drawing.id: len(drawing.svgs) for drawing in drawings(result)}
    assert found["fid-parameters"] == len(searched(first)) + len(searched_choices(first))
    text = render_report(result, Context(title="T", reference="R", commands=("c",)))
    assert "<th>solver</th>" in text and "<td>dpmpp_2m</td>" in text


def test_the_confirmed_are_shown_with_paired_intervals_and_the_probability_of_being_best():
    driver = driver_of(SPACE + "paper: paper\n")
    run(driver)
    result = result_of(driver)
    text = render_report(result, Context(title="T", reference="R", commands=("c",)))
    for entry in result.confirmed:
        row = re.search(rf"<tr[^>]*><td>{entry.label}\b.*?</tr>", text).group(0)
        assert f"<td>{100 * entry.probability_best:.0f} %</td>" in row
        for gap in (entry.against_deterministic, entry.against_paper):
            assert "<td>-</td>" in row if gap is None else f"{gap.gap:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})" in row


def test_the_page_needs_nothing_from_outside(page):
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page[0])
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", text)
    assert "@import" not in text and "<link" not in text


def test_the_page_holds_figures_grids_trials_cost_and_commands(page):
    text, result = page
    assert re.findall(r'<figure id="([^"]+)"', text) == list(FIGURES)
    assert (
        text.count("<svg") == sum(FIGURES.values())
        and text.count('<img alt="deterministic" src="data:image/png;base64,') == 1
    )
    assert all(line.split(",")[0].split("<")[0] in text for line in result.summary())
    assert f"{result.images:,} images" in text and "edm-ray sweep --model M" in text and "1.234" in text
    assert text.count("<tr") >= len(result.trials) + 2


def test_hostile_names_are_escaped(page):
    assert "<script" not in page[0] and "&lt;script&gt;" in page[0] and "<b>train" not in page[0]


def test_a_sweep_over_solvers_shows_the_settings_that_it_searched_and_no_others():
    """Ends with a sampler that its file gives back; the page names no churn, which the space does not search."""
    space = load_space("tune_spaces/any-budget.yaml")
    choices = tuple(each for each in space.search["solver"].choices if each != "heun")
    search = {name: where for name, where in space.search.items() if name != "churn_fraction"}
    space = dataclasses.replace(space, search={**search, "solver": Choice(choices=choices)})
    driver = driver_of(space, strategy="random", num_global=12)
    run(driver, fid=lambda settings: 5 + abs(settings.rho - 6) + 30 * (settings.solver == "heun"))
    result = result_of(driver)
    best = result.require_best()
    assert best.settings.solver != "heun" and settings_from_yaml(best_sampler_yaml(result)) == best.settings
    text = render_report(result, Context(title="T", reference="R", commands=("c",)))
    assert not re.search("s_churn|s_tmin|s_tmax", text, re.I)
    for label, told in result.samplers.items():
        solver = driver.search.registry.samplers[label].solver
        assert ("order" in told) == (solver in ("unipc", "deis", "ipndm", "sa_solver"))
        assert "tau" in told if solver == "sa_solver" else "tau" not in told
