from __future__ import annotations

import io
import re

import numpy as np
import pytest
from PIL import Image

from edm_ray.report.html import Context, render_report
from edm_ray.search.race import Race
from edm_ray.search.result import result_of
from tests.search.worlds import PLAN, SPACE, run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from edm_ray.search.space import load_space

    path = tmp_path_factory.mktemp("s") / "space.yaml"
    path.write_text(SPACE.replace("  paper:", "  <script>alert(1)</script>:"))
    controller = Race(load_space(str(path)), PLAN)
    run(controller)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(buffer, format="PNG")
    result = result_of(controller)
    context = Context(
        title="T",
        reference="digits <b>train</b> (n=1297), extractor digits",
        grids={"deterministic": buffer.getvalue()},
        real={"dataset": "heldout", "n": "1000", "fid": "1.234", "se": "0.1", "debiased": "1.0"},
        seconds=12.0,
        commands=("edm-ray sweep --model M",),
    )
    return render_report(result, context), result


def test_the_page_needs_nothing_from_outside(page):
    text = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page[0])
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:|#)", text)
    assert "@import" not in text and "<link" not in text


def test_the_page_holds_figures_grids_trials_cost_and_commands(page):
    text, result = page
    assert text.count("<svg") == 2 and text.count("data:image/png;base64,") == 1
    assert all(line.split(",")[0].split("<")[0] in text for line in result.summary())
    assert f"{result.images:,} images" in text and "edm-ray sweep --model M" in text and "1.234" in text
    assert text.count("<tr") >= len(result.trials) + 2


def test_hostile_names_are_escaped(page):
    assert "<script" not in page[0] and "&lt;script&gt;" in page[0] and "<b>train" not in page[0]
