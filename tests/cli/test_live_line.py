"""Beside the live line on a terminal: tables and results for programs stand alone, and go where they should."""

from __future__ import annotations

import json
import sys

import pytest

from tests.terminal import SPINNER, Terminal

STAND_IN = """
import sys, time
from edm_ray.cli.console import as_json, report, say, write_out
from edm_ray.cli.progress import screen, showing

with as_json("json" in sys.argv), showing(), screen().shown("measuring"):
    screen().update(1, 2, "chunks", "")
    time.sleep(0.4)
    if "table" in sys.argv:
        from rich.table import Table
        from edm_ray.cli.tables import show
        table = Table("metric", "value", title="samples", title_justify="left")
        table.add_row("FID", "5.99")
        show(table)
    if "long" in sys.argv:
        write_out("word " * 60)
        for done in range(1, 4):
            screen().update(100_000 * done, 600_000, "images, at most", "")
            screen().within(11, 50, "network call")
            time.sleep(0.25)
    report({"fid": 5.99})
    say("done")
"""


@pytest.fixture
def stand_in(tmp_path):
    path = tmp_path / "stand_in.py"
    path.write_text(STAND_IN)
    return path


def test_json_for_a_file_goes_into_the_file_and_not_to_the_terminal(stand_in, tmp_path):
    with Terminal("-c", f"{sys.executable} {stand_in} json > {tmp_path}/out.json", program=("bash",)) as terminal:
        assert terminal.wait(60) == 0, terminal.story
    assert json.loads((tmp_path / "out.json").read_text()) == {"fid": 5.99}
    assert "fid" not in terminal.text and "done" in terminal.text


def test_tables_and_long_results_stand_alone_and_the_bar_gives_way_to_the_time_left(stand_in):
    with Terminal(str(stand_in), "table", "long", program=(sys.executable,), columns=80) as terminal:
        assert terminal.wait(60) == 0, terminal.story
    lines = terminal.text.splitlines()
    (title,) = (line for line in lines if "samples" in line)
    assert not SPINNER.match(title), title
    assert "word " * 60 in terminal.text, "not folded at the width of the terminal"
    live = [line for line in lines if "at most: 300,000" in line]
    assert live and all(line.endswith(" left") for line in live), "the time left is whole"
    assert any("━" in line for line in lines if "chunks" in line), "a bar where there is room"
